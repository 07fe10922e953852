"""What is promised: one operation per use case, named by its verb. An operation is one transaction."""
