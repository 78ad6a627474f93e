"""The `ratelimit` annotation: nft's grammar for `limit rate over …`, parsed into integers.

    <rate> <unit>/<time> [burst <burst> <unit>]      bytes:   2 mbytes/second burst 512 kbytes
    <rate>/<time> [burst <burst> packets]            packets: 400/minute burst 10 packets

The annotation's text never reaches nft: nftsync writes a new text from the integers.
Sources: nft(8), "LIMIT STATEMENT"; net/netfilter/nft_limit.c of the kernel for the bounds.
"""

import re
from dataclasses import dataclass, replace
from fractions import Fraction

from nftsync.objects.names import Malformed, quote, require

BYTE_UNITS = {"bytes": 1, "kbytes": 1024, "mbytes": 1024 * 1024}
TIME_UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 604800}

EXAMPLES = "write e.g. '2 mbytes/second burst 512 kbytes' or '400/minute burst 10 packets'"
MAX_LENGTH = 128  # characters; the longest sensible limit has about 60

_U64 = 1 << 64
_U32 = 1 << 32
_BURST_UNITS = {True: {"packets": 1}, False: BYTE_UNITS}  # of a rate in packets or in bytes
_DEFAULT_PACKET_BURST = 5  # nft sends this burst if a packet limit names none

_LIMIT = re.compile(
    r"[ \t]*(?P<rate>[0-9]+)(?:[ \t]+(?P<unit>[a-z]+)(?:[ \t]+/[ \t]*|/)|[ \t]*/[ \t]*)(?P<time>[a-z]+)"
    r"(?:[ \t]+burst[ \t]+(?P<burst>[0-9]+)[ \t]+(?P<burst_unit>[a-z]+))?[ \t]*"
)


_COMPLAINTS = {
    r"[ \t\r\n]*\Z": "is empty",
    r".*[A-Z]": "has upper-case letters, and nft's words are lower-case",
    r"[ \t]*[0-9]+[a-z]": "lacks the blank between number and unit",
    r"[ \t]*[0-9]+\.[0-9]": "has a fraction, and only whole numbers are allowed",
    r"[ \t]*-": "has a negative number",
    r"[ \t]*[0-9]+[ \t]+[a-z]+/[ \t]": "has a blank after the '/', which nft refuses there",
}


@dataclass(frozen=True, slots=True)
class RateLimit:
    """A token bucket of nftables: packets over the limit are dropped.

    rate: bytes or packets per `per`, above 0.  per: a key of TIME_UNITS.
    burst: bytes (0 allowed) or packets (above 0), below 2**32.  packets: the kind of both.
    """

    rate: int
    per: str
    burst: int
    packets: bool

    def __str__(self) -> str:
        """The limit in the annotation's grammar, in the largest exact units."""
        if self.packets:
            return f"{self.rate}/{self.per} burst {self.burst} packets"
        burst = f" burst {_bytes(self.burst)}" if self.burst else ""
        return f"{_bytes(self.rate)}/{self.per}{burst}"

    @property
    def bucket(self) -> int:
        """The bytes or packets that may pass at once. A bucket of bytes holds one unit of rate plus the burst."""
        return self.burst if self.packets else self.rate + max(self.burst, 1)

    @property
    def statement(self) -> str:
        """The nft statement of a set element.

        nft 1.0.6 refuses an element without a burst or with burst 0, so one byte stands for none.
        """
        return f"limit rate over {replace(self, burst=max(self.burst, 1))}"


def parse_ratelimit(text: str) -> RateLimit:
    """Parse an annotation's value.

    Raises Malformed for another grammar, rate 0, or a number too large for the kernel. The message
    names the fault and, for another grammar, a valid form.
    """
    quoted = quote(text)
    require(len(text) <= MAX_LENGTH, f"{quoted} is longer than {MAX_LENGTH} characters; {EXAMPLES}")
    match = _LIMIT.fullmatch(text)
    if wrong := _what_is_wrong(text, match):
        suggested = suggestion(text)
        raise Malformed(f"{quoted}{wrong}; " + (f"write '{suggested}'" if suggested else EXAMPLES))
    assert match is not None
    unit = match["unit"]
    rate = _integer(match["rate"], quoted) * BYTE_UNITS[unit or "bytes"]
    limit = RateLimit(rate, match["time"], _burst(match, quoted), packets=unit is None)
    _check_bounds(limit, quoted)
    return limit


def _burst(match: re.Match[str], quoted: str) -> int:
    packets, burst, unit = match["unit"] is None, match["burst"], match["burst_unit"]
    if burst is None:
        return _DEFAULT_PACKET_BURST if packets else 0
    value = _integer(burst, quoted) * _BURST_UNITS[packets][unit]
    require(value > 0 or not packets, f"{quoted}: a burst of 0 packets would let nothing pass; the smallest is 1")
    return value


