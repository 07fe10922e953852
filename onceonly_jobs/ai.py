"""`client.ai`. Where the published SDK has it."""

from onceonly_jobs.client.ai import AiClient as AiClient

__all__ = ["AiClient"]
