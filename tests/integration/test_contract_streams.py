"""GET /runs/{run_id}/stream and GET /events/stream: Server-Sent Events over real HTTP (additive)."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx
import pytest
import uvicorn

from onceonly_jobs.api.app import create_app
from onceonly_jobs.api.protocol import Protocol
from onceonly_jobs.api.routes import streams
from onceonly_jobs.config import Settings
from onceonly_jobs.dispatch.hints import HintSender
from onceonly_jobs.services import account, claims

if TYPE_CHECKING:
    from tests.integration.conftest import Api

PATIENCE_S = 60.0


class LiveServer:
    """The application behind a real server: only that can stream."""

    def __init__(self, settings: Settings) -> None:
        app = create_app(settings)
        config = uvicorn.Config(
            app, port=0, log_config=None, http=Protocol, ws="none", timeout_graceful_shutdown=1
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def __enter__(self) -> LiveServer:
        self._thread.start()
        end = time.monotonic() + PATIENCE_S
        while not self._server.started:
            assert time.monotonic() < end, "the server never started"
            time.sleep(0.01)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(PATIENCE_S)

    @contextmanager
    def stream(self, api_key: str, path: str, **headers: str) -> Iterator[Stream]:
        sent = {"Authorization": f"Bearer {api_key}"} | headers
        url = f"http://127.0.0.1:{self.port}/v1{path}"
        with httpx.stream("GET", url, headers=sent, timeout=PATIENCE_S) as response:
            yield Stream(response)


class Stream:
    """An open stream, read block by block."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._lines = response.iter_lines()

    def blocks(self) -> Iterator[dict[str, str]]:
        """Each event or comment; a comment has the empty name."""
        block: dict[str, str] = {}
        for line in self._lines:
            if line:
                name, _, value = line.partition(":")
                block[name] = value.strip()
            else:
                yield block
                block = {}

    def events(self) -> Iterator[dict[str, Any]]:
        for block in self.blocks():
            if "data" in block:
                event = json.loads(block["data"])
                assert int(block["id"]) == event["id"]
                yield event

    def next(self) -> dict[str, Any]:
        return next(self.events())

    def rest(self) -> list[str]:
        """Types of all that comes until the server ends the stream."""
        return [event["type"] for event in self.events()]


@pytest.fixture(scope="module")
def live(shared_settings: Settings) -> Iterator[LiveServer]:
    with LiveServer(shared_settings) as server:
        yield server


