"""Secrets in text that is about to be logged, made unreadable."""

from __future__ import annotations

import re
from collections.abc import Iterable

HIDDEN = "***"
LEAST = 6
"""Shorter values are no secrets, and would be found in innocent words."""

_NAMES = r"[\w-]*(?:password|passwd|secret|secret_key|api[_-]?key|authorization)"
_COLOUR = r"(?:\x1b\[[\d;]*m)*"
_RULES = (
    # API keys of this system.
    (re.compile(r"once_live_[\w-]{4,}"), rf"once_live_{HIDDEN}"),
    (re.compile(r"(?i)\b((?:bearer|basic) +)[\w.~+/=-]{8,}"), rf"\1{HIDDEN}"),
    # The password of a URL.
    (re.compile(r"(\b[a-zA-Z][\w+.-]*://[^\s/:@\"']*:)[^\s\"'/?#]*@"), rf"\1{HIDDEN}@"),
    # 'password': '...', "secret": "...", also where the quotes are escaped, in JSON within JSON.
    (re.compile(rf"(?i)(\b{_NAMES}(\\*[\"'])\s*:\s*(\\*[\"'])).*?(?<!\\)\3"), rf"\1{HIDDEN}\3"),
    (
        re.compile(rf"(?i)(\b{_NAMES}{_COLOUR}\s*=\s*{_COLOUR})(?:\"[^\"]*\"|'[^']*'|[^\s,;&\"')\x1b]+)"),
        rf"\1{HIDDEN}",
    ),
    (re.compile(r"(?i)(\bauthorization\s*:\s*)(?:(?:bearer|basic)\s+)?[^\s\"',]+"), rf"\1{HIDDEN}"),
)


class Redactor:
    """Hides what looks like a secret, and the values that are known to be some."""

    def __init__(self, known: Iterable[str] = ()) -> None:
        values = sorted({value for value in known if len(value) >= LEAST}, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, values))) if values else None

    def __call__(self, text: str) -> str:
        if self._known is not None:
            text = self._known.sub(HIDDEN, text)
        for pattern, hidden in _RULES:
            text = pattern.sub(hidden, text)
        return text
