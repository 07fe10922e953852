"""Back-ends in processes of their own, one written after the contract and one typed off the guide, accept our calls."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import standardwebhooks
from onceonly import OnceOnly
from support.sdk_tenants import Tenant

from onceonly_jobs.local.subprocess_system import LocalSystem

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs/TOOL_BACKENDS.md"
SECRET = "supersecret_key"


@contextmanager
def process(directory: Path, *argv: str) -> Iterator[str]:
    """A program that prints its port; its URL."""
    with subprocess.Popen(
        [sys.executable, *argv], cwd=directory, stdout=subprocess.PIPE, text=True
    ) as running:
        try:
            assert running.stdout is not None
            yield f"http://127.0.0.1:{int(running.stdout.readline())}/tool"
        finally:
            running.kill()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "requests.jsonl"


@pytest.fixture
def backend(tmp_path: Path, log: Path) -> Iterator[str]:
    with process(tmp_path, str(ROOT / "tests/support/tool_backend.py"), SECRET, str(log)) as url:
        yield url


@pytest.fixture
def client(system: LocalSystem, tenant: Tenant) -> Iterator[OnceOnly]:
    made = OnceOnly(api_key=tenant.api_key, base_url=system.base_url, timeout=40)
    yield made
    made.close()


def call(client: OnceOnly, url: str, secret: str = SECRET, **args: Any) -> Any:
    auth = {"type": "hmac_sha256", "secret": secret}
    client.gov.create_tool({"name": "send_email", "url": url, "scope_id": "global", "auth": auth})
    return client.ai.run_tool(agent_id="support-bot", tool="send_email", args=args, spend_usd=0.02)


def test_a_back_end_after_the_contract_accepts_each_attempt_and_acts_once(
    client: OnceOnly, backend: str, log: Path
) -> None:
    answer = call(client, backend, to="jürgen@example.com", busy=1)
    assert (answer.decision, answer.result) == ("executed", {"sent": True, "number": 1})
    first, second = (json.loads(line) for line in log.read_text().splitlines())
    assert first["body"] == second["body"]
    key = json.loads(first["body"])["idempotency_key"]
    for name in ("x-onceonly-idempotency-key", "webhook-id"):
        assert first["headers"][name] == second["headers"][name] == key
    for name in ("x-onceonly-timestamp", "webhook-timestamp"):
        assert int(second["headers"][name]) > int(first["headers"][name]), "each attempt is fresh"
    library = standardwebhooks.Webhook("whsec_" + b64encode(SECRET.encode()).decode())
    for attempt in (first, second):
        assert library.verify(attempt["body"], attempt["headers"])["args"]["to"] == "jürgen@example.com"


def test_a_call_signed_with_another_secret_is_refused_and_not_repeated(
    client: OnceOnly, backend: str, log: Path
) -> None:
    answer = call(client, backend, secret="another secret", to="a")
    assert (answer.ok, answer.policy_reason, answer.result["status"]) == (False, "tool_error", 401)
    assert not log.exists()


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"X-OnceOnly-Signature": "0" * 64},
        {"X-OnceOnly-Signature-Alg": "hmac_sha1"},
        {"X-OnceOnly-Timestamp": str(int(time.time()) - 600)},
        {"X-OnceOnly-Timestamp": ""},
    ],
)
def test_the_back_end_is_as_strict_as_the_contract_says(backend: str, changed: dict[str, str]) -> None:
    """Else that it accepts our calls would say nothing."""
    body = b'{"idempotency_key": "k", "args": {}}'
    signed = {
        "X-OnceOnly-Signature": hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest(),
        "X-OnceOnly-Signature-Alg": "hmac_sha256",
        "X-OnceOnly-Timestamp": str(int(time.time())),
    }
    status = httpx.post(backend, content=body, headers=signed | changed).status_code
    assert status == (401 if changed else 200)


def test_the_guides_program_serves_our_calls_as_it_stands(client: OnceOnly, tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), flags=re.MULTILINE | re.DOTALL)
    source = "".join(blocks)
    started = "    server().serve_forever()\n"
    assert source.endswith(started)
    program = tmp_path / "tool.py"
    announced = (
        "    running = server(0)\n    print(running.server_port, flush=True)\n    running.serve_forever()\n"
    )
    program.write_text(source.removesuffix(started) + announced)
    with process(tmp_path, str(program)) as url:
        answer = call(client, url, to="a@example.com")
        assert (answer.decision, answer.result["sent"]) == ("executed", True)
        refused = call(client, url, subject="to nobody")
        assert (refused.ok, refused.result["status"]) == (False, 422)
    assert client.gov.agent_metrics("support-bot").total_spend_usd == 0.021, "what the tool says that it cost"
