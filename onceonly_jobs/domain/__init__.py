"""What is true: pure functions and frozen values. Time and randomness arrive as arguments."""
