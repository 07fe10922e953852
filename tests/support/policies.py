"""Policies to draw from."""

from __future__ import annotations

from hypothesis import strategies as st

tools = st.sampled_from(["a", "b", "c"])
policies = st.fixed_dictionaries(
    {},
    optional={
        "allowed_tools": st.lists(tools, unique=True),
        "blocked_tools": st.lists(tools, unique=True, max_size=1),
        "max_actions_per_hour": st.integers(0, 6),
        "max_spend_usd_per_day": st.sampled_from([0.0, 0.1, 0.35, 1.0]),
        "max_calls_per_tool": st.dictionaries(tools, st.integers(0, 3)),
        "pricing_rules": st.lists(
            st.fixed_dictionaries({"tool": tools, "price_usd": st.sampled_from([0.0, 0.05, 0.0000015])}),
            max_size=2,
        ),
    },
)
