"""The worker's runtime: jobs by name, and what happens between a message and a stored result."""