@pytest.fixture
def no_reread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a hint can bring news."""
    monkeypatch.setattr(streams, "REREAD_S", 3600.0)
    monkeypatch.setattr(streams, "PING_S", 3600.0)


def test_a_finished_runs_stream_is_its_timeline_and_ends(api: Api, live: LiveServer) -> None:
    api.post("/ai/run", key="k")
    api.work("k", {"n": 1})
    with live.stream(api.api_key, "/runs/k/stream") as stream:
        assert stream.response.status_code == 200
        assert stream.response.headers["content-type"].startswith("text/event-stream")
        assert stream.response.headers["cache-control"] == "no-store"
        assert list(stream.events()) == api.get("/runs/k").json()["events"]


def test_what_happens_is_told_as_it_happens_until_the_run_ends(api: Api, live: LiveServer) -> None:
    api.post("/ai/run", key="k")
    with live.stream(api.api_key, "/runs/k/stream") as stream:
        assert stream.next()["type"] == "run_queued"
        claim = api.claim("k")
        assert stream.next()["type"] == "run_started"
        api.db.run(claims.report_progress, claim, {"fraction": 0.5}, "half\nway\u2028there")
        progress = stream.next()
        assert (progress["type"], progress["data"]) == ("progress", {"fraction": 0.5})
        assert progress["message"] == "half\nway\u2028there"
        api.db.run(claims.complete, claim, {}, 600)
        assert stream.rest() == ["run_finished"]


@pytest.mark.usefixtures("no_reread")
def test_a_hint_brings_the_news_at_once(api: Api, live: LiveServer) -> None:
    api.post("/ai/run", key="k", metadata={"run_id": "line"})
    sender = HintSender(api.app.settings)
    with live.stream(api.api_key, "/runs/line/stream") as stream:
        assert stream.next()["type"] == "run_queued"
        claim = api.claim("k")
        api.db.run(claims.report_log, claim, "x", {})
        sender.moved(api.tenant_id, "line")
        assert [stream.next()["type"], stream.next()["type"]] == ["run_started", "log"]
    sender.close()


def test_a_stream_goes_on_after_the_last_event_that_was_seen(api: Api, live: LiveServer) -> None:
    api.post("/ai/run", key="k")
    claim = api.claim("k")
    with live.stream(api.api_key, "/runs/k/stream") as stream:
        first = stream.next()
    api.db.run(claims.retry, claim, 0, "e", "m")
    api.work("k")
    with live.stream(api.api_key, "/runs/k/stream", **{"Last-Event-ID": str(first["id"])}) as stream:
        events = list(stream.events())
    types = [event["type"] for event in events]
    assert types == ["run_started", "run_retried", "run_started", "run_finished"]
    last = str(events[-1]["id"])
    with live.stream(api.api_key, "/runs/k/stream", **{"Last-Event-ID": last}) as stream:
        assert stream.response.status_code == 204, "a browser stops asking"


def test_a_stream_resumed_before_the_end_still_ends(api: Api, live: LiveServer) -> None:
    """What had begun is known from the part that is not sent again."""
    for key in ("a", "b", "c"):
        api.post("/ai/run", key=key, metadata={"run_id": "all"})
    api.work("a")
    last = api.get("/runs/all").json()["events"][-1]
    assert last["type"] == "run_finished"
    with live.stream(api.api_key, "/runs/all/stream", **{"Last-Event-ID": str(last["id"])}) as stream:
        assert stream.response.status_code == 200, "b and c go on"
        api.work("b")
        assert [stream.next()["type"], stream.next()["type"]] == ["run_started", "run_finished"]
        api.work("c")
        assert stream.rest() == ["run_started", "run_finished"]


def test_a_stream_that_follows_goes_on_after_the_end(api: Api, live: LiveServer) -> None:
    api.post("/ai/run", key="k")
    api.work("k")
    with live.stream(api.api_key, "/runs/k/stream?follow=true") as stream:
        assert [stream.next()["type"] for _ in range(3)][-1] == "run_finished"
        api.post("/events", run_id="k", type="note")
        assert stream.next()["type"] == "note"


@pytest.mark.parametrize("run_id", ["run x/y", "a/stream", "/stream", "ünï\n?q=1#f"])
def test_any_run_id_can_be_followed(api: Api, live: LiveServer, run_id: str) -> None:
    api.post("/ai/run", key="k", metadata={"run_id": run_id})
    api.work("k")
    with live.stream(api.api_key, f"/runs/{quote(run_id, safe='')}/stream") as stream:
        assert stream.rest() == ["run_queued", "run_started", "run_finished"]


@pytest.mark.parametrize("run_id", ["a/stream", "/stream", "stream"])
def test_a_run_of_that_name_keeps_its_own_timeline(api: Api, run_id: str) -> None:
    api.post("/events", run_id=run_id, type="note")
    seen = api.get(f"/runs/{quote(run_id, safe='')}").json()
    assert (seen["run_id"], seen["total"]) == (run_id, 1)


def test_an_idle_stream_pings_and_ends_when_its_key_is_revoked(
    api: Api, live: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "PING_S", 0.05)
    with live.stream(api.api_key, "/runs/nothing yet/stream") as stream:
        blocks = stream.blocks()
        assert next(blocks) == {"retry": "2000"}
        assert next(blocks) == {"": "ping"}
        api.db.run(account.revoke_key, api.caller.key_id)
        assert all(block == {"": "ping"} for block in blocks)


@pytest.mark.parametrize("path", ["/runs/k/stream", "/events/stream"])
def test_a_stream_wants_a_key_and_an_id_that_is_one(api: Api, path: str) -> None:
    assert api.app.request("GET", f"/v1{path}").status_code == 401
    wrong = {"Authorization": "Bearer once_live_wrong"}
    assert api.app.request("GET", f"/v1{path}", headers=wrong).status_code == 401
    for last in ("x", "-1", str(2**63)):
        answer = api.request("GET", path, headers={"Last-Event-ID": last})
        assert answer.status_code == 422
        assert answer.json()["detail"][0]["loc"] == ["header", "last-event-id"]


def test_a_stream_shows_nothing_of_another_namespace(
    api: Api, new_tenant: Callable[..., Api], live: LiveServer
) -> None:
    other = new_tenant()
    other.post("/ai/run", key="k")
    other.work("k")
    api.post("/ai/run", key="k")
    with live.stream(api.api_key, "/runs/k/stream") as stream:
        assert stream.next()["type"] == "run_queued"
        api.work("k")
        assert stream.rest() == ["run_started", "run_finished"]


def test_the_feed_tells_what_happens_from_now_on_or_since(api: Api, live: LiveServer) -> None:
    api.post("/ai/lease", key="before")
    (before,) = api.get("/events").json()
    with live.stream(api.api_key, "/events/stream") as stream:
        blocks = stream.blocks()
        assert next(blocks) == {"retry": "2000"}
        lease_id = api.post("/ai/lease", key="k").json()["lease_id"]
        api.post("/ai/complete", key="k", lease_id=lease_id)
        seen = [stream.next(), stream.next()]
        assert seen[::-1] == api.get("/events", limit=2).json()
    with live.stream(api.api_key, "/events/stream", **{"Last-Event-ID": str(before["id"])}) as stream:
        assert [stream.next()["key"], stream.next()["key"]] == ["k", "k"]


def test_more_than_one_batch_is_told_whole_and_once(
    api: Api, live: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "BATCH", 3)
    monkeypatch.setattr(streams, "SETTLE_S", 0.0)
    for n in range(10):
        api.post("/events", run_id="k", type=f"t{n}")
    api.post("/events", run_id="k", type="run_finished")
    with live.stream(api.api_key, "/runs/k/stream") as stream:
        assert stream.rest() == [*(f"t{n}" for n in range(10)), "run_finished"]
    for n in range(10):
        api.post("/ai/lease", key=f"k{n}")
    with live.stream(api.api_key, "/events/stream", **{"Last-Event-ID": "0"}) as stream:
        keys = [stream.next()["key"] for _ in range(10)]
        api.post("/ai/lease", key="last")
        assert [*keys, stream.next()["key"]] == [*(f"k{n}" for n in range(10)), "last"]


def test_a_process_serves_so_many_streams_and_no_more(settings: Settings, serve: Callable[..., Api]) -> None:
    api = serve()
    with LiveServer(settings.model_copy(update={"max_streams": 1})) as server:
        with server.stream(api.api_key, "/events/stream") as first:
            assert first.response.status_code == 200
            with server.stream(api.api_key, "/events/stream") as second:
                assert second.response.status_code == 503
                assert json.loads(second.response.read())["detail"]["error"] == "too_many_streams"
                assert second.response.headers["retry-after"] == "5"
        end = time.monotonic() + PATIENCE_S
        while True:
            with server.stream(api.api_key, "/events/stream") as third:
                if third.response.status_code == 200:
                    break
            assert time.monotonic() < end, "the place was never given back"
