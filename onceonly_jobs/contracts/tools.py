"""/tools: the HTTP back-ends that agents may call."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

import httpx
from pydantic import AfterValidator, BaseModel, Field, model_validator

from onceonly_jobs.contracts.fields import Text, Wire, example
from onceonly_jobs.domain.plans import MIN_TTL_S

GLOBAL = "global"
AGENT = "agent:"

MAX_NAME = 128
MAX_SCOPE = len(AGENT) + 256
MAX_URL = 2048
MAX_DEDUP_TTL_S = 2_592_000

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", re.IGNORECASE)
_NUMERIC = re.compile(r"[0-9]+|0x[0-9a-f]*", re.IGNORECASE)
_UNPRINTABLE = re.compile(r"[\x00-\x20\x7f\\]")


def _reachable_name(name: str) -> str:
    """`.` and `..` never reach the server in a path: clients resolve them."""
    if name in (".", ".."):
        raise ValueError("must not be '.' or '..'")
    return name


def _scope(scope_id: str) -> str:
    if scope_id != GLOBAL and not (scope_id.startswith(AGENT) and scope_id.removeprefix(AGENT).strip()):
        raise ValueError("must be 'global' or 'agent:<agent_id>'")
    return scope_id


def _http_url(url: str) -> str:
    """The URL, if a request to it can be made and goes where it seems to go."""
    if _UNPRINTABLE.search(url):
        raise ValueError("must not contain spaces, backslashes or control characters")
    try:
        parsed = httpx.URL(url)
        userinfo = "@" in urlsplit(url).netloc
    except (httpx.InvalidURL, ValueError):
        raise ValueError("is not a URL") from None
    if parsed.scheme not in ("http", "https"):
        raise ValueError("must begin with http:// or https://")
    if userinfo:
        raise ValueError("must not contain a user name or password")
    if "#" in url:
        raise ValueError("must not contain a fragment")
    if parsed.port is not None and not 1 <= parsed.port <= 65_535:
        raise ValueError("has a port outside 1 to 65535")
    if not _possible_host(parsed.raw_host.decode("ascii")):
        raise ValueError("needs a host that can exist")
    return url


def _possible_host(host: str) -> bool:
    """Whether anything could ever be reached there. Who may be reached is decided when it is called."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        labels = host.removesuffix(".").split(".")
        # 127.1, 2130706433 and 0x7f.1 are no names: some resolvers read them as addresses in disguise.
        named = all(_LABEL.fullmatch(label) for label in labels) and not _NUMERIC.fullmatch(labels[-1])
        return named and len(host) <= 253
    return not (address.is_unspecified or address.is_multicast)


ToolName = Annotated[
    str,
    Field(min_length=1, max_length=MAX_NAME, pattern=r"^[a-zA-Z0-9_.:-]+$"),
    AfterValidator(_reachable_name),
]
ScopeId = Annotated[
    Text,
    Field(max_length=MAX_SCOPE, description="`global`, or `agent:<agent_id>`, which wins for that agent."),
    AfterValidator(_scope),
]
HttpUrl = Annotated[Text, Field(max_length=MAX_URL), AfterValidator(_http_url)]
EffectName = Literal["read", "idempotent", "reconcilable", "irreversible"]


ToolSecret = Annotated[
    Text,
    Field(
        min_length=8,
        max_length=1024,
        description="Signs each call. Never shown again; absent in an update: as it is.",
    ),
]


class ToolAuth(Wire):
    type: Literal["hmac_sha256"]
    secret: Annotated[ToolSecret | None, Field(repr=False)] = None


class ToolRequest(Wire):
    """A tool under (`name`, `scope_id`). What is absent or null stays as it is, or is the default of a new tool."""

    model_config = example(
        name="send_email",
        scope_id="global",
        url="https://api.example.com/v1/send-email",
        auth={"type": "hmac_sha256", "secret": "a-long-shared-secret"},
        timeout_ms=15000,
        max_retries=2,
    )

    name: ToolName
    scope_id: ScopeId = GLOBAL
    url: HttpUrl
    auth: ToolAuth
    timeout_ms: (
        Annotated[int, Field(ge=250, le=120_000, description="Per attempt; default 15000.")] | None
    ) = None
    max_retries: Annotated[int, Field(ge=0, le=10, description="Further attempts; default 2.")] | None = None
    enabled: Annotated[bool, Field(description="Default true.")] | None = None
    description: Annotated[Text, Field(max_length=512)] | None = None
    effect: (
        Annotated[
            EffectName,
            Field(description="What a second call would do; decides what is retried. Default `idempotent`."),
        ]
        | None
    ) = None
    confirm_url: (
        Annotated[
            HttpUrl,
            Field(description="Of a `reconcilable` tool, and only there: tells whether a call has happened."),
        ]
        | None
    ) = None
    dedup_ttl_s: (
        Annotated[
            int,
            Field(
                ge=MIN_TTL_S,
                le=MAX_DEDUP_TTL_S,
                description="How long a call answers its repeats, in seconds; at most the plan's longest `ttl`. "
                "Default: the plan's default `ttl`.",
            ),
        ]
        | None
    ) = None

    @model_validator(mode="after")
    def _confirmed_where_reconcilable(self) -> Self:
        if (self.effect == "reconcilable") != (self.confirm_url is not None):
            raise ValueError("effect 'reconcilable' needs a confirm_url, and no other effect has one")
        return self


class ToggleRequest(Wire):
    model_config = example(enabled=False)

    enabled: bool


class ToolAnswer(BaseModel):
    """A tool without its secret."""

    name: str
    scope_id: str
    url: str
    auth_type: Literal["hmac_sha256"]
    timeout_ms: int
    max_retries: int
    enabled: bool
    description: str | None
    effect: EffectName
    confirm_url: str | None
    dedup_ttl_s: int | None
    has_secret: Literal[True]
    secret_id: str
    secret_mask: str


class DeletedAnswer(BaseModel):
    ok: Literal[True]
    deleted: str
