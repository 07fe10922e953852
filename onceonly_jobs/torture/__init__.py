"""The torture suite: a real system, many clients, an independent witness, faults, and a checker of what is left."""
