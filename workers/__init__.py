"""A deployment's own code: the jobs it serves, and the Celery app that serves them. Copy and change it."""
