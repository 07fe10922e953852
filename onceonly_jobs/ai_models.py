"""What the calls of `client.ai` return. Where the published SDK has it."""

from onceonly_jobs.client.models import AiResult as AiResult
from onceonly_jobs.client.models import AiRun as AiRun
from onceonly_jobs.client.models import AiStatus as AiStatus
from onceonly_jobs.client.models import AiToolResult as AiToolResult

__all__ = ["AiResult", "AiRun", "AiStatus", "AiToolResult"]
