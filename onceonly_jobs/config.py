"""Settings: the single reader of the environment (`ONCEONLY_*`)."""

from __future__ import annotations

import secrets
from functools import cached_property
from typing import Annotated, Any, Literal, Self
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from onceonly_jobs.errors import ConfigError

POSTGRES_SCHEMES = ("postgresql", "postgres", "postgresql+psycopg")
REDIS_SCHEMES = ("redis", "rediss", "redis+socket", "unix")
BROKER_SCHEMES = (*REDIS_SCHEMES, "amqp", "amqps", "pyamqp")


def _scheme(url: str) -> str:
    return urlsplit(url).scheme


def _checked(schemes: tuple[str, ...]) -> AfterValidator:
    def check(url: str) -> str:
        if _scheme(url) not in schemes:
            raise ValueError(f"must be a URL starting with one of: {', '.join(s + '://' for s in schemes)}")
        return url

    return AfterValidator(check)


def _digits(value: object) -> object:
    """A number of the environment as a number: a Literal of numbers does not take text."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


PostgresUrl = Annotated[str, _checked(POSTGRES_SCHEMES)]
BrokerUrl = Annotated[str, _checked(BROKER_SCHEMES)]
RedisUrl = Annotated[str, _checked(REDIS_SCHEMES)]
PositiveSeconds = Annotated[float, Field(gt=0)]


class Settings(BaseSettings):
    """Everything the server can be told from outside. Read once per process by `Settings.load()`."""

    model_config = SettingsConfigDict(
        env_prefix="ONCEONLY_", frozen=True, extra="ignore", env_ignore_empty=True
    )

    database_url: PostgresUrl | None = Field(
        None, description="Postgres that the API and the workers use. Unset: `up` runs an embedded one."
    )
    migration_database_url: PostgresUrl | None = Field(
        None, description="Postgres as the owner of the tables, for `migrate`. Unset: DATABASE_URL."
    )
    broker_url: BrokerUrl | None = Field(
        None, description="Celery broker, Redis or RabbitMQ. Unset: `up` runs an embedded Redis."
    )
    redis_url: RedisUrl | None = Field(
        None, description="Redis for hints. Unset: BROKER_URL where that is a Redis, else none."
    )
    secret_key: str | None = Field(
        None, min_length=16, description="Key for secrets at rest. `up` makes one on its first start."
    )
    default_plan: Literal["free", "starter", "pro", "agency"] = Field(
        "agency", description="Plan of a tenant that is made without one."
    )
    plan_table: Literal["seed", "newer"] = Field(
        "seed", description="Which of the two published tables says what governance each plan has."
    )
    strict_tools: bool = Field(
        False,
        description="Whether a policy that names a tool or job that is not registered is refused (400).",
    )
    default_job: str = Field("echo", description="Job of a run that names none and matches no pattern.")
    default_queue: str = Field("onceonly", description="Celery queue of jobs that name none.")
    worker_lease_s: PositiveSeconds = Field(
        15, description="How long a worker's claim lasts without a heartbeat, in seconds."
    )
    worker_heartbeat_s: PositiveSeconds = Field(
        5, description="How often a worker extends its claim, in seconds."
    )
    time_limit_grace_s: PositiveSeconds = Field(
        5, description="How long a handler may go on past its time limit before its process is killed."
    )
    drain_s: float = Field(
        10,
        ge=0,
        description="After SIGTERM, how long a worker lets its runs go on before it hands them back, in seconds.",
    )
    watchdog_s: float = Field(
        30,
        ge=0,
        description="How long an idle worker may get no message, while published runs wait for it, before it ends "
        "itself to be started again; 0: never.",
    )
    relay_interval_s: PositiveSeconds = Field(
        0.5, description="How often the relay looks for due runs and expired claims, in seconds."
    )
    relay_batch: int = Field(500, ge=1, le=10_000, description="How many due runs the relay takes at once.")
    audit_seal_s: PositiveSeconds = Field(
        5, description="How often the relay seals new rows of the audit trail, in seconds."
    )
    broker_backlog: int = Field(
        200,
        ge=1,
        description="Messages in one queue above which it gets no more; what else is due waits in Postgres.",
    )
    direct_claims: bool = Field(
        True,
        description="Whether a worker that has finished a run takes further ones without a message, several at once.",
    )
    publish_grace_s: PositiveSeconds = Field(
        2, description="After a publication, how long until an unclaimed run is published again; doubles."
    )
    retention_s: int = Field(
        604_800, ge=60, description="How long a finished run answers for its key, in seconds (7 days)."
    )
    event_retention_s: int = Field(
        2_592_000,
        ge=60,
        description="How long a silent timeline and the feed are kept, in seconds (30 days); at least RETENTION_S.",
    )
    max_wait_s: float = Field(30, ge=0, le=300, description="Longest long poll (`wait=`), in seconds.")
    max_streams: int = Field(
        200, ge=0, description="Live event streams that one API process serves at a time."
    )
    max_body_bytes: int = Field(2_097_152, ge=65_536, description="Largest request body.")
    max_result_bytes: int = Field(1_048_576, ge=1024, description="Largest result of a run, as compact JSON.")
    duplicate_status_code: Annotated[Literal[200, 409], BeforeValidator(_digits)] = Field(
        200, description="HTTP status of a check-lock duplicate."
    )
    rate_limit: str | None = Field(
        None, description="Requests per API key, like `100/second` or `1000/minute`. Unset: unlimited."
    )
    database_pool_size: int = Field(
        10,
        ge=1,
        description="Postgres connections per API process, besides eight of its own for locks, runs and calls.",
    )
    api_pool_timeout_s: PositiveSeconds = Field(
        2, description="How long a request waits for one of them before it is answered 503."
    )
    api_statement_timeout_s: PositiveSeconds = Field(
        4,
        description="How long Postgres may take for one statement of a request before that is answered 503: less "
        "than callers wait.",
    )
    llm_base_url: str | None = Field(
        None, description="OpenAI-compatible endpoint of the `chat` job, ending in /v1."
    )
    llm_api_key: str | None = Field(None, description="Key for that endpoint.")
    llm_model: str = Field("gpt-4o-mini", description="Model where the run's metadata names none.")
    tool_allow: str = Field(
        "",
        description="Networks that tools and the `http_request` job may reach beside the public internet: a comma list "
        "of `loopback`, `private` and CIDRs.",
    )
    tool_patience_s: float = Field(
        30,
        ge=0,
        le=300,
        description="How long a tool call is waited for before its answer is 409 `in_progress`.",
    )
    schedule_tenant: str = Field(
        "default",
        min_length=1,
        description="Tenant of the schedules that code declares (`@job(..., cron=...)`); made if it is new.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Log level.")
    log_format: Literal["console", "json"] = Field(
        "console", description="Form of a log line: for people, or a JSON object."
    )
    access_log: bool = Field(False, description="Log a line per request at INFO. Else it is at DEBUG.")
    metrics_token: str | None = Field(
        None,
        min_length=8,
        description="Bearer token that `/metrics` asks for. Unset: the API shows it to its own machine only.",
    )
    metrics_host: str = Field("127.0.0.1", description="Address of the worker's and scheduler's `/metrics`.")
    worker_metrics_port: int = Field(
        0, ge=0, le=65_535, description="Port of a worker's `/metrics`; 0: none. `up` takes a free one."
    )
    scheduler_metrics_port: int = Field(
        0,
        ge=0,
        le=65_535,
        description="Port of `/metrics` of `beat` or `relay`; 0: none. `up` takes a free one.",
    )
    otel: bool = Field(
        False, description="Send OpenTelemetry traces, as the standard `OTEL_*` variables say (extra `otel`)."
    )
    flower_auth: str | None = Field(
        None,
        pattern=r"^[^:,\s]+:[^,\s]{8,}$",
        description="`user:password` for Flower, needed where others can reach it; at least 8 characters of password.",
    )

    @classmethod
    def load(cls, **given: Any) -> Self:
        """Read the environment; given values win. Raises ConfigError with a line per wrong variable."""
        try:
            settings = cls(**given)
        except ValidationError as error:
            lines = [f"ONCEONLY_{'_'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors()]
            raise ConfigError("; ".join(lines)) from None
        if settings.worker_heartbeat_s * 2 > settings.worker_lease_s:
            raise ConfigError(
                "ONCEONLY_WORKER_HEARTBEAT_S: must be at most half of ONCEONLY_WORKER_LEASE_S, "
                "or one late heartbeat loses the claim"
            )
        return settings

    def require_database_url(self) -> str:
        """The serving database's URL for SQLAlchemy. Raises ConfigError when it is not set."""
        if self.database_url is None:
            raise ConfigError("ONCEONLY_DATABASE_URL: not set (`onceonly-jobs up` runs an embedded Postgres)")
        return sqlalchemy_url(self.database_url)

    def require_broker_url(self) -> str:
        if self.broker_url is None:
            raise ConfigError("ONCEONLY_BROKER_URL: not set (`onceonly-jobs up` runs an embedded Redis)")
        return self.broker_url

    @cached_property
    def secrets(self) -> frozenset[str]:
        """Values that must not be seen in a log."""
        urls = (self.database_url, self.migration_database_url, self.broker_url, self.redis_url)
        passwords = [urlsplit(url).password for url in urls if url is not None]
        flower = (self.flower_auth or "").partition(":")[2]
        given = (self.secret_key, self.llm_api_key, self.metrics_token, flower, *passwords)
        return frozenset(value for secret in given if secret for value in (secret, unquote(secret)))

    @cached_property
    def owner_database_url(self) -> str:
        if self.migration_database_url is not None:
            return sqlalchemy_url(self.migration_database_url)
        return self.require_database_url()

    @cached_property
    def hints_url(self) -> str | None:
        """Redis for hints, or None: then waiters only re-read Postgres."""
        if self.redis_url is not None:
            return self.redis_url
        if self.broker_url is not None and _scheme(self.broker_url) in ("redis", "rediss"):
            return self.broker_url
        return None


def sqlalchemy_url(url: str) -> str:
    """The same database, named with the one driver that is used here."""
    _, rest = url.split("://", 1)
    return f"postgresql+psycopg://{rest}"


def new_secret() -> str:
    """256 random bits, URL-safe."""
    return secrets.token_urlsafe(32)
