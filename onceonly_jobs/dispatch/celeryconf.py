"""What every Celery app of ours is told: the worker's, the scheduler's and the producer's."""

from __future__ import annotations

import ssl
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from kombu.entity import Exchange, Queue

from onceonly_jobs.config import Settings

KEY_PREFIX = "onceonly:"
VISIBILITY_TIMEOUT_S = 3600
"""Only messages that died with a worker wait for it, and the relay has long published those again."""

CONNECT_TIMEOUT_S = 3.0
PRODUCER_TIMEOUT_S = 3.0
"""Longest a publication may wait for the broker: without it, a silent broker holds its caller for ever."""
WORKER_TIMEOUT_S = 15.0


def is_redis(broker_url: str) -> bool:
    return urlsplit(broker_url).scheme in ("redis", "rediss", "redis+socket", "unix")


def celery_url(broker_url: str) -> str:
    """The URL as kombu spells it."""
    scheme, rest = broker_url.split("://", 1)
    return f"redis+socket://{rest}" if scheme == "unix" else broker_url


def redis_py_url(url: str) -> str:
    """The URL as redis-py spells it."""
    scheme, rest = url.split("://", 1)
    return f"unix://{rest.replace('virtual_host=', 'db=')}" if scheme == "redis+socket" else url


def queue(name: str) -> Queue:
    """A durable classic queue. Producers and workers must declare it alike, or RabbitMQ refuses."""
    exchange = Exchange(name, type="direct", durable=True)  # type: ignore[no-untyped-call]
    return Queue(name, exchange, routing_key=name, durable=True)  # type: ignore[no-untyped-call]


def producer_conf(settings: Settings) -> dict[str, Any]:
    """For publishing: every network operation gives up after a few seconds."""
    url = settings.require_broker_url()
    once = {"max_retries": 0, "interval_start": 0, "interval_step": 0, "interval_max": 0}
    if is_redis(url):
        options = redis_options(PRODUCER_TIMEOUT_S) | once
    else:
        timeouts = {"read_timeout": PRODUCER_TIMEOUT_S, "write_timeout": PRODUCER_TIMEOUT_S}
        options = {"confirm_publish": True, **timeouts, **once}
    # No AMQP heartbeat: a producer that is idle has nobody to answer it.
    return _conf(settings, url) | {"broker_transport_options": options, "broker_heartbeat": 0}


def worker_conf(settings: Settings) -> dict[str, Any]:
    """For consuming: a lost broker is waited for; a silent one is noticed within half a minute."""
    url = settings.require_broker_url()
    options = redis_options(WORKER_TIMEOUT_S) if is_redis(url) else {}
    return _conf(settings, url) | {
        "broker_transport_options": options,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_heartbeat": 20,
        "task_acks_late": False,
        "worker_disable_prefetch": is_redis(url),
        "worker_prefetch_multiplier": 1,
        "worker_send_task_events": True,
        "worker_hijack_root_logger": False,
    }


def _conf(settings: Settings, url: str) -> dict[str, Any]:
    return {
        "broker_url": celery_url(url),
        "broker_connection_timeout": CONNECT_TIMEOUT_S,
        "broker_use_ssl": _tls(url),
        "result_backend": None,
        "task_ignore_result": True,
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        "task_default_queue": settings.default_queue,
        "task_default_delivery_mode": "persistent",
        "task_send_sent_event": True,
        "enable_utc": True,
        "timezone": "UTC",
    }


def redis_options(timeout_s: float) -> dict[str, Any]:
    """Transport options for a Redis that others may use too."""
    return {
        "global_keyprefix": KEY_PREFIX,
        "visibility_timeout": VISIBILITY_TIMEOUT_S,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "socket_keepalive": True,
        "health_check_interval": 10,
    }


def _tls(url: str) -> dict[str, Any] | None:
    """Certificates are checked unless the URL itself says otherwise; kombu's own default checks nothing."""
    parts = urlsplit(url)
    chosen = any(name.startswith("ssl_") for name, _ in parse_qsl(parts.query))
    return {"ssl_cert_reqs": ssl.CERT_REQUIRED} if parts.scheme == "rediss" and not chosen else None