def _check_bounds(limit: RateLimit, quoted: str) -> None:
    """Refuse limits that the kernel refuses with EOVERFLOW, wraps silently, or cannot measure.

    Source: nft_limit.c.
    """
    nanoseconds = TIME_UNITS[limit.per] * 1_000_000_000
    require(limit.rate > 0, f"{quoted}: a rate of 0 is no limit; the smallest is 1")
    unit = "packets" if limit.packets else "bytes"
    require(limit.burst < _U32, f"{quoted}: the burst is too large; it must stay below {_U32} {unit}")
    if limit.packets:
        require(
            limit.rate <= nanoseconds,
            f"{quoted}: the rate is too large; the kernel counts at most one packet a nanosecond",
        )
        largest = (_U64 - 1) // (nanoseconds // limit.rate)
        require(
            limit.burst <= largest,
            f"{quoted}: the burst is too large for this rate; the kernel takes at most {largest} packets",
        )
    else:
        largest = (_U64 - 1) // nanoseconds
        require(
            limit.rate + max(limit.burst, 1) <= largest,
            f"{quoted}: rate and burst together are too large; at most {largest} bytes/{limit.per}",
        )


def _integer(digits: str, quoted: str) -> int:
    require(
        digits[0] != "0" or digits == "0",
        f"{quoted}: '{digits[:20]}' has a leading zero, which nft reads as octal; write it without the zero",
    )
    require(len(digits) <= 20, f"{quoted}: the number '{digits[:20]}…' is too large")  # 2**64 has 20 digits
    return int(digits)


def _what_is_wrong(text: str, match: re.Match[str] | None) -> str:
    """The most helpful complaint about a text that does not fit the grammar or nft's words; "" if it does."""
    if match is None:
        limit = _LIMIT.match(text)
        complaint = f"has extra text after the limit: {text[limit.end() :][:40]!a}" if limit else "is not a rate limit"
        return " " + next((known for pattern, known in _COMPLAINTS.items() if re.match(pattern, text)), complaint)
    unit, per = match["unit"], match["time"]
    if per not in TIME_UNITS:
        return f": the time unit '{per}' is not one of {', '.join(TIME_UNITS)}"
    if unit not in (None, *BYTE_UNITS):
        return f": the unit '{unit}' is not one of {', '.join(BYTE_UNITS)} (packets have none)"
    if match["burst"] and match["burst_unit"] not in (units := _BURST_UNITS[unit is None]):
        counted = f"byte rate is counted in {', '.join(units)}" if unit else "packet rate is counted in 'packets'"
        return f": the burst of a {counted}, not '{match['burst_unit']}'"
    return ""


# Words that other tools have: "10 Mbit/s", "1.5mbps", "2 MB/s burst 512 kB", "400 pps", "400 per minute".
_LETTERS = "kmgt"
_PREFIXES = {
    **{letter: 1000**n for n, letter in enumerate(_LETTERS, 1)},
    **{f"{letter}i": 1024**n for n, letter in enumerate(_LETTERS, 1)},
    "": 1,
}
_TIMES = {word: unit for unit in TIME_UNITS for word in (unit, f"{unit}s", unit[:3], f"{unit[:3]}s", unit[0])}
_AMOUNT = r"(?P<{0}>[0-9]+(?:[.][0-9]+)?)\s*(?P<{0}_unit>(?:[kmgt]i?)?(?:bits?|bytes?|b)|k?p|k?(?:packets?|pkts?))?"
_OTHERS_LIMIT = re.compile(
    rf"\s*{_AMOUNT.format('rate')}\s*(?:(?:/|per\b|p)\s*(?P<time>{'|'.join(_TIMES)}))?"
    rf"(?:\s*,?\s*burst\s*{_AMOUNT.format('burst')})?\s*",
    re.IGNORECASE | re.ASCII,
)
_COARSE = 100 * BYTE_UNITS["kbytes"]  # from here on, whole kbytes are exact enough


def suggestion(text: str) -> str:
    """The limit that somebody probably means who writes it in another tool's words; "" if unclear.

    A number that nft cannot write is rounded down. The result is always a valid limit.
    """
    match = _OTHERS_LIMIT.fullmatch(text)
    if match is None or not (match["rate_unit"] or match["time"]):
        return ""
    per = _TIMES[(match["time"] or "second").lower()]
    rate, packets = _amount(match["rate"], match["rate_unit"])
    suggested = f"{rate}/{per}" if packets else f"{_bytes(rate)}/{per}"
    if match["burst"]:
        burst, counted = _amount(match["burst"], match["burst_unit"])
        if match["burst_unit"] and counted is not packets:
            return ""
        suggested += f" burst {burst} packets" if packets else f" burst {_bytes(burst)}"
    try:
        parse_ratelimit(suggested)
    except Malformed:  # too large, or 0
        return ""
    return suggested


def _amount(number: str, unit: str | None) -> tuple[int, bool]:
    """Bytes or packets, rounded down, and whether they are packets. "k" is 1000, but 1024 in nft's "kbytes"."""
    word = (unit or "p").lower()
    packets = "p" in word
    prefix = word[: 1 + (word[1:2] == "i")] if word[0] in _LETTERS else ""
    factor = Fraction(_PREFIXES[f"{prefix[:1]}i"] if prefix and "byte" in word else _PREFIXES[prefix])
    if "bit" in word or (unit or "").endswith("b"):  # "B" is bytes
        factor /= 8
    amount = int(Fraction(number) * factor)
    return (amount if packets or amount < _COARSE else amount // 1024 * 1024), packets


def _bytes(count: int) -> str:
    unit = next((unit for unit in ("mbytes", "kbytes") if count and count % BYTE_UNITS[unit] == 0), "bytes")
    return f"{count // BYTE_UNITS[unit]} {unit}"
