"""/me, /me/notifications, /usage, /usage/all and /metrics."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, model_validator

from onceonly_jobs.contracts.fields import Wire, example


class NotificationsRequest(Wire):
    """Any non-empty subset of the three switches; the others stay as they are."""

    model_config = example(email_notifications_enabled=False)

    email_notifications_enabled: bool | None = None
    tool_error_notifications_enabled: bool | None = None
    run_failure_notifications_enabled: bool | None = None

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not any(value is not None for value in self.__dict__.values()):
            raise ValueError("give at least one of the three switches")
        return self


class NotificationsAnswer(BaseModel):
    email_notifications_enabled: bool
    tool_error_notifications_enabled: bool
    run_failure_notifications_enabled: bool


class MeAnswer(NotificationsAnswer):
    plan: str
    is_active: bool
    key_preview: str
    current_period_end: str | None
    requests_total_all_time: int
    blocked_total_all_time: int


class UsageAnswer(BaseModel):
    plan: str
    month: str
    usage: int
    limit: int
    requests_total_month: int
    blocked_total_month: int


class KindUsage(BaseModel):
    usage: int
    limit: int
    requests_total_month: int
    blocked_total_month: int
    charged_total_month: int
    polling_total_month: int


class UsageAllAnswer(BaseModel):
    plan: str
    month: str
    make: KindUsage
    ai: KindUsage


class DayCounters(BaseModel):
    usage: int
    requests_total: int
    blocked_total: int
    charged_total: int
    polling_total: int


class MetricsDay(BaseModel):
    day: str
    make: DayCounters
    ai: DayCounters


class MetricsAnswer(BaseModel):
    """Counters per UTC day; days without any are left out."""

    from_day: str
    to_day: str
    items: list[MetricsDay]


UsageKind = Literal["make", "ai"]
