"""Log lines: what they name, and what they must not show."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
from structlog.contextvars import bound_contextvars

from onceonly_jobs.config import Settings
from onceonly_jobs.redaction import Redactor
from onceonly_jobs.telemetry import configure_logging

Configure = Callable[..., io.StringIO]


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> Iterator[Configure]:
    """Sends the logs of this process to a buffer, and afterwards where they went before."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {
        name: each.level for name, each in root.manager.loggerDict.items() if isinstance(each, logging.Logger)
    }

    def configure(*args: Any, **options: Any) -> io.StringIO:
        buffer = io.StringIO()
        monkeypatch.setattr("sys.stderr", buffer)
        configure_logging(*args, **options)
        return buffer

    yield configure
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)
    structlog.reset_defaults()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("key once_live_Ab-_0123456789 sent", "key once_live_*** sent"),
        ("preview once_live_...a1b2", "preview once_live_...a1b2"),
        ("Authorization: Bearer abcdefgh12345678", "Authorization: ***"),
        ("{'Authorization': 'Bearer x'}", "{'Authorization': '***'}"),
        ("authorization: dXNlcjpwYXNz", "authorization: ***"),
        ("postgresql://me:s3cr3t@db:5432/x?a=1", "postgresql://me:***@db:5432/x?a=1"),
        ("redis://:s3cr@t@cache:6379/0 is away", "redis://:***@cache:6379/0 is away"),
        ("http://host:80/path?to=a@b.c", "http://host:80/path?to=a@b.c"),
        ('{"secret": "hush hush", "name": "x"}', '{"secret": "***", "name": "x"}'),
        (r'"event": "{\"password\": \"a b\", \"n\": 1}"', r'"event": "{\"password\": \"***\", \"n\": 1}"'),
        ("host=db password='a b' user=me", "host=db password=*** user=me"),
        ("api_key=abc&x=1", "api_key=***&x=1"),
        ("\x1b[36mpassword\x1b[0m=\x1b[35mabc\x1b[0m", "\x1b[36mpassword\x1b[0m=\x1b[35m***\x1b[0m"),
        ("fencing_token=7 key=invoice:1 attempt=2", "fencing_token=7 key=invoice:1 attempt=2"),
        ("the tool's secret can't be read: bad key", "the tool's secret can't be read: bad key"),
    ],
)
def test_what_looks_like_a_secret_is_hidden(text: str, shown: str) -> None:
    assert Redactor()(text) == shown


def test_values_that_are_known_to_be_secret_are_hidden_anywhere() -> None:
    settings = Settings.load(
        database_url="postgresql://me:p%40ssw0rd@db/x",
        secret_key="a-key-for-secrets",
        llm_api_key="sk-123456789",
        metrics_token="scrape-me-please",
        flower_auth="user:flowerpass",
    )
    redact = Redactor(settings.secrets)
    text = "p%40ssw0rd p@ssw0rd a-key-for-secrets sk-123456789 scrape-me-please flowerpass user"
    assert redact(text) == "*** *** *** *** *** *** user"


def test_a_json_line_is_one_object_with_its_context(configured: Configure) -> None:
    buffer = configured("INFO", "api", "json")
    with bound_contextvars(request_id="r1", tenant="t", key='a"b\n'):
        logging.getLogger("onceonly_jobs.x").info("said %s", "so", extra={"more": {"n": 1}})
        logging.getLogger("onceonly_jobs.x").debug("not this")
    (line,) = buffer.getvalue().splitlines()
    logged = json.loads(line)
    assert logged.pop("timestamp").endswith("Z")
    assert logged == {
        "event": "said so",
        "level": "info",
        "logger": "api",
        "request_id": "r1",
        "tenant": "t",
        "key": 'a"b\n',
        "more": {"n": 1},
    }


@pytest.mark.parametrize("form", ["json", "console"])
def test_secrets_in_messages_fields_and_tracebacks_are_hidden(configured: Configure, form: str) -> None:
    buffer = configured("INFO", "api", form, ["known-to-be-one"])
    log = logging.getLogger("any.library")
    hidden = "unseen-12345678"
    try:
        raise ValueError(f"redis://:{hidden}@h/0")
    except ValueError:
        log.exception(
            "known-to-be-one once_live_%s", hidden, extra={"headers": {"Authorization": f"Bearer {hidden}"}}
        )
    structlog.get_logger("onceonly_jobs.y").warning("x", password=hidden)
    text = buffer.getvalue()
    assert "ValueError" in text
    assert hidden not in text
    assert "known-to-be-one" not in text
    if form == "json":
        assert len([json.loads(line) for line in text.splitlines()]) == 2


def test_a_readable_line_does_not_say_things_twice(configured: Configure) -> None:
    buffer = configured("INFO", "worker")
    with bound_contextvars(tenant="acme", key="invoice:1", run=17, run_id="invoice:1", job="pay", attempt=1):
        logging.getLogger("onceonly_jobs.x").info("run 17 invoice:1: pay, attempt 1 completed")
    assert buffer.getvalue().split("]", 2)[2].strip() == "tenant=acme"
