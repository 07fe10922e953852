"""What locks and governance return. Where the published SDK has it."""

from onceonly_jobs.client.models import AgentLogItem as AgentLogItem
from onceonly_jobs.client.models import AgentMetrics as AgentMetrics
from onceonly_jobs.client.models import AgentStatus as AgentStatus
from onceonly_jobs.client.models import CheckLockResult as CheckLockResult
from onceonly_jobs.client.models import Policy as Policy

__all__ = ["AgentLogItem", "AgentMetrics", "AgentStatus", "CheckLockResult", "Policy"]
