"""Every example is run as a user runs it, and prints what it promises."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest
from support.sdk_tenants import NewTenant, Tenant, make_tenant
from typer.testing import CliRunner

from onceonly_jobs.cli import examples
from onceonly_jobs.cli.main import build
from onceonly_jobs.local.subprocess_system import LocalSystem
from onceonly_jobs.store.database import Database

ROOT = Path(__file__).parents[2]
AT_ONCE = 4
"""Examples wait more than they compute."""

COMMAND = "examples run tool_permissions"
Done = subprocess.CompletedProcess[str]
Run = Callable[..., Done]

# What is printed, line by line. … stands for what differs from run to run, a star at the end of a line for any
# number of such lines, none included.
EXPECTED = {
    "quickstart": """
✅ First call: locked=True, duplicate=False
❌ Second call: locked=False, duplicate=True
✨ Idempotency working!
""",
    "general/basic_check_lock": """
Attempt 1: shipped
Attempt 2: not shipped: done already at …Z
Attempt 3: not shipped: done already at …Z
Invoice: acquired=True
""",
    "general/webhook_dedup": """
Handling payment evt_…
Delivery 1: {'status': 'processed'}
Delivery 2: {'status': 'already_processed'}
Delivery 3: {'status': 'already_processed'}
""",
    "general/with_ttl": """
Asked for 3600 s: ttl=3600
Asked for 1 s: ttl=10, the least there is
Not asked for any: ttl=86400, ONCEONLY_TTL or the plan's default
First call: locked=True
A repeat: duplicate=True
""",
    "general/with_metadata": """
locked=True, metadata={'user_id': 123, 'amount_cents': 9999, 'source': 'api', 'trace_id': 'abc-123'}
duplicate=True, first seen at …Z
The run was given: {'task': 'echo', 'trace_id': 'abc-123'}
""",
    "general/fail_open_demo": """
fail_open=True: locked=True, failed_open=True, request_error
fail_open=False: Unreachable, so nothing was done
ai.run: Unreachable
""",
    "general/usage_stats": """
Plan: agency, key once_live_...…
make: 0 of 2000000 duplicates blocked in …, 2000000 left
make: 0 requests, 0 refused
ai: 0 of 10000000 runs and leases started in …, 10000000 left
ai: 0 requests, 0 refused
One kind alone: 0
""",
    "general/decorator_basic": """
Sending to user_…
First call: completed, {'sent': True}
Second call: completed, {'sent': True}, not sent again
""",
    "general/decorator_sync": """
First call: warehouse told of 3 items
Repeat: None
Other arguments: warehouse told of 4 items
Adding up
Four callers at once: [4250, 4250, 4250, 4250]
""",
    "general/decorator_async": """
Asking the weather service about Lviv
Five callers got: {'high': 21, 'low': 12}, all the same: True
First subscription: subscribed
Repeat: None
""",
    "general/decorator_pydantic": """
Making the invoice
First call: Invoice(number='INV-1', total=Decimal('14.40'))
Repeat: Invoice(number='INV-1', total=Decimal('14.40'))
Archive: archived
An equal model: None
Another amount: archived
""",
    "ai/ai_simple": """
{'day': '2024-01-27', 'totals': …}
Asked again: completed, charged=0, same result: True
""",
    "ai/run_and_wait": """
Statuses: ['completed', 'completed', 'completed', 'completed', 'completed']
All the same: True
Executions: 1
No patience: failed, timeout
Later: {'text': 'ready'}
""",
    "ai/agent_action_local": """
Charging the card
First attempt: completed, {'charged_cents': 4200}
Second attempt: completed, {'charged_cents': 4200}
First refund: the bank is closed
Second refund: failed, bank_closed
Receipt: {'receipt': 'R-1'}
""",
    "ai/poll_status": """
Asked for: acquired, charged=1
Poll …: in_progress*
Poll …: completed
Finished at …Z
Long poll: completed
""",
    "ai/get_result": """
completed at …Z: {'task': 'echo', 'question': '6 * 7'}
Hash of the result: …
HTTP 404, not_found
""",
    "ai/agent_full_flow_no_onceonly": """
