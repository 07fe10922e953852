"""`client.gov`. Where the published SDK has it."""

from onceonly_jobs.client.governance import GovernanceClient as GovernanceClient

__all__ = ["GovernanceClient"]
