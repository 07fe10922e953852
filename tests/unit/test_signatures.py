"""Signatures, canonical arguments, effects and addresses: the rules of a tool call that need no network."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import time
from base64 import b64encode
from typing import Any

import pytest
import standardwebhooks
from hypothesis import given
from hypothesis import strategies as st

from onceonly_jobs.domain.addresses import METADATA, Allowed
from onceonly_jobs.domain.canonical import args_hash
from onceonly_jobs.domain.effects import Attempted, Effect, Reach, Verdict, should_retry, verdict
from onceonly_jobs.domain.signatures import BadSignature, sign, verify

SECRET = "supersecret_key"
BODY = b'{"args": {"to": "user@example.com"}}'
NOW = 1_705_322_400


# Signatures


def test_the_contract_s_headers_are_an_hmac_of_the_body_alone() -> None:
    signed = sign(SECRET, BODY, NOW, "msg_1")
    assert signed["x-onceonly-signature"] == hmac.new(SECRET.encode(), BODY, hashlib.sha256).hexdigest()
    assert signed["x-onceonly-signature-alg"] == "hmac_sha256"
    assert signed["x-onceonly-timestamp"] == "1705322400"


@given(secret=st.text(st.characters(codec="utf-8"), min_size=8), body=st.binary())
def test_a_standard_webhooks_library_accepts_the_signature(secret: str, body: bytes) -> None:
    """Libraries take `whsec_` and base64; ours is keyed with the secret's UTF-8 bytes."""
    library = standardwebhooks.Webhook("whsec_" + b64encode(secret.encode()).decode())
    document = json.dumps({"data": body.hex()}).encode()
    assert library.verify(document, sign(secret, document, int(time.time()), "msg_1")) is not None


def test_a_standard_webhooks_library_refuses_another_body_id_time_or_secret() -> None:
    library = standardwebhooks.Webhook("whsec_" + b64encode(SECRET.encode()).decode())
    now = int(time.time())
    good = sign(SECRET, BODY, now, "msg_1")
    library.verify(BODY, good)
    for body, headers in [
        (BODY + b" ", good),
        (BODY, {**good, "webhook-id": "msg_2"}),
        (BODY, {**good, "webhook-timestamp": str(now - 1)}),
        (BODY, sign(SECRET, BODY, now - 301, "msg_1")),
        (BODY, sign("another_secret", BODY, now, "msg_1")),
    ]:
        with pytest.raises(standardwebhooks.WebhookVerificationError):
            library.verify(body, headers)


@pytest.mark.parametrize("off_s", [-300, 0, 300])
def test_a_signed_request_is_verified_whatever_the_case_of_its_headers(off_s: int) -> None:
    headers = {name.upper(): value for name, value in sign(SECRET, BODY, NOW + off_s, "msg_1").items()}
    verify(SECRET, BODY, headers, NOW)


@pytest.mark.parametrize("name", sorted(sign(SECRET, BODY, NOW, "msg_1")))
@pytest.mark.parametrize("value", [None, "", "x", "é\udcff", "-1", "1705322401", "٣", "²", "9" * 400])
def test_no_header_of_a_signed_request_can_be_missing_or_changed(name: str, value: str | None) -> None:
    headers = sign(SECRET, BODY, NOW, "msg_1")
    changed = (
        {**headers, name: value} if value is not None else {k: v for k, v in headers.items() if k != name}
    )
    with pytest.raises(BadSignature):
        verify(SECRET, BODY, changed, NOW)


@pytest.mark.parametrize("now", [NOW - 301, NOW + 301])
def test_an_old_or_early_request_is_refused(now: int) -> None:
    with pytest.raises(BadSignature, match="more than 300 s off"):
        verify(SECRET, BODY, sign(SECRET, BODY, NOW, "msg_1"), now)


def test_another_body_or_secret_is_refused() -> None:
    for secret, body in [(SECRET, BODY + b" "), (SECRET + "x", BODY)]:
        with pytest.raises(BadSignature, match="x-onceonly-signature: "):
            verify(secret, body, sign(SECRET, BODY, NOW, "msg_1"), NOW)