First attempt
  charge: done
  the process died after charge
Second attempt
  charge: done
  send_email: done
Charges made: 2, emails sent: 1
❌ The customer was charged twice.
""",
    "ai/agent_full_flow_onceonly": """
First attempt
  charge: executed, within_budget
  the process died after charge
Second attempt
  charge: dedup, tool_idempotency
  send_email: executed, within_budget
  delete_user: blocked, tool_not_allowed
Charges made: 1, emails sent: 1, others: 0
Booked: $0.02 for 2 calls, 1 refused
✅ The customer was charged once.
""",
    "ai/governance": """
Setting policy...
Metrics: AgentMetrics(agent_id='billing-agent-…', period='day', total_actions=15, blocked_actions=0, \
total_spend_usd=7.5, top_tools=[{'tool': 'stripe.charge', 'count': 15}])
Disabling agent...
Re-enabling agent...
Logs count: 15
First 3: [AgentLogItem(ts=…, agent_id='billing-agent-…', tool='stripe.charge', allowed=True, decision='executed', \
policy_reason='within_budget', …), \
AgentLogItem(…), AgentLogItem(…)]
""",
    "ai/tool_permissions": """
Setting tool permission policy...
Policy applied.
This agent can:
✓ send_email
✓ stripe.refund
This agent CANNOT call:
✗ stripe.charge
✗ delete_user
If the agent tries to call a blocked tool via `ai.run_tool`, you'll get `allowed=False` with a `policy_reason`.
Executed: send_email, {'done': 'send_email', 'number': 1}
Blocked: delete_user, tool_not_allowed
Blocked: export_data, tool_not_allowed
The tools were called 1 time
""",
    "ai/budget_limits": """
Setting strict budget policy...
Policy set.
Metrics: AgentMetrics(agent_id='support-bot-…', period='day', total_actions=0, blocked_actions=0, \
total_spend_usd=0.0, …)
Attempting to exceed limits (simulate)...
When limits are exceeded, API will return OverLimitError or 402.
Email 1: executed
An email for $1.50: HTTP 402, OverLimitError: Daily spend limit exceeded ($1.00)
Email 2: executed
Email 3: HTTP 402, OverLimitError: Tool call limit exceeded (send_email: 2/day)
Email …: executed*
Email …: HTTP 402, OverLimitError: Hourly action limit exceeded (5/hour)
In the end: … executed, 3 refused, $… spent
""",
    "ai/policy_templates": """
strict
  max_actions_per_hour: 10
  max_spend_usd_per_day: 0.5
  allowed_tools: []
moderate
  max_actions_per_hour: 200
  max_spend_usd_per_day: 50.0
  blocked_tools: ['delete_user', 'stripe.charge']
permissive
  max_actions_per_hour: 1000
  max_spend_usd_per_day: 500.0
read_only
  max_actions_per_hour: 500
  allowed_tools: ['get_user', 'search', 'list_items']
support_bot
  max_actions_per_hour: 150
  max_spend_usd_per_day: 50.0
  allowed_tools: ['send_email', …]
  blocked_tools: ['delete_customer', …]
moderate, with a smaller budget
  max_actions_per_hour: 200
  max_spend_usd_per_day: 5.0
  blocked_tools: ['delete_user', 'stripe.charge']
In force: the last one: True
""",
    "ai/kill_switch": """
Call 1: allowed=True, within_budget
Call 2: allowed=True, within_budget
Disabled: enabled=False, Unusual spending pattern detected
Call 3: allowed=False, agent_disabled
Call 2: allowed=False, agent_disabled
⚠️ High cost: pay - $12.0
Enabled: enabled=True
Call 3: allowed=True, within_budget
Payments made: 3
""",
    "ai/audit_logs": """
