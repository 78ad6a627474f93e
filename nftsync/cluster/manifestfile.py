"""Reads one file of Kubernetes objects as kubectl does.

The content decides between YAML and JSON, not the file's name. JSON documents may follow each other,
Lists may hold Lists, and a byte order mark may lead, that of UTF-16 too.
Source: cli-runtime's visitor.go, apimachinery's util/yaml and FlattenListVisitor.
"""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path

from nftsync.objects import yaml as yamltext
from nftsync.objects.names import KINDS, quote

_LATER_BOM = re.compile(r"^(---[ \t]*\r?\n)\ufeff", re.MULTILINE)  # of files that stand one after the other
_SPACE = re.compile(r"[ \t\r\n]*")  # between JSON documents


def read_objects(path: Path) -> Iterator[object]:
    """The objects of a file, also those inside Lists. Raises OSError, or ValueError with a sentence."""
    with path.open("rb") as file:
        content = file.read(yamltext.MAX_BYTES + 1)
    if len(content) > yamltext.MAX_BYTES:
        raise ValueError(f"it is larger than {yamltext.MAX_BYTES // 1024 // 1024} MiB")
    text = _decoded(content)
    if path.suffix == ".json" and not text.strip():
        raise ValueError("it is empty")
    documents = _documents(text)
    for document in documents:
        if document is not None and not isinstance(document, dict | list):  # as a page of a web server
            raise ValueError(f"it holds {quote(document)} in place of an object")
    return _flat(documents)


def _decoded(content: bytes) -> str:
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return _LATER_BOM.sub(r"\1", content.decode("utf-16" if is_utf16 else "utf-8-sig"))


def _documents(text: str) -> list[object]:
    """The documents of a text. If it only begins as JSON, the rest is YAML."""
    documents: list[object] = []
    place = _skip(text, 0)
    if text.startswith("{", place):
        decoder = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)
        try:
            while place < len(text):
                document, end = decoder.raw_decode(text, place)
                documents.append(document)
                place = _skip(text, end)
        except RecursionError:
            raise ValueError("it is nested too deep") from None
        except json.JSONDecodeError as error:
            if documents and not text.startswith("---", place):
                raise ValueError(f"line {error.lineno}: {error.msg}") from error
    return [*documents, *yamltext.documents(text[place:])]


def _skip(text: str, place: int) -> int:
    space = _SPACE.match(text, place)
    return space.end() if space else place


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object. Raises ValueError for a duplicate key, because readers differ about those."""
    mapping: dict[str, object] = {}
    for key, value in pairs:
        if key in mapping:
            raise ValueError(f"the key {key[:60]!a} stands twice in one object")
        mapping[key] = value
    return mapping


def _constant(word: str) -> object:
    raise ValueError(f"{word} is not JSON")


def _flat(documents: list[object]) -> Iterator[object]:
    """The objects of documents. The items of a ServiceList get their kind from the List."""
    waiting = documents[::-1]
    while waiting:
        match waiting.pop():
            case {"items": list(items), **rest} if not _is_ours(rest.get("kind")):
                kind = rest.get("kind")
                kind = kind.removesuffix("List") if isinstance(kind, str) else ""
                shared = {"apiVersion": rest.get("apiVersion"), "kind": kind} if kind else {}
                waiting += [{**shared, **item} if isinstance(item, dict) else item for item in reversed(items)]
            case list(entries) if any(isinstance(entry, dict) and "kind" in entry for entry in entries):
                raise ValueError("it holds a list of objects: write them one after the other, or put them into a List")
            case document:
                yield document


def _is_ours(kind: object) -> bool:
    return isinstance(kind, str) and kind in KINDS
