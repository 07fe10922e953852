"""The jobs of this deployment. Each becomes a Celery task of its name."""

from __future__ import annotations

from typing import Any

from onceonly_jobs import Fail, JobContext, job, tool


@job("word_count", max_attempts=5, time_limit_s=60)
def word_count(ctx: JobContext) -> dict[str, Any]:
    """Counts the words of `payload.text`."""
    text = ctx.payload.get("text")
    if not isinstance(text, str):
        raise Fail("bad_payload", "payload.text must be a string")
    words = text.split()
    return {"words": len(words), "distinct": len(set(words))}


@job("daily_report", match="report:daily:*", time_limit_s=300)
def daily_report(ctx: JobContext) -> dict[str, Any]:
    """Builds the report of one day; keys like `report:daily:2026-01-31` find it by themselves."""
    day = ctx.key.removeprefix("report:daily:")
    sections = ["orders", "refunds", "signups"]
    for done, section in enumerate(sections):
        ctx.check()  # stop here if the run was cancelled meanwhile
        ctx.progress(done / len(sections), f"collecting {section}")
        # A service called here takes ctx.idempotency_key(section): a second attempt then repeats nothing.
    ctx.log("report built", day=day, sections=len(sections))
    return {"day": day, "sections": sections}


@tool("convert_currency", effect="read")
def convert_currency(amount: float, rate: float) -> dict[str, float]:
    """A tool that agents call by `POST /v1/ai/run`, as far as their policy lets them."""
    return {"amount": round(amount * rate, 2)}