refused: Daily spend limit exceeded ($5.00)
stripe.charge: executed - within_budget, risk medium, $2.0
stripe.charge: dedup - tool_idempotency, risk medium, $0.0
delete_user: blocked - tool_not_allowed, risk high, $0.0
stripe.charge: blocked - daily_spend_exceeded, risk medium, $0.0
send_receipt: executed - within_budget, risk low, $0.01
By decision: {'executed': 2, 'dedup': 1, 'blocked': 2}
Blocked: ['stripe.charge', 'delete_user']
Charges that were let through, by their arguments: 1
""",
    "ai/metrics_monitoring": """
$0.21 of $1.00 spent (21%)
$0.42 of $1.00 spent (42%)
$0.63 of $1.00 spent (63%)
$0.84 of $1.00 spent (84%)  <- ALERT
Too late: Daily spend limit exceeded ($1.00)
hour: … actions, … refused
day: 4 actions, 1 refused
week: 4 actions, 1 refused
Top tools: [{'tool': 'search', 'count': 3}, {'tool': 'summarize', 'count': 1}]
The account's last day with traffic: 5 requests for AI work
""",
    "ai/langchain_integration": """
Tool: send_email, arguments: ['subject', 'to']
call_1: Sent to user@example.com
call_2: send_email: skipped, this was asked for before with the same input.
Another input: Sent to someone@example.com
Emails sent: 2
""",
    "ai/langchain_tool_ai_lease": """
First call: {'booking': 'B-1', 'guest': 'Ann'}
Repeat: {'booking': 'B-1', 'guest': 'Ann'}
Refund: refunded $10.00
A larger one: refunded $10.00
Calls made: ['book_room', 'refund']
""",
    "jobs/enqueue_from_app": """
Click 1: charged=True
Click 2: charged=False
Click 3: charged=False
completed: 2024-01-27: make: 0 used in 0 requests (0 blocked); ai: 0 used in 0 requests (0 blocked)
In the app: completed
In an hour: polling
Taken back: cancelled
""",
    "jobs/transactional_enqueue": """
Order A: the card was refused
Order B: bought
Orders stored: 1
Invoice A: was never asked for
Invoice B: completed
""",
    "jobs/run_debug_timeline": """
7 events
note: started The user clicked on Buy
run_queued: queued
run_started: started … ms
run_finished: completed … ms
run_started: started
run_finished: completed … ms
note: ok 12 ms The page was shown
Live: onceonly-jobs runs tail, or GET /v1/runs/{run_id}/stream
""",
    "jobs/scheduled_report": """
