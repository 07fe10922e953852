"""Workers that claim several runs at once and keep them, however slow the machine is on which they are tested."""

from support.worker_app import app
from support.worker_system import PATIENCE_S

from onceonly_jobs.worker import pace, warden

__all__ = ["app"]

pace.BATCH_S = warden.SLOW_S = warden.WAIT_S = PATIENCE_S
