"""The HTTP edge: authenticate, validate, run an operation, answer in the contract's words."""