Scheduled: daily_summary at 06:00 in Kyiv, Monday to Friday
Next: …T06:00:00+0…:00, as the run cron:<name>:…Z
Next: …T06:00:00+0…:00, as the run cron:<name>:…Z
Next: …T06:00:00+0…:00, as the run cron:<name>:…Z
Trigger 1: charged=1
Trigger 2: charged=0
By hand: completed
Backfill 1: 5 new runs for 5 ticks
Backfill 2: 0 new runs for 5 ticks
History: ['fired', 'fired', 'fired', 'fired', 'fired', 'fired']
Paused: paused
Deleted
""",
}


def pattern(expected: str) -> str:
    lines = []
    for line in expected.strip("\n").split("\n"):
        any_number = line.endswith("*")
        text = ".*".join(re.escape(part) for part in line.removesuffix("*").split("…"))
        lines.append(f"(?:{text}\n)*" if any_number else f"{text}\n")
    return "".join(lines)


def check(done: Done, expected: str) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.fullmatch(pattern(expected), done.stdout), f"expected:\n{expected}\nfound:\n{done.stdout}"


@pytest.fixture(scope="session")
def run(system: LocalSystem, accounts: Database) -> Run:
    """Runs an example with what a user has set, as a tenant of its own."""

    def run_it(name: str, tenant: Tenant | None = None, **env: str) -> Done:
        own = {
            "ONCEONLY_BASE_URL": system.base_url,
            "ONCEONLY_API_KEY": (tenant or make_tenant(accounts)).api_key,
            "ONCEONLY_DATABASE_URL": system.database_url,
            "ONCEONLY_BROKER_URL": system.broker_url,
            "PYTHONIOENCODING": "utf-8",
        }
        given = {name: value for name, value in os.environ.items() if not name.startswith("ONCEONLY_")}
        path = [str(ROOT), env.pop("PYTHONPATH", ""), given.get("PYTHONPATH", "")]
        return subprocess.run(
            [sys.executable, f"examples/{name}.py"],
            cwd=ROOT,
            env={**given, **own, **env, "PYTHONPATH": os.pathsep.join(filter(None, path))},
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )

    return run_it


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield pool
        pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="module")
def running(
    run: Run, pool: ThreadPoolExecutor, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Future[Done]]:
    """All of them at once, as far as the machine goes, and the command that runs one."""
    command = pool.submit(run_command, tmp_path_factory.mktemp("elsewhere"))
    return {COMMAND: command, **{name: pool.submit(run, name) for name in EXPECTED}}


def run_command(folder: Path) -> Done:
    return subprocess.run(
        [sys.executable, "-m", "onceonly_jobs.cli.main", *COMMAND.split()],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", EXPECTED)
def test_an_example_prints_what_it_promises(name: str, running: dict[str, Future[Done]]) -> None:
    check(running[name].result(), EXPECTED[name])


def test_failing_open_is_said(running: dict[str, Future[Done]]) -> None:
    assert "the caller goes on unguarded" in running["general/fail_open_demo"].result().stderr


def test_examples_can_be_repeated_with_an_agent_of_the_users(
    run: Run, pool: ThreadPoolExecutor, new_tenant: NewTenant
) -> None:
    """What the first run has used up is used up, and what it has stored is there."""

    def twice(name: str) -> list[Done]:
        tenant = new_tenant()
        return [run(name, tenant, ONCEONLY_AGENT_ID="dev-agent") for _ in range(2)]

    names = ["ai/ai_simple", "ai/governance", "ai/budget_limits", "ai/metrics_monitoring"]
    for name, (first, second) in zip(names, pool.map(twice, names), strict=True):
        assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
        if name in ("ai/ai_simple", "ai/governance"):
            assert second.stdout == first.stdout


def test_a_ttl_of_the_environment_counts(run: Run) -> None:
    done = run("general/with_ttl", ONCEONLY_TTL="7200")
    assert "Not asked for any: ttl=7200" in done.stdout


def test_without_langchain_its_examples_say_what_to_install(run: Run, tmp_path: Path) -> None:
    (tmp_path / "langchain_core.py").write_text("raise ModuleNotFoundError(name='langchain_core')")
    done = run("ai/langchain_integration", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == "This example needs LangChain: pip install langchain-core\n"


def test_every_example_is_tested_and_told_of() -> None:
    names = {f"{one.folder}/{one.name}".removeprefix("/") for one in examples.in_learning_order()}
    assert names == set(EXPECTED)
    readme = (ROOT / "examples/README.md").read_text(encoding="utf-8")
    places = [readme.index(f"({name}.py)") for name in names]
    assert len(places) == len(names)
    steps = re.findall(r"^\d\. \[`(\w+)\.py`\]", readme, flags=re.MULTILINE)
    assert tuple(steps) == examples.FIRST


def test_the_command_runs_an_example_against_a_system_of_its_own(running: dict[str, Future[Done]]) -> None:
    done = running[COMMAND].result()
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(pattern(EXPECTED["ai/tool_permissions"]), done.stdout)


def test_the_command_fails_when_an_example_does(
    system: LocalSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*examples.FIRST, "other"):
        (tmp_path / f"{name}.py").write_text(f'"""{name}."""\nraise SystemExit({int(name == "governance")})')
    monkeypatch.setattr(examples, "examples_path", lambda: tmp_path)
    monkeypatch.setattr(examples, "LocalSystem", lambda **_: nullcontext(system))
    done = CliRunner().invoke(build(["examples"]), ["examples", "run"])
    assert done.exit_code == 1
    assert done.output.endswith("\nFailed: governance\n")
    assert re.findall(r"── (\w+):", done.output) == [*examples.FIRST, "other"]
    assert CliRunner().invoke(build(["examples"]), ["examples", "run", "other"]).exit_code == 0
