"""The floor: the framework with our models and our server's flags, and a constant answer."""

from __future__ import annotations

import sys
from typing import Any

import uvicorn
from fastapi import FastAPI

from onceonly_jobs.cli import parts
from onceonly_jobs.contracts.locks import CheckLockAnswer, CheckLockRequest

app = FastAPI(title="floor")


@app.post("/v1/check-lock", response_model=CheckLockAnswer)
async def check_lock(body: CheckLockRequest) -> CheckLockAnswer:
    """Does nothing."""
    return CheckLockAnswer(success=True, status="locked", key=body.key, ttl=60, first_seen_at=None)


@app.get("/ready")
async def ready() -> dict[str, bool]:
    return {"ok": True}


def main(port: int) -> None:
    """`onceonly-jobs api` with this application in the place of ours: whatever flags that has, this has."""
    run = uvicorn.run

    def instead(_: Any, **flags: Any) -> None:
        run("benchmarks.floor:app", **(flags | {"factory": False}))

    vars(uvicorn)["run"] = instead
    parts.api(port=port)


if __name__ == "__main__":
    main(int(sys.argv[1]))
