"""An agent without a guard: its process dies half-way, it is started again, and the customer pays twice."""

from collections.abc import Iterator

CHARGES: list[str] = []
EMAILS: list[str] = []


def scripted_llm(task: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Stands in for a language model: the tool calls that one would ask for, always the same ones."""
    yield "charge", {"order": task, "amount": "42.00"}
    yield "send_email", {"order": task, "text": "Thank you for your order"}


def call_tool(tool: str, args: dict[str, str]) -> None:
    (CHARGES if tool == "charge" else EMAILS).append(args["order"])
    print(f"  {tool}: done")


def run_agent(task: str, *, dies_after: str | None = None) -> None:
    for tool, args in scripted_llm(task):
        call_tool(tool, args)
        if tool == dies_after:  # stands for a crash, a lost connection, a deployment
            raise ConnectionError(f"the process died after {tool}")


print("First attempt")
try:
    run_agent("order-1", dies_after="charge")
except ConnectionError as error:
    print(f"  {error}")

print("Second attempt")
run_agent("order-1")

print(f"Charges made: {len(CHARGES)}, emails sent: {len(EMAILS)}")
print("❌ The customer was charged twice.")