@pytest.mark.parametrize("message_id", ["", "a b", "a\r\nX-Admin: 1", "ключ"])
def test_a_message_id_can_t_smuggle_headers(message_id: str) -> None:
    with pytest.raises(ValueError, match="visible ASCII"):
        sign(SECRET, BODY, NOW, message_id)


# Canonical arguments


def test_the_args_hash_is_that_of_the_rfc_s_own_example() -> None:
    """RFC 8785, 3.2.2 and 3.2.3: numbers, escapes, and keys in the order of UTF-16."""
    args = json.loads(
        r"""{"numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
             "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
             "literals": [null, true, false]}"""
    )
    canonical = (
        '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )
    assert args_hash(args) == hashlib.sha256(canonical.encode()).hexdigest()


def test_keys_are_sorted_by_utf_16_and_not_by_code_point() -> None:
    canonical = '{"\U0001f600":1,"\ufb33":2}'
    assert args_hash({"\ufb33": 2, "\U0001f600": 1}) == hashlib.sha256(canonical.encode()).hexdigest()


@pytest.mark.parametrize(
    ("one", "other"), [(1, 1.0), (0, -0.0), (100, 1e2), ({"a": 1, "b": 2}, {"b": 2, "a": 1})]
)
def test_equal_json_has_equal_hashes(one: Any, other: Any) -> None:
    assert args_hash({"x": one}) == args_hash({"x": other})


@pytest.mark.parametrize(
    ("one", "other"), [(1, "1"), (1, True), (None, {}), (2**53 - 1, 2**53 - 2), ("é", "e\u0301")]
)
def test_different_json_has_different_hashes(one: Any, other: Any) -> None:
    assert args_hash({"x": one}) != args_hash({"x": other})


@pytest.mark.parametrize("value", [2**53, -(2**53), 2**63 - 1])
def test_an_integer_that_a_double_can_t_hold_is_refused_with_advice(value: int) -> None:
    """Rounded, two account numbers would be one, and the second call a repeat of the first."""
    with pytest.raises(ValueError, match="send it as a string"):
        args_hash({"account": [value]})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800", "\x00", {1: 2}, b"", 2**64])
def test_what_is_not_json_has_no_hash(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^(?!.*send it as a string)"):
        args_hash({"x": value})


def test_arguments_nested_without_end_have_no_hash() -> None:
    args: dict[str, Any] = {}
    for _ in range(5000):
        args = {"x": args}
    with pytest.raises(ValueError, match="nested deeper"):
        args_hash(args)


# Effects

FORBIDDEN, NOT_SENT, LOST = (Attempted(r) for r in (Reach.FORBIDDEN, Reach.NOT_SENT, Reach.UNKNOWN))


def answered(code: int) -> Attempted:
    return Attempted(Reach.ANSWERED, code)


E, F, U = Verdict.EXECUTED, Verdict.FORGOTTEN, Verdict.UNKNOWN

# what happened: (retried, verdict) for read and idempotent, then for reconcilable and irreversible
RULES: list[tuple[Attempted, tuple[bool, Verdict], tuple[bool, Verdict]]] = [
    (FORBIDDEN, (False, F), (False, F)),
    (NOT_SENT, (True, F), (True, F)),
    (LOST, (True, F), (False, U)),
    (answered(101), (False, F), (False, U)),
    (answered(200), (False, E), (False, E)),
    (answered(204), (False, E), (False, E)),
    (answered(299), (False, E), (False, E)),
    (answered(300), (False, F), (False, U)),
    (answered(303), (False, F), (False, U)),
    (answered(399), (False, F), (False, U)),
    (answered(400), (False, F), (False, F)),
    (answered(408), (False, F), (False, F)),
    (answered(409), (False, F), (False, F)),
    (answered(428), (False, F), (False, F)),
    (answered(429), (True, F), (False, F)),
    (answered(430), (False, F), (False, F)),
    (answered(499), (False, F), (False, F)),
    (answered(500), (True, F), (False, U)),
    (answered(503), (True, F), (False, U)),
    (answered(599), (True, F), (False, U)),
]


@pytest.mark.parametrize(
    ("attempted", "repeatable", "single"), RULES, ids=[str(rule[0].status or rule[0].reach) for rule in RULES]
)
def test_what_a_retry_may_do_and_what_a_call_comes_to(
    attempted: Attempted, repeatable: tuple[bool, Verdict], single: tuple[bool, Verdict]
) -> None:
    for effect in Effect:
        expected = repeatable if effect in (Effect.READ, Effect.IDEMPOTENT) else single
        assert (should_retry(effect, attempted), verdict(effect, attempted)) == expected, effect


@pytest.mark.parametrize("effect", [Effect.RECONCILABLE, Effect.IRREVERSIBLE])
def test_what_was_sent_is_never_sent_again_where_that_could_do_harm(effect: Effect) -> None:
    for code in range(100, 600):
        assert not should_retry(effect, answered(code))
        assert answered(code).sent
    assert LOST.sent
    assert not should_retry(effect, LOST)
    assert not NOT_SENT.sent
    assert not FORBIDDEN.sent


@pytest.mark.parametrize(
    ("reach", "code"), [(Reach.ANSWERED, None), (Reach.UNKNOWN, 200), (Reach.NOT_SENT, 500)]
)
def test_a_status_comes_with_an_answer_and_only_then(reach: Reach, code: int | None) -> None:
    with pytest.raises(ValueError, match="an answer has a status"):
        Attempted(reach, code)


# Addresses

LOOPBACK = ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"]
PRIVATE = ["10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "fd12::1", "::ffff:10.0.0.1"]
CREDENTIALS = [
    "169.254.169.254",
    "169.254.170.2",
    "::ffff:169.254.169.254",
    "fd00:ec2::254",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
]
NEVER = [
    "0.0.0.0",
    "::",
    "224.0.0.1",
    "ff02::1",
    "240.0.0.1",
    "255.255.255.255",
    "198.18.0.1",
    "fe80::1",
    "fec0::1",
    "::127.0.0.1",
    "2001:db8::1",
    "64:ff9b::127.0.0.1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "2002:7f00:1::1",
    "2002:a00:1::1",
    "2001:0:4136:e378:8000:63bf:80ff:fffe",
]
PUBLIC = [
    "8.8.8.8",
    "1.1.1.1",
    "2606:4700:4700::1111",
    "64:ff9b::8.8.8.8",
    "2002:808:808::1",
    "::ffff:8.8.8.8",
]


@pytest.mark.parametrize(
    ("text", "opened"),
    [
        ("", []),
        ("loopback", LOOPBACK),
        ("private", PRIVATE),
        (" loopback , private,", LOOPBACK + PRIVATE),
        ("127.8.0.0/16", ["127.8.8.8"]),
        ("10.0.0.1", ["10.0.0.1", "::ffff:10.0.0.1"]),
        ("169.254.169.254/32", ["169.254.169.254", "::ffff:169.254.169.254"]),
        ("private,100.100.100.0/24", [*PRIVATE, "100.100.100.200"]),
    ],
)
def test_only_public_addresses_and_those_that_were_opened_may_be_reached(
    text: str, opened: list[str]
) -> None:
    allowed = Allowed.parse(text)
    permitted = [
        address
        for address in LOOPBACK + PRIVATE + CREDENTIALS + NEVER + PUBLIC
        if allowed.permits(ipaddress.ip_address(address))
    ]
    assert sorted(permitted) == sorted(opened + PUBLIC)


@pytest.mark.parametrize("text", ["localhost", "loopback,10.0.0.1/8", "10.0.0.0/33", "*", "Loopback"])
def test_a_setting_that_opens_nothing_known_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not `loopback`, `private` or a network"):
        Allowed.parse(text)


def test_no_word_opens_where_clouds_hand_out_credentials() -> None:
    both = Allowed.parse("loopback,private")
    for network in METADATA:
        assert not both.permits(ipaddress.ip_network(network)[0])
