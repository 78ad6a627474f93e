"""The warnings of an API server: texts of Warning headers, however many there are and whatever is in them."""

from __future__ import annotations

import pytest

from nftsync.cluster.api import _warnings

UNKNOWN = '299 - "unknown field \\"spec.enable-ssh\\""'


@pytest.mark.parametrize(
    ("headers", "texts"),
    [
        ([], []),
        ([UNKNOWN], ['unknown field "spec.enable-ssh"']),
        (['299 - "a, b"', '299 agent "c"'], ["a, b", "c"]),
        (['299 - "a", 299 - "b"'], ["a", "b"]),
        (['199 - "other"', "nonsense", '299 - "open'], []),
        (['299 - "\x1b[2J"'], ["\\x1b[2J"]),
    ],
)
def test_each_warning_is_a_printable_text(headers: list[str], texts: list[str]) -> None:
    assert list(_warnings(headers)) == texts


def test_a_flood_of_warnings_is_cut() -> None:
    texts = list(_warnings([f'299 - "{"x" * 1000}"'] * 1000))
    assert len(texts) == 10
    assert all(len(text) <= 300 for text in texts)
