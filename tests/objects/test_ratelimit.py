"""The ratelimit annotation.

A limit that nft or the kernel would not take is refused with a sentence. All others mean the same
to them.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nftsync.objects.names import Malformed
from nftsync.objects.ratelimit import BYTE_UNITS, EXAMPLES, RateLimit, parse_ratelimit, suggestion
from tests.support import Netns, limits, seconds

KBYTE, MBYTE = 1024, 1024 * 1024

ACCEPTED = {
    "2 mbytes/second burst 512 kbytes": (RateLimit(2 * MBYTE, "second", 512 * KBYTE, packets=False), None),
    "400/minute burst 10 packets": (RateLimit(400, "minute", 10, packets=True), None),
    "1 mbytes/second": (RateLimit(MBYTE, "second", 0, packets=False), None),
    "1 bytes/week": (RateLimit(1, "week", 0, packets=False), None),
    "1024 kbytes/second": (RateLimit(MBYTE, "second", 0, packets=False), "1 mbytes/second"),
    "1536 bytes/hour burst 1024 bytes": (
        RateLimit(1536, "hour", KBYTE, packets=False),
        "1536 bytes/hour burst 1 kbytes",
    ),
    "2 mbytes/second burst 0 bytes": (RateLimit(2 * MBYTE, "second", 0, packets=False), "2 mbytes/second"),
    "5/second": (RateLimit(5, "second", 5, packets=True), "5/second burst 5 packets"),
    "400 / minute": (RateLimit(400, "minute", 5, packets=True), "400/minute burst 5 packets"),
    "400/ minute": (RateLimit(400, "minute", 5, packets=True), "400/minute burst 5 packets"),
    "2 mbytes / second": (RateLimit(2 * MBYTE, "second", 0, packets=False), "2 mbytes/second"),
    "\t2 kbytes/day  burst  5\tbytes ": (RateLimit(2 * KBYTE, "day", 5, packets=False), "2 kbytes/day burst 5 bytes"),
    # The largest that the kernel takes, and one below where a burst wraps.
    "17592 mbytes/second": (RateLimit(17592 * MBYTE, "second", 0, packets=False), None),
    "293 mbytes/minute": (RateLimit(293 * MBYTE, "minute", 0, packets=False), None),
    "5003 kbytes/hour": (RateLimit(5003 * KBYTE, "hour", 0, packets=False), None),
    "208 kbytes/day": (RateLimit(208 * KBYTE, "day", 0, packets=False), None),
    "29 kbytes/week": (RateLimit(29 * KBYTE, "week", 0, packets=False), None),
    "1 mbytes/second burst 4095 mbytes": (RateLimit(MBYTE, "second", 4095 * MBYTE, packets=False), None),
    "1000000000/second burst 4294967295 packets": (RateLimit(10**9, "second", 2**32 - 1, packets=True), None),
    "1/week burst 30500 packets": (RateLimit(1, "week", 30500, packets=True), None),
}

REFUSED = {
    "": "is empty",
    " \n": "is empty",
    "fast": "is not a rate limit",
    "2": "is not a rate limit",
    "2 mbytes": "is not a rate limit",
    "/second": "is not a rate limit",
    "2 mbytes/second/second": "has extra text after the limit: '/second'",
    "2 mbytes/second burst": "has extra text after the limit: 'burst'",
    "2 mbytes/second burst 5": "has extra text after the limit: 'burst 5'",
    "400/minute burst 10": "has extra text after the limit",
    "2 mbytes/second drop": "has extra text after the limit: 'drop'",
    "2 mbytes/second; flush ruleset": "has extra text after the limit",
    "2 mbytes/second }": "has extra text after the limit",
    "2 mbytes/second\n": "has extra text after the limit",
    "2 mbytes/second\nflush ruleset": "has extra text after the limit",
    "2 mbytes/second # slow": "has extra text after the limit",
    "over 2 mbytes/second": "is not a rate limit",
    "2 MBytes/second": "upper-case",
    "2mbytes/second": "lacks the blank between number and unit",
    "10mbytes/second": "lacks the blank between number and unit",
    "0x10/second": "lacks the blank between number and unit",
    "1.5 mbytes/second": "has a fraction",
    "-5/second": "has a negative number",
    "+5/second": "is not a rate limit",
    "1_0/second": "is not a rate limit",
    "１/second": "is not a rate limit",
    "٣/second": "is not a rate limit",
    "2 mbytes/ second": "has a blank after the '/'",
    "2 mbytes/sec": "the time unit 'sec' is not one of second, minute, hour, day, week",
    "2 mbytes/seconds": "the time unit 'seconds' is not one of second",
    "2 mbytes/month": "the time unit 'month' is not one of second",
    "2 gbytes/second": "the unit 'gbytes' is not one of bytes, kbytes, mbytes (packets have none)",
    "2 mbit/second": "the unit 'mbit' is not one of bytes",
    "10 packets/second": "the unit 'packets' is not one of bytes, kbytes, mbytes (packets have none)",
    "2 mbytes/second burst 5 packets": "the burst of a byte rate is counted in bytes, kbytes, mbytes, not 'packets'",
    "2 mbytes/second burst 5 gbytes": "the burst of a byte rate is counted in bytes, kbytes, mbytes, not 'gbytes'",
    "400/minute burst 10 bytes": "the burst of a packet rate is counted in 'packets', not 'bytes'",
    "0/second": "a rate of 0 is no limit; the smallest is 1",
    "0 mbytes/second": "a rate of 0 is no limit; the smallest is 1",
    "400/minute burst 0 packets": "a burst of 0 packets would let nothing pass; the smallest is 1",
    "010/second": "'010' has a leading zero, which nft reads as octal; write it without the zero",
    "2 mbytes/second burst 08 kbytes": "'08' has a leading zero, which nft reads as octal; write it without the zero",
    "99999999999999999999999/second": "is too large",
    "18446744073709551616/second": "the rate is too large; the kernel counts at most one packet a nanosecond",
    "1000000001/second": "the rate is too large; the kernel counts at most one packet a nanosecond",
    "17593 mbytes/second": "rate and burst together are too large; at most 18446744073 bytes/second",
    "294 mbytes/minute": "at most 307445734 bytes/minute",
    "5004 kbytes/hour": "at most 5124095 bytes/hour",
    "209 kbytes/day": "at most 213503 bytes/day",
    "30 kbytes/week": "at most 30500 bytes/week",
    "29 kbytes/week burst 1 kbytes": "rate and burst together are too large",
    "1 mbytes/second burst 4096 mbytes": "the burst is too large; it must stay below 4294967296 bytes",
    "1000000000/second burst 4294967296 packets": "the burst is too large; it must stay below 4294967296 packets",
    "1/week burst 30501 packets": "the burst is too large for this rate; the kernel takes at most 30500 packets",
    "5/second" + " " * 128: "is longer than 128 characters",
}


@pytest.mark.parametrize(("text", "meaning"), ACCEPTED.items())
def test_a_limit_is_understood_and_normalised(text: str, meaning: tuple[RateLimit, str | None]) -> None:
    limit, normalised = meaning
    assert parse_ratelimit(text) == limit
    assert str(limit) == (normalised or text)


@pytest.mark.parametrize(("text", "wrong"), REFUSED.items())
def test_a_wrong_limit_is_refused_with_a_sentence_that_says_what_is_wrong_and_what_is_right(
    text: str, wrong: str
) -> None:
    with pytest.raises(Malformed) as refused:
        parse_ratelimit(text)
    message = str(refused.value)
    assert wrong in message
    assert ascii(text[:60])[1:-1] in message, "the sentence shows what was written"
    right = (
        EXAMPLES,
        "; write '",
        "the smallest is 1",
        "it must stay below",
        "at most",
        "write it without",
        "is too large",
    )
    assert any(each in message for each in right), "and what is right"
    assert message.isprintable()


SUGGESTED = {
    "10 mbit/s": "1220 kbytes/second",
    "10mbit": "1220 kbytes/second",
    "10 Mbit/s": "1220 kbytes/second",
    "10 mbps": "1220 kbytes/second",
    "10Mbps": "1220 kbytes/second",
    "10 Mb/s": "1220 kbytes/second",
    "1.5 mbit/s": "183 kbytes/second",
    "64 kbit/s": "8000 bytes/second",
    "1 Gbit/s": "122070 kbytes/second",
    "1gbps": "122070 kbytes/second",
    "10 bits/s": "1 bytes/second",
    "8 Mibit/s": "1 mbytes/second",
    "2 MB/s": "1953 kbytes/second",
    "2 MiB/s": "2 mbytes/second",
    "500 kB/s": "488 kbytes/second",
    "100 KiB/s": "100 kbytes/second",
    "90 MB/min": "87890 kbytes/minute",
    "2mbytes/second": "2 mbytes/second",
    "2 mbytes/sec": "2 mbytes/second",
    "2 Mbytes per second": "2 mbytes/second",
    "2 mbytes/ second": "2 mbytes/second",
    "0.5 mbytes/second": "512 kbytes/second",
    "2 gbytes/second": "2048 mbytes/second",
    "400 pps": "400/second",
    "10 kpps": "10000/second",
    "50 p/s": "50/second",
    "50 packets/s": "50/second",
    "50 packets/second": "50/second",
    "50 pkts/min": "50/minute",
    "50/s": "50/second",
    "50/sec": "50/second",
    "50/mins": "50/minute",
    "50 per second": "50/second",
    "50 per hour": "50/hour",
    "10 mbit/s burst 1 mbit": "1220 kbytes/second burst 122 kbytes",
    "2 MB/s, burst 512 kB": "1953 kbytes/second burst 500 kbytes",
    "400/minute burst 10": "400/minute burst 10 packets",
    "fast": "",
    "2": "",
    "-5/second": "",
    "1 bit/s": "",
    "9999999 gbit/s": "",
    "0 mbit/s": "",
    "5 packets/s burst 1 kB": "",
    "5 parsecs": "",
    "2 mbytes/second; flush ruleset": "",
}


@pytest.mark.parametrize(("text", "meant"), SUGGESTED.items())
def test_words_of_other_tools_are_refused_and_the_sentence_says_what_to_write(text: str, meant: str) -> None:
    assert suggestion(text) == meant
    with pytest.raises(Malformed) as refused:
        parse_ratelimit(text)
    assert str(refused.value).endswith(f"; write '{meant}'") == bool(meant)


others = st.builds(
    "{}{}{}{}{}".format,
    st.integers(0, 10**9) | st.decimals(0, 10**6, places=2),
    st.sampled_from(["", " "]),
    st.sampled_from(["", "k", "M", "g", "Ti", "Ki"]),
    st.sampled_from(["", "b", "B", "bit", "bits", "byte", "bytes", "p", "packets", "Bytes"]),
    st.sampled_from(["", "/s", "ps", " per second", "/min", " / hours", "/w", " burst 5", "/s burst 1.5 kB"]),
)


@given(others)
def test_a_suggestion_is_a_limit_of_its_own(text: str) -> None:
    if suggested := suggestion(text):
        assert parse_ratelimit(suggested)


def test_the_examples_in_the_sentences_are_right() -> None:
    for shown in re.findall(r"'(.+?)'", EXAMPLES):
        assert str(parse_ratelimit(shown)) == shown


def test_the_longest_limit_there_is_fits() -> None:
    longest = "18446744073 bytes/second burst 4294967295 bytes".replace("18446744073", str(2**64 // 10**9 - 2**32))
    assert parse_ratelimit(longest).burst == 2**32 - 1


words = st.sampled_from(
    [
        *BYTE_UNITS, *seconds, "packets", "burst", "over", "/", "0", "1", "2", "10", "010", "4096", "4294967295",
        "4294967296",
        "17592", "18446744073709551615", "18446744073709551616", "5003", "29", "30500", " ", "  ", "\t", "\n", ";",
        "}", '"', "#",
        "-", ".", "x",
    ]
)  # fmt: skip
near_misses = st.lists(words, max_size=12).map("".join) | st.lists(words, max_size=8).map(" ".join)


@given(st.text(max_size=200) | near_misses)
def test_no_text_ends_in_anything_but_a_limit_or_a_sentence_on_one_line(text: str) -> None:
    try:
        limit = parse_ratelimit(text)
    except Malformed as refused:
        message = str(refused)
        assert message.isprintable()
    else:
        assert parse_ratelimit(str(limit)) == limit


@given(limits())
def test_what_a_limit_says_of_itself_parses_to_itself(limit: RateLimit) -> None:
    assert parse_ratelimit(str(limit)) == limit


@given(limits())
def test_what_reaches_nft_is_written_anew_and_always_has_a_burst(limit: RateLimit) -> None:
    number = "[1-9][0-9]*"
    in_bytes = rf"limit rate over {number} [km]?bytes/(second|minute|hour|day|week) burst {number} [km]?bytes"
    in_packets = rf"limit rate over {number}/(second|minute|hour|day|week) burst {number} packets"
    assert re.fullmatch(in_packets if limit.packets else in_bytes, limit.statement)


# --- against the real nft and the real kernel ----------------------------------------------------------


@st.composite
def spelt(draw: st.DrawFn) -> str:
    """Texts of the grammar's shape, with the numbers near the bounds, sometimes slightly broken."""
    blank = st.sampled_from([" ", " ", " ", "", "  ", "\t"])
    slash = st.sampled_from(["/", "/", "/", " / ", "/ ", " /"])
    per = draw(st.sampled_from(sorted(seconds)))
    unit = draw(st.sampled_from(["", "bytes", "kbytes", "mbytes"]))
    most = (2**64 - 1) // (seconds[per] * 10**9) // BYTE_UNITS.get(unit, 1) if unit else seconds[per] * 10**9
    near = st.integers(max(most - 2, 0), most + 2)
    rate = draw(
        st.integers(0, 3000)
        | near
        | st.integers(0, most)
        | st.sampled_from([2**32 - 1, 2**32, 2**63, 2**64 - 1, 2**64])
    )
    zeros = draw(st.sampled_from(["", "", "", "", "", "", "", "0"]))
    text = f"{zeros}{rate}{draw(blank) if unit else ''}{unit}{draw(slash)}{per}"
    if draw(st.booleans()):
        burst_unit = draw(st.sampled_from([unit or "packets"] * 4 + ["bytes", "kbytes", "packets", ""]))
        wrap = 2**32 // BYTE_UNITS.get(burst_unit, 1)
        room = max((2**64 - 1) // max(seconds[per] * 10**9 // max(rate, 1), 1), 1)
        burst = draw(st.integers(0, 3000) | st.integers(wrap - 2, wrap + 2) | st.integers(max(room - 2, 0), room + 2))
        text += f"{draw(blank)}burst{draw(blank)}{burst}{draw(blank)}{burst_unit}"
    return text + draw(st.sampled_from(["", "", "", "", " ", ";", "s", " drop"]))


def read_back(limit: dict[str, Any]) -> RateLimit:
    """A limit of libnftables' JSON, independently of how nftsync reads it."""
    assert limit["inv"] is True
    if "rate_unit" not in limit:
        return RateLimit(limit["rate"], limit["per"], limit["burst"], packets=True)
    factor = {"bytes": 1, "kbytes": KBYTE, "mbytes": MBYTE}
    burst = limit.get("burst", 0) * factor[limit.get("burst_unit", "bytes")]
    return RateLimit(limit["rate"] * factor[limit["rate_unit"]], limit["per"], burst, packets=False)


CREATE = """
add table inet trial
add chain inet trial chained
add set inet trial bytes { type inet_service; limit rate over 1 bytes/second burst 1 bytes; }
add set inet trial packets { type inet_service; limit rate over 1/second burst 1 packets; }
"""


def load(netns: Netns, texts: dict[str, RateLimit]) -> tuple[dict[str, RateLimit], dict[int, RateLimit]]:
    """The limits as the kernel has them.

    The rules are made from the annotations' own texts, the elements from the parsed limits.
    """
    rules = [f"add rule inet trial chained limit rate over {text} drop" for text in texts]
    elements = [
        f"add element inet trial {'packets' if limit.packets else 'bytes'} {{ {port} {limit.statement} }}"
        for port, limit in enumerate(texts.values())
    ]
    netns.nft("\n".join(["add table inet trial", "delete table inet trial", CREATE, *rules, *elements]))
    listed = json.loads(netns.command("nft", "-j", "list", "table", "inet", "trial"))["nftables"]
    limits_of_rules = [each["rule"]["expr"][0]["limit"] for each in listed if "rule" in each]
    members = [member["elem"] for each in listed if "set" in each for member in each["set"].get("elem", ())]
    found = dict(zip(texts, map(read_back, limits_of_rules), strict=True))
    return found, {member["val"]: read_back(member["limit"]) for member in members}


def as_element(limit: RateLimit) -> RateLimit:
    """nft takes no element without a burst: one byte stands for none."""
    return limit if limit.packets else replace(limit, burst=max(limit.burst, 1))


def check_against_kernel(netns: Netns, texts: list[str]) -> None:
    accepted = {}
    for text in texts:
        try:
            accepted[text] = parse_ratelimit(text)
        except Malformed:
            continue
    as_rules, as_elements = load(netns, accepted)
    assert as_rules == accepted
    assert as_elements == {port: as_element(limit) for port, limit in enumerate(accepted.values())}


def test_every_limit_of_the_table_means_the_same_to_nft_and_the_kernel(shared_netns: Netns) -> None:
    check_against_kernel(shared_netns, list(ACCEPTED))


@settings(max_examples=30)
@given(st.lists(spelt() | limits().map(str), min_size=30, max_size=60, unique=True))
@example(["2 mbytes/second burst 0 bytes", "2 mbytes /second", "1 bytes/second burst 4294967295 bytes"])
def test_whatever_is_accepted_means_the_same_to_nft_and_the_kernel(shared_netns: Netns, texts: list[str]) -> None:
    check_against_kernel(shared_netns, texts)


@pytest.mark.parametrize("text", [
    "17593 mbytes/second", "294 mbytes/minute", "5004 kbytes/hour", "209 kbytes/day", "30 kbytes/week",
    "1/week burst 30501 packets", "29 kbytes/week burst 1 kbytes", "0/second", "0 bytes/second",
])  # fmt: skip
def test_what_is_refused_for_its_size_means_something_else_to_the_kernel_or_nothing(netns: Netns, text: str) -> None:
    netns.nft(CREATE)
    answer = netns.command("nft", f"add rule inet trial chained limit rate over {text} drop", check=False)
    listed = netns.command("nft", "list", "chain", "inet", "trial", "chained")
    assert "Error" in answer or f"limit rate over {text}" not in listed


def test_the_sizes_that_wrap_in_nft_are_refused_although_nft_says_nothing(netns: Netns) -> None:
    for text in ("1 mbytes/second burst 4096 mbytes", "1000000000/second burst 4294967297 packets"):
        netns.nft(CREATE)
        netns.nft(f"flush chain inet trial chained\nadd rule inet trial chained limit rate over {text} drop")
        assert text not in netns.command(
            "nft", "list", "chain", "inet", "trial", "chained"
        ), "nft took it and it became another limit"
        with pytest.raises(Malformed):
            parse_ratelimit(text)
