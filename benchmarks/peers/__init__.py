"""Other queues, each measured through an adapter in its own environment."""
