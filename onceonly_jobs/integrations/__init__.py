"""Guards for other libraries' tools and handlers. Each module needs only the client and its own library."""
