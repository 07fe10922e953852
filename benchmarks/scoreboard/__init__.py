"""What a killed worker costs, here and with other queues."""
