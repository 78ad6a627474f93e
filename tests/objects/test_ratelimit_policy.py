"""The admission policy and the parser say the same about each text.

packaging/kubernetes/ratelimit-policy.yaml says in CEL what objects/ratelimit.py says in Python.
These tests evaluate the file's own expressions, so a change of one side alone fails here.
"""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nftsync.objects.ratelimit import EXAMPLES, TIME_UNITS, suggestion
from nftsync.objects.service import EGRESS_ANNOTATION, RATELIMIT_ANNOTATION
from tests.objects.test_ratelimit import ACCEPTED, REFUSED, SUGGESTED, near_misses, others, spelt
from tests.ratelimitpolicy import POLICY, judged, parsers, service

# CEL cannot say these as the parser does: it has no numbers of characters. It refuses the same texts.
UNTOLD = re.compile(
    r"[^ -~\t\n\r]"  # '?' stands for another character
    r"|'"  # Python puts " around such a text
)
# The policy has no suggestion where a product could exceed 64 bits, nor for more than three decimals.
UNSUGGESTED = re.compile(
    r"[0-9]{13}|[0-9]{10}[0-9.]*\s*m|[0-9]{7}[0-9.]*\s*g|[0-9]{4}[0-9.]*\s*t|[.][0-9]{4}"
    r"|\v",  # it is no blank to RE2
    re.IGNORECASE,
)


def check(text: str) -> None:
    told, expected = judged(service({RATELIMIT_ANNOTATION: text})), parsers(text)
    assert bool(told) == bool(expected), f"{text!r}: the policy says {told!r}, the parser {expected!r}"
    assert told.isprintable()
    fault, remedy = told.rpartition(";")[::2]
    parsers_fault, parsers_remedy = expected.rpartition(";")[::2]
    if remedy != parsers_remedy:
        assert UNSUGGESTED.search(text)
        assert (remedy, parsers_remedy) == (f" {EXAMPLES}", f" write '{suggestion(text)}'")
    if not UNTOLD.search(text):
        assert fault == parsers_fault


