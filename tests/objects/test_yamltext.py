"""YAML from strangers: nothing expands, nothing is constructed, and what was understood is what was meant."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nftsync.objects import yaml as yamltext
from nftsync.objects.names import Malformed
from nftsync.objects.yaml import documents
from tests.support import count_yaml_events

MEANINGS = {
    "a: 1": {"a": 1},
    "a: [1, -2, +3, 0]": {"a": [1, -2, 3, 0]},
    "a: b\nc:\n  - d\n  - e: f": {"a": "b", "c": ["d", {"e": "f"}]},
    "a:": {"a": None},
    "a: ~": {"a": None},
    "a: null": {"a": None},
    "a: ''": {"a": ""},
    'a: "null"': {"a": "null"},
    "a: true": {"a": True},
    "a: yes": {"a": True},
    "a: On": {"a": True},
    "a: NO": {"a": False},
    "a: off": {"a": False},
    "a: 'yes'": {"a": "yes"},
    "a: y": {"a": "y"},
    "a: yEs": {"a": "yEs"},
    "a: 0123": {"a": "0123"},
    "a: 0x10": {"a": "0x10"},
    "a: 0b1": {"a": "0b1"},
    "a: 1_000": {"a": "1_000"},
    "a: 64512:1": {"a": "64512:1"},
    "a: 190:20:30": {"a": "190:20:30"},
    "a: 1.5": {"a": "1.5"},
    "a: 1e3": {"a": "1e3"},
    "a: .inf": {"a": ".inf"},
    "a: '80'": {"a": "80"},
    "a: １": {"a": "１"},
    "a: 99999999999999999999": {"a": "99999999999999999999"},
    "a: 2024-01-01T00:00:00Z": {"a": "2024-01-01T00:00:00Z"},
    "a: =": {"a": "="},
    "a: |\n  b\n  c\n": {"a": "b\nc\n"},
    "a: >\n  b\n  c\n": {"a": "b c\n"},
    "a: |\n  80\n": {"a": "80\n"},
    "a: !!str 80": {"a": "80"},
    "a: ! 80": {"a": "80"},
    "'<<': {b: c}": {"<<": {"b": "c"}},
    "1: a": {"1": "a"},
    "yes: a": {"yes": "a"},
    "'': a": {"": "a"},
    "80": 80,
    "\ufeffa: b": {"a": "b"},
    "%YAML 1.1\n---\na: b": {"a": "b"},
    '{"a": {"b": [true, null, "x"]}}': {"a": {"b": [True, None, "x"]}},
}

# PyYAML refuses some of these before we can, in words that change with its version: of those only the line is ours.
REFUSED = {
    "a: &x 1\nb: *x": "line 1: anchors and aliases are not allowed",
    "a: *x": "line 1: anchors and aliases are not allowed",
    "&x a: 1": "line 1: a key must be a text",
    "&x {a: 1}": "line 1: anchors and aliases are not allowed",
    "*x : 1": "line 1: a key must be a text",
    "a: 1\nb:\n  <<: {c: d}": "line 3: merge keys are not allowed",
    "a: !!python/object/apply:os.system [x]": (
        "line 1: the tag 'tag:yaml.org,2002:python/object/apply:os.system' is not allowed"
    ),
    "a: !!binary aGk=": "the tag 'tag:yaml.org,2002:binary' is not allowed",
    "a: !!int 5": "the tag 'tag:yaml.org,2002:int' is not allowed",
    "a: !x {b: c}": "the tag '!x' is not allowed",
    "!!int 5: a": "line 1: the tag 'tag:yaml.org,2002:int' is not allowed",
    "a: 1\n!!binary aGk=: b": "line 2: the tag 'tag:yaml.org,2002:binary' is not allowed",
    "a: 1\nb: 2\na: 3": "line 3: the key 'a' occurs twice",
    "a: {b: 1, 'b': 2}": "line 1: the key 'b' occurs twice",
    "? [a]\n: b": "line 1: a key must be a text",
    "? {a: b}\n: c": "line 1: a key must be a text",
    "a: [\n": "line 2",
    "a: 1\n b: 2": "line 2",
    "a:\n\t- b": "line 2",
    "a: b: c": "line 1",
    "'a": "line 1",
    "a: 1\n...\nb\n}": "line",
    "a: \x00": "",
    "a: \x1b[2J": "",
    "a: \ud800": "it can't be read",
    "[" * 66 + "]" * 66: "line 1: it is nested more than 64 deep",
    "[" * 100000: "line 1: ",
    "- " * 100000: "line 1: ",
    "{a: " * 66 + "}" * 66: "line 1: it is nested more than 64 deep",
}


@pytest.mark.parametrize(("text", "meaning"), MEANINGS.items())
def test_a_text_means_this_and_nothing_is_a_number_by_accident(text: str, meaning: object) -> None:
    (found,) = documents(text)
    assert repr(found) == repr(meaning)  # 1 == True, and that difference matters here


@pytest.mark.parametrize(
    ("text", "reason"), REFUSED.items(), ids=[text[:30].encode("unicode_escape").decode() for text in REFUSED]
)
def test_what_expands_constructs_or_misleads_is_refused_with_the_line(text: str, reason: str) -> None:
    with pytest.raises(Malformed) as refused:
        documents(text)
    assert reason in str(refused.value)
    assert str(refused.value).isprintable()


def test_a_text_may_hold_many_documents_or_none() -> None:
    assert documents("") == []
    assert documents("# nothing\n") == []
    assert documents("---\na: 1\n---\n---\nb: 2\n...\n") == [{"a": 1}, None, {"b": 2}]


def test_the_deepest_that_is_taken() -> None:
    assert documents("[" * 65 + "]" * 65)


def bombs() -> dict[str, str]:
    laughs = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
    )  # fmt: skip
    merges = "a0: &a0 {k: v}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 40))
    return {"laughs": laughs, "merges": merges, "brackets": "[" * 10**6, "keys": "? " * 10**6, "dashes": "- " * 10**6}


@pytest.mark.parametrize("bomb", bombs())
def test_a_bomb_is_refused_and_costs_nothing(bomb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, read = bombs()[bomb], count_yaml_events(monkeypatch)
    tracemalloc.start()
    try:
        with pytest.raises(Malformed):
            documents(text)
        assert tracemalloc.get_traced_memory()[1] < 16 * 1024 * 1024
    finally:
        tracemalloc.stop()
    assert read["events"] <= 2000, "of a million"


def test_a_text_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yamltext, "MAX_BYTES", 3 * 1024 * 1024)
    with pytest.raises(Malformed, match="^it is larger than 3 MiB$"):
        documents("#" * (3 * 1024 * 1024 + 1))


pieces = st.sampled_from(
    [
        "a", "b", ":", " ", "\n", "-", "- ", "? ", "&x", "*x", "<<", "!", "!!", "!!str", "[", "]", "{", "}", ",",
        "'", '"', "|",
        ">", "%", "#", "  ", "\t", "---", "...", "1", "0", "yes", "~", "\\", "\x85", "\u2028", "\ufeff", "\x00",
        "\ud800", "@", "`",
        "=", "a: b\n",
    ]
)  # fmt: skip


@given(st.text() | st.lists(pieces, max_size=25).map("".join))
def test_no_text_ends_in_anything_but_plain_values_or_an_error(text: str) -> None:
    try:
        found = documents(text)
    except Malformed as refused:
        message = str(refused)
        assert message.isprintable()
    else:
        assert plain(found)


def plain(value: object) -> bool:
    if type(value) is list:
        return all(map(plain, value))
    if type(value) is dict:
        return all(type(key) is str and plain(inner) for key, inner in value.items())
    return type(value) in (str, int, bool, type(None))


texts = st.text(st.characters(exclude_categories=("Cs", "Cc", "Cn", "Co")), max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**18), 10**18) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=15,
)


@given(values, st.booleans(), st.sampled_from([None, 2]))
def test_json_means_the_same_as_yaml(value: object, ascii_only: bool, indent: int | None) -> None:  # noqa: FBT001
    if ascii_only and any(ord(each) > 0xFFFF for each in str(value)):
        ascii_only = False  # JSON's surrogate pairs are no YAML
    assert documents(json.dumps(value, ensure_ascii=ascii_only, indent=indent)) == [value]
