"""Functions that run once per key. Where the published SDK has it."""

from onceonly_jobs.client.decorators import KeyFn as KeyFn
from onceonly_jobs.client.decorators import MetaFn as MetaFn
from onceonly_jobs.client.decorators import idempotent as idempotent
from onceonly_jobs.client.decorators import idempotent_ai as idempotent_ai

__all__ = ["KeyFn", "MetaFn", "idempotent", "idempotent_ai"]
