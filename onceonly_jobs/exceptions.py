"""What the client raises. Where the published SDK has it."""

from onceonly_jobs.client.exceptions import ApiError as ApiError
from onceonly_jobs.client.exceptions import ConfigError as ConfigError
from onceonly_jobs.client.exceptions import LeaseLost as LeaseLost
from onceonly_jobs.client.exceptions import OnceOnlyError as OnceOnlyError
from onceonly_jobs.client.exceptions import OverLimitError as OverLimitError
from onceonly_jobs.client.exceptions import RateLimitError as RateLimitError
from onceonly_jobs.client.exceptions import RunFailed as RunFailed
from onceonly_jobs.client.exceptions import StillRunning as StillRunning
from onceonly_jobs.client.exceptions import TimedOut as TimedOut
from onceonly_jobs.client.exceptions import UnauthorizedError as UnauthorizedError
from onceonly_jobs.client.exceptions import Unreachable as Unreachable
from onceonly_jobs.client.exceptions import ValidationError as ValidationError

__all__ = [
    "ApiError",
    "ConfigError",
    "LeaseLost",
    "OnceOnlyError",
    "OverLimitError",
    "RateLimitError",
    "RunFailed",
    "StillRunning",
    "TimedOut",
    "UnauthorizedError",
    "Unreachable",
    "ValidationError",
]