WRITTEN = [
    "102399 B/s", "102400 B/s", "102500 B/s", "103500 B/s", "0.001 tb/s", "2 Tibit/day", "1 Gibit", "3 kibit",
    "9 mibyte",
    "10 mbit/s burst 1 mbit", "10 Mbit/s", "10 mBIT/S", "10 MB/s BURST 5 kb", "5 packetburst 5", "5 bburst 5",
    "5burst 5/s", "5 kpburst 3", "10 tb", "1 ti", "3 bits burst 1", "10 kbit burst 3", "8 bytes burst 2 bit",
    "1 gibyte", "1kbyte/wee", "12345678901 k", "999999999999 b/s", "1000000000000 b/s", "9999 tbit",
    "140 gbit/s", "1.0625 mbit", "0.001 kb", "0.5/s", "007 mbit/s", "5 per second", "5 persecond",
    "5 p er second", "5 per s burst 0", "0.1 pps", "1 b/s", "5 ps", "9 kps", "1 mbit/h", "10 mbit/w",
    "30500 B/week", "30501 bytes/week", "30 kbytes/w", "2 MB/s burst 4096 mbytes", "4 tb burst 4 tb",
    "2 gbytes/second burst 4 gbytes", "1/s burst 5000000000", "2 mbytes/second burst 1 gbytes", "1 kbit\v/s",
    "1 kbit\f/s", "2 mbytes/second burst 1 burst", "2 burst/second", "2 burst/second burst 1 burst", "2/burst",
    "burst 5 packets", "010 mbytes/sec burst 08 kbytes", "010/second burst 08 packets",
    "0/second burst 0 packets", "0 bytes/second burst 4096 mbytes", "1000000000000000/week",
    "604800000000000/week", "604800000000001/week", "9" * 20 + "/day", "9" * 21 + "/day", "0" * 21 + "/day",
    "1/day burst " + "9" * 20 + " packets", "1 kbytes/day burst " + "9" * 21 + " bytes",
    "9" * 12 + " mbytes/second", "9" * 13 + " mbytes/second burst " + "9" * 13 + " mbytes",
    "18446744073 bytes/second", "18446744072 bytes/second", "18446744072 bytes/second burst 1 bytes",
    "18446744072 bytes/second burst 2 bytes", "18446744072 bytes/second burst 0 bytes", "2 mbytes/second\r\n",
    "2 mbytes/second\x00", "2 mbytes/second\x0b", "2\u00a0mbytes/second", "2 mbytes/\u017fecond",
    "2 \u212abytes/second", "\u0661\u0660 mbit/s", "1\u00b2 mbit/s", "'2 mbytes/second'", '"2 mbytes/second"',
    """'"2/second""", "\\n", "a\tb\\c", "\u2028", "x" * 78, "x" * 79, "x" * 80, "x" * 81, "\t" * 39, "\t" * 40,
    "\n" * 128, "\\" * 128, "5/second".ljust(128), "5/second".ljust(129), "2 mbytes/second " + "x" * 39,
    "2 mbytes/second " + "x" * 40, "2 mbytes/second " + "x" * 41, "2 mbytes/second \n\t\\",
]  # fmt: skip
# The largest rate of each time unit, and one more.
BOUNDS = [
    f"{most + more}{unit}/{time}"
    for time, length in TIME_UNITS.items()
    for unit, most in (("", length * 10**9), (" bytes", (2**64 - 1) // (length * 10**9) - 1))
    for more in (0, 1)
]
TEXTS = list(dict.fromkeys([*ACCEPTED, *REFUSED, *SUGGESTED, *WRITTEN, *BOUNDS]))


@pytest.mark.parametrize("text", TEXTS)
def test_each_text_of_the_tables_gets_the_parsers_sentence(text: str) -> None:
    check(text)


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A text of the tables, or a spelt one, with a few characters changed, added or taken away."""
    text = draw(st.sampled_from(TEXTS) | spelt() | others)[:140]
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(text)))
        added = draw(st.sampled_from([*" \t\n019./skB'é-", "", "burst"]))
        text = text[:at] + added + text[at + draw(st.integers(0, 2)) :]
    return text


@settings(max_examples=3000)
@given(mutated() | spelt() | others | near_misses | st.text(max_size=140))
def test_the_policy_refuses_a_text_if_and_only_if_the_parser_does_and_says_the_same(text: str) -> None:
    check(text)


@pytest.mark.parametrize("annotation", [RATELIMIT_ANNOTATION, EGRESS_ANNOTATION])
def test_each_annotation_that_nftsync_reads_is_judged(annotation: str) -> None:
    told = judged(service({annotation: "10 mbit/s"}))
    assert told == parsers("10 mbit/s", annotation)
    assert told.endswith("; write '1220 kbytes/second'")


def test_two_wrong_annotations_get_both_sentences_and_a_good_one_beside_a_wrong_one_none() -> None:
    wrong, good = "10 mbit/s", "2 mbytes/second"
    first, second = parsers(wrong, RATELIMIT_ANNOTATION), parsers("400 pps", EGRESS_ANNOTATION)
    assert judged(service({RATELIMIT_ANNOTATION: wrong, EGRESS_ANNOTATION: "400 pps"})) == f"{first}; {second}"
    assert judged(service({RATELIMIT_ANNOTATION: good, EGRESS_ANNOTATION: "400 pps"})) == second
    assert judged(service({RATELIMIT_ANNOTATION: wrong, EGRESS_ANNOTATION: good})) == first


@pytest.mark.parametrize("annotations", [None, {}, {"Ratelimit": "fast"}, {"nftsync.io/ratelimit": "fast"}])
def test_a_service_without_a_limit_passes(annotations: dict[str, str] | None) -> None:
    assert judged(service(annotations)) == ""


WRONG, OTHER, GOOD = ({RATELIMIT_ANNOTATION: text} for text in ("fast", "slow", "5/second"))
BALANCED, INSIDE = "LoadBalancer", "ClusterIP"


@pytest.mark.parametrize(("old", "new", "refused"), [
    ((WRONG, BALANCED), (WRONG, BALANCED), False),
    ((WRONG, BALANCED), ({**WRONG, "else": "new"}, BALANCED), False),
    ((WRONG, BALANCED), ({**WRONG, EGRESS_ANNOTATION: "fast"}, BALANCED), True),
    ((WRONG, BALANCED), (OTHER, BALANCED), True),
    ((WRONG, BALANCED), (GOOD, BALANCED), False),
    ((WRONG, BALANCED), (None, BALANCED), False),
    ((WRONG, BALANCED), (OTHER, INSIDE), False),
    ((GOOD, BALANCED), (WRONG, BALANCED), True),
    ((None, BALANCED), (WRONG, BALANCED), True),
    (({}, BALANCED), (WRONG, BALANCED), True),
    ((None, INSIDE), (WRONG, INSIDE), False),
    ((WRONG, INSIDE), (WRONG, INSIDE), False),
    ((WRONG, INSIDE), (WRONG, BALANCED), True),
])  # fmt: skip
def test_an_update_is_refused_only_if_it_brings_a_wrong_limit_to_nftsync(
    old: tuple[dict[str, str] | None, str], new: tuple[dict[str, str] | None, str], *, refused: bool
) -> None:
    assert bool(judged(service(*new), service(*old))) == refused


def test_a_fault_of_the_policy_itself_stops_nobody() -> None:
    assert POLICY["spec"]["failurePolicy"] == "Ignore"


def test_the_static_message_names_the_parsers_examples() -> None:
    assert EXAMPLES in POLICY["spec"]["validations"][0]["message"]
