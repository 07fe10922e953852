"""`client.gov`: policies, tools, the kill switch and the audit trail."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from onceonly_jobs.client import governed
from onceonly_jobs.client.models import AgentLogItem, AgentMetrics, AgentStatus, Period, Policy
from onceonly_jobs.client.wire import Json

if TYPE_CHECKING:
    from onceonly_jobs.client.transport import Driver

Decision = Literal["executed", "blocked", "dedup", "dry_run", "replayed"]


class GovernanceClient:
    """What agents may do, what they did, and the switch that stops them.

    Each method has a twin `..._async`. Where agent_id is left out, the client's own is meant.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._ctx = driver.context

    # Policies

    def upsert_policy(self, policy: Json, *, agent_id: str | None = None) -> Policy:
        """Set limits and permissions. What is left out keeps its value; None clears it."""
        return self._driver.run(governed.upsert_policy(self._ctx, policy, agent_id))

    async def upsert_policy_async(self, policy: Json, *, agent_id: str | None = None) -> Policy:
        return await self._driver.arun(governed.upsert_policy(self._ctx, policy, agent_id))

    def policy_from_template(self, agent_id: str, template: str, overrides: Json | None = None) -> Policy:
        """Replace the policy by strict, moderate, permissive, read_only or support_bot, with these changes."""
        return self._driver.run(governed.policy_from_template(self._ctx, agent_id, template, overrides))

    async def policy_from_template_async(
        self, agent_id: str, template: str, overrides: Json | None = None
    ) -> Policy:
        return await self._driver.arun(
            governed.policy_from_template(self._ctx, agent_id, template, overrides)
        )

    def list_policies(self) -> list[Policy]:
        return self._driver.run(governed.list_policies(self._ctx))

    async def list_policies_async(self) -> list[Policy]:
        return await self._driver.arun(governed.list_policies(self._ctx))

    def get_policy(self, agent_id: str | None = None) -> Policy:
        return self._driver.run(governed.get_policy(self._ctx, agent_id))

    async def get_policy_async(self, agent_id: str | None = None) -> Policy:
        return await self._driver.arun(governed.get_policy(self._ctx, agent_id))

    # Tools

    def create_tool(self, tool: Json) -> Json:
        """Register a tool, or change it."""
        return self._driver.run(governed.create_tool(self._ctx, tool))

    async def create_tool_async(self, tool: Json) -> Json:
        return await self._driver.arun(governed.create_tool(self._ctx, tool))

    def list_tools(self, scope_id: str = "global") -> list[Json]:
        return self._driver.run(governed.list_tools(self._ctx, scope_id))

    async def list_tools_async(self, scope_id: str = "global") -> list[Json]:
        return await self._driver.arun(governed.list_tools(self._ctx, scope_id))

    def get_tool(self, name: str, scope_id: str = "global") -> Json:
        return self._driver.run(governed.on_tool(self._ctx, "GET", name, scope_id))

    async def get_tool_async(self, name: str, scope_id: str = "global") -> Json:
        return await self._driver.arun(governed.on_tool(self._ctx, "GET", name, scope_id))

    def toggle_tool(self, name: str, *, enabled: bool, scope_id: str = "global") -> Json:
        return self._driver.run(governed.toggle_tool(self._ctx, name, enabled, scope_id))

    async def toggle_tool_async(self, name: str, *, enabled: bool, scope_id: str = "global") -> Json:
        return await self._driver.arun(governed.toggle_tool(self._ctx, name, enabled, scope_id))

    def delete_tool(self, name: str, scope_id: str = "global") -> Json:
        return self._driver.run(governed.on_tool(self._ctx, "DELETE", name, scope_id))

    async def delete_tool_async(self, name: str, scope_id: str = "global") -> Json:
        return await self._driver.arun(governed.on_tool(self._ctx, "DELETE", name, scope_id))

    # Kill switch

    def disable_agent(self, agent_id: str | None = None, reason: str = "") -> AgentStatus:
        """Refuse every governed call of the agent from now on, and stop what the server runs for it."""
        return self._driver.run(governed.switch(self._ctx, agent_id, "disable", reason))

    async def disable_agent_async(self, agent_id: str | None = None, reason: str = "") -> AgentStatus:
        return await self._driver.arun(governed.switch(self._ctx, agent_id, "disable", reason))

    def enable_agent(self, agent_id: str | None = None, reason: str = "") -> AgentStatus:
        return self._driver.run(governed.switch(self._ctx, agent_id, "enable", reason))

    async def enable_agent_async(self, agent_id: str | None = None, reason: str = "") -> AgentStatus:
        return await self._driver.arun(governed.switch(self._ctx, agent_id, "enable", reason))

    # Audit trail and metrics

    def agent_logs(
        self,
        agent_id: str | None = None,
        limit: int = 100,
        *,
        offset: int | None = None,
        decision: Decision | None = None,
        tool: str | None = None,
        since: int | None = None,
        until: int | None = None,
    ) -> list[AgentLogItem]:
        """The agent's latest decisions, newest first. since, until: Unix seconds."""
        filters = {"offset": offset, "decision": decision, "tool": tool, "since": since, "until": until}
        return self._driver.run(governed.agent_logs(self._ctx, agent_id, limit, **filters))

    async def agent_logs_async(
        self,
        agent_id: str | None = None,
        limit: int = 100,
        *,
        offset: int | None = None,
        decision: Decision | None = None,
        tool: str | None = None,
        since: int | None = None,
        until: int | None = None,
    ) -> list[AgentLogItem]:
        filters = {"offset": offset, "decision": decision, "tool": tool, "since": since, "until": until}
        return await self._driver.arun(governed.agent_logs(self._ctx, agent_id, limit, **filters))

    def agent_metrics(self, agent_id: str | None = None, period: Period = "day") -> AgentMetrics:
        return self._driver.run(governed.agent_metrics(self._ctx, agent_id, period))

    async def agent_metrics_async(self, agent_id: str | None = None, period: Period = "day") -> AgentMetrics:
        return await self._driver.arun(governed.agent_metrics(self._ctx, agent_id, period))
