"""The Celery app of the torture's workers. Their queue is that of ONCEONLY_SCHEDULE_TENANT, the torture's tenant."""

from onceonly_jobs.config import Settings
from onceonly_jobs.torture.jobs import registry
from onceonly_jobs.worker.app import create_worker

_settings = Settings.load()
app = create_worker(_settings, registry(_settings.schedule_tenant))
