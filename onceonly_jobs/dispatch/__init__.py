"""How work leaves: runs that are due go to the broker, news of finished ones to whoever waits."""
