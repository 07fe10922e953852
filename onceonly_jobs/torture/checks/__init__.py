"""The checks of a torture, by what they are about."""
