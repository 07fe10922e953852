"""Measurements. Not part of the tests: what they print depends on the machine."""
