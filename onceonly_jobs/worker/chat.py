"""A chat completion from an OpenAI-compatible endpoint, with its tokens and cost."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import httpx

from onceonly_jobs.worker.context import JobContext
from onceonly_jobs.worker.outcomes import Fail, Retry, printable

OPTIONS = "temperature top_p max_tokens max_completion_tokens seed stop response_format".split()
LONGEST_ANSWER_S = 600.0
LONGEST_WAIT_S = 300.0
TOKENS = ("prompt_tokens", "completion_tokens", "total_tokens")


@dataclass(frozen=True, slots=True)
class Llm:
    """Where the model is asked."""

    base_url: str
    api_key: str | None
    default_model: str


def ask(ctx: JobContext, llm: Llm) -> dict[str, Any]:
    """The model's answer as a result: text, finish_reason, model, usage, cost_usd."""
    given = {**ctx.metadata, **ctx.payload}
    body = request_body(given, llm.default_model)
    answer = _post(ctx, llm, body)
    result = as_result(answer, str(body["model"]), given.get("prices_usd_per_million"))
    ctx.log("model answered", model=result["model"], **result["usage"], cost_usd=result["cost_usd"])
    return result


def request_body(given: dict[str, Any], default_model: str) -> dict[str, Any]:
    """What is sent. Raises Fail when neither `messages` nor `prompt` says what to ask."""
    messages = given.get("messages")
    if messages is None and isinstance(given.get("prompt"), str):
        messages = [{"role": "user", "content": given["prompt"]}]
        if isinstance(given.get("system"), str):
            messages.insert(0, {"role": "system", "content": given["system"]})
    if not isinstance(messages, list) or not messages:
        raise Fail("bad_payload", "chat needs `prompt` (text) or `messages` (a list)")
    model = given.get("model")
    chosen = {name: given[name] for name in OPTIONS if name in given}
    return {"model": model if isinstance(model, str) else default_model, "messages": messages, **chosen}


def _post(ctx: JobContext, llm: Llm, body: dict[str, Any]) -> dict[str, Any]:
    """The endpoint's answer. Raises Retry for what may pass, Fail for what will not."""
    headers = {"Idempotency-Key": ctx.idempotency_key("chat")}
    if llm.api_key is not None:
        headers["Authorization"] = f"Bearer {llm.api_key}"
    timeout = httpx.Timeout(min(LONGEST_ANSWER_S, max(1.0, ctx.time_left_s)), connect=10)
    try:
        response = httpx.post(
            f"{llm.base_url.rstrip('/')}/chat/completions", json=body, headers=headers, timeout=timeout
        )
    except httpx.TransportError as error:
        raise Retry(message=f"the model's endpoint: {type(error).__name__}: {error}") from error
    if response.status_code in (408, 409, 429) or response.status_code >= 500:
        raise Retry(retry_after_s(response), f"the model's endpoint answered {response.status_code}")
    if not response.is_success:
        raise Fail("llm_error", f"{response.status_code}: {printable(response.text, 1000)}")
    try:
        answer = response.json()
    except ValueError:
        raise Fail("llm_error", "the model's endpoint answered no JSON") from None
    if not isinstance(answer, dict):
        raise Fail("llm_error", "the model's endpoint answered no JSON object")
    return answer


def retry_after_s(response: httpx.Response) -> float | None:
    """How long the other side wants to be left alone, where it says so in seconds."""
    try:
        return min(LONGEST_WAIT_S, max(0.0, float(response.headers.get("retry-after", ""))))
    except ValueError:
        return None


def as_result(answer: dict[str, Any], model: str, prices: Any) -> dict[str, Any]:
    """The answer as it is stored. Raises Fail when it has no choice in it."""
    try:
        choice = answer["choices"][0]
        message = choice["message"]
        text, finish_reason = message.get("content"), choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise Fail("llm_error", "the model's endpoint answered without a choice") from None
    used = answer.get("usage")
    usage = {
        name: used[name] for name in TOKENS if isinstance(used, dict) and isinstance(used.get(name), int)
    }
    result = {
        "text": text,
        "finish_reason": finish_reason,
        "model": answer.get("model") or model,
        "usage": usage,
        "cost_usd": cost_usd(usage, prices),
    }
    if message.get("tool_calls"):
        result["tool_calls"] = message["tool_calls"]
    return result


def cost_usd(usage: dict[str, int], prices: Any) -> float | None:
    """Tokens times `{"input": ..., "output": ...}` in dollars per million, to the micro-dollar; None if unknown."""
    if not isinstance(prices, dict) or not {"prompt_tokens", "completion_tokens"} <= usage.keys():
        return None
    try:
        per_input, per_output = Decimal(str(prices["input"])), Decimal(str(prices["output"]))
    except (KeyError, ArithmeticError):
        return None
    micro_usd = usage["prompt_tokens"] * per_input + usage["completion_tokens"] * per_output
    return float(micro_usd.quantize(Decimal(1), ROUND_HALF_UP) / 1_000_000)
