"""List and watch against an API server that misbehaves.

In every case the cache ends equal to the server's truth.
"""

from __future__ import annotations

import base64
import itertools
import json
import logging
import os
import random
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nftsync.cluster.api import Api, TooLargeError, split_lines
from nftsync.cluster.backoff import ApiError, Backoff, RestartCause
from nftsync.cluster.cache import ObjectCache
from nftsync.cluster.kubeconfig import SOCKET_OPTIONS, UNSAFE, Kubeconfig, KubeconfigError
from nftsync.cluster.watch import MassDeletion, Timing, Watcher, WatchState
from nftsync.objects.names import NFT, SERVICES, Name, Resource
from nftsync.objects.nft import Nft, parse_nft
from nftsync.objects.service import Service, parse_service
from nftsync.report.events import OBJECT
from tests import faultyserver as faulty
from tests.faultyserver import LIST, OTHER, PAGE, WATCH, Fault, FaultyServer, Object, event_line
from tests.labtools import PATIENCE

QUICK = Backoff(initial=0.004, maximum=0.04, forbidden=0.04, max_retry_after=0.04)
TIMING = Timing(backoff=QUICK)
NEVER = 3600.0  # seconds: whoever waited for that would be caught waiting
TOKEN = "sesame"
UMLAUTS = "Straße: “naïve”, 日本, 🧱"  # two, three and four bytes in UTF-8


def service(name: str, address: str = "192.0.2.1", port: int = 80, uid: str = "") -> Object:
    """A Service of type LoadBalancer as an API object."""
    return {
        "metadata": {"namespace": "shop", "name": name, "uid": uid or f"uid-{name}", "annotations": {"note": UMLAUTS}},
        "spec": {"type": "LoadBalancer", "ports": [{"port": port, "protocol": "TCP"}]},
        "status": {"loadBalancer": {"ingress": [{"ip": address}]}},
    }


class Recorder:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.states: list[WatchState] = []
        self.causes: Counter[RestartCause] = Counter()
        self.contacts = 0
        self.skips: list[str] = []
        self.mass_deletions: list[MassDeletion] = []

    def requested(self, verb: str, status: int | None) -> None:
        """The Api counts its requests."""

    def wrote_status(self, result: str) -> None:
        """A Watcher writes nothing."""

    def sent_event(self, result: str) -> None:
        """A Watcher sends nothing."""

    def watching(self, resource: Resource, state: WatchState) -> None:
        assert resource.kind
        self.states.append(state)

    def restarted(self, resource: Resource, cause: RestartCause) -> None:
        assert resource.kind
        self.causes[cause] += 1

    def contact(self, resource: Resource) -> None:
        assert resource.kind
        self.contacts += 1

    def skipped(self, resource: Resource, message: str) -> None:
        assert resource.kind
        self.skips.append(message)

    def mass_deletion(self, resource: Resource, deletion: MassDeletion, message: str) -> None:
        assert resource.kind in message
        self.mass_deletions.append(deletion)


def wait_for(condition: Callable[[], object], what: str = "the condition", seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true in {seconds} s"
        time.sleep(0.002)


class Lab:
    """One server, one kubeconfig, one watcher in its thread."""

    def __init__(self, server: FaultyServer, folder: Path, **api_options: Any) -> None:
        self.server = server
        self.token_file = folder / "token"
        self.token_file.write_text(TOKEN + "\n")
        self.kubeconfig = folder / "kubeconfig"
        self.point_at(f"http://127.0.0.1:{server.port}")
        self.api = Api(self.kubeconfig, **{"read_timeout": 5.0, **api_options})
        self.stop = threading.Event()
        self.observer = Recorder()
        self.resource = SERVICES
        self.cache: ObjectCache[Service] = ObjectCache(parse_service, lambda: None, time.monotonic)
        self.thread: threading.Thread | None = None
        self.ahead = 0.0

    def point_at(self, url: str, **cluster: object) -> None:
        write_kubeconfig(self.kubeconfig, {"server": url, **cluster}, {"tokenFile": "token"})

    def start(self, timing: Timing = TIMING) -> None:
        watcher = Watcher(
            self.api,
            self.resource,
            self.cache,
            self.stop,
            self.observer,
            timing=timing,
            rng=random.Random(7),
            clock=lambda: time.monotonic() + self.ahead,
        )
        self.thread = threading.Thread(target=watcher.run, daemon=True)
        self.thread.start()

    def started(self, timing: Timing = TIMING) -> None:
        self.start(timing)
        self.converged()
        wait_for(lambda: self.server.count(WATCH) > 0, "a watch")

    def let_the_watch_last(self) -> None:
        wait_for(lambda: self.observer.states[-1:] == [WatchState.WATCHING], "an accepted watch")
        self.ahead += 60.0

    def converged(self) -> None:
        def equal() -> bool:
            return self.cache.synced.is_set() and not self.server.scripted() and self.held() == self.truth()

        wait_for(equal, "equality with the server")

    def held(self) -> dict[Name, Service]:
        return {held.name: held for held in self.cache.objects()}

    def truth(self) -> dict[Name, Service]:
        parsed = [parse_service(raw, None) for raw in list(self.server.objects.values())]
        return {each.name: each for each in parsed if each is not None}

    def end(self) -> None:
        self.stop.set()
        self.api.close()
        if self.thread is not None:
            self.thread.join(PATIENCE)
            assert not self.thread.is_alive(), "the watcher did not end"


def write_kubeconfig(path: Path, cluster: dict[str, object], user: dict[str, object]) -> None:
    document = {
        "kind": "Config",
        "apiVersion": "v1",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": user}],
    }
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(document))  # JSON is YAML
    fresh.replace(path)


@contextmanager
def laboratory(**api_options: Any) -> Iterator[Lab]:
    with tempfile.TemporaryDirectory() as folder, FaultyServer(token=TOKEN) as server:
        lab = Lab(server, Path(folder), **api_options)
        try:
            yield lab
        finally:
            lab.end()


@pytest.fixture
def lab() -> Iterator[Lab]:
    with laboratory() as made:
        yield made


@pytest.fixture
def impatient() -> Iterator[Lab]:
    """A lab whose read time-out is short."""
    with laboratory(read_timeout=0.2) as made:
        yield made


# --- list and watch -----------------------------------------------------------------------------------


def test_a_list_comes_in_pages_and_the_watch_begins_at_its_version(lab: Lab) -> None:
    for number in range(1201):
        lab.server.put(service(f"s{number}"))
    lab.started()
    pages = [request for request in lab.server.requests if request.kind in (LIST, PAGE)]
    assert [request.kind for request in pages] == [LIST, PAGE, PAGE]
    assert {request.query["limit"] for request in pages} == {"500"}
    watch = lab.server.requests[3]
    assert watch.query["resourceVersion"] == "2201"
    assert watch.query["allowWatchBookmarks"] == "true"
    assert 300 <= int(watch.query["timeoutSeconds"]) <= 600
    wait_for(lambda: lab.observer.states == [WatchState.LISTING, WatchState.WATCHING])


def test_what_is_added_changed_and_deleted_later_arrives_through_one_watch(lab: Lab) -> None:
    lab.server.put(service("old"))
    lab.started()
    lab.server.put(service("new"))
    lab.server.put(service("old", port=443))
    lab.server.delete("shop", "new")
    lab.server.put(service("last", address="192.0.2.9"))
    lab.converged()
    assert lab.cache.drain().objects.keys() == {Name("shop", "old"), Name("shop", "new"), Name("shop", "last")}
    assert [request.kind for request in lab.server.requests] == [LIST, WATCH]


def test_nothing_is_synced_before_the_first_list_is_complete(lab: Lab) -> None:
    gate = threading.Event()
    lab.server.largest_page = 1
    lab.server.put(service("one"))
    lab.server.put(service("two"))
    lab.server.script(PAGE, lambda _: gate.wait(PATIENCE) and None)
    lab.start()
    wait_for(lambda: lab.server.count(PAGE) == 1)
    assert not lab.cache.synced.is_set()
    gate.set()
    lab.converged()


def test_a_list_that_stops_halfway_is_not_taken_for_complete(lab: Lab) -> None:
    lab.server.largest_page = 1
    lab.server.put(service("one"))
    lab.server.put(service("two"))
    lab.server.script(PAGE, faulty.never_answers)
    lab.start()
    wait_for(lambda: lab.server.count(PAGE) == 1)
    lab.end()
    assert not lab.cache.synced.is_set()


def test_410_in_the_middle_of_a_list_starts_it_again_from_page_one(lab: Lab) -> None:
    lab.server.largest_page = 1
    lab.server.put(service("one"))
    lab.server.put(service("two"))

    def deletes_and_compacts(handler: faulty.Handler) -> None:
        handler.world.delete("shop", "one")
        handler.world.compact()

    lab.server.script(PAGE, deletes_and_compacts)
    lab.started()
    assert [request.kind for request in lab.server.requests[:3]] == [LIST, PAGE, LIST]
    assert lab.held().keys() == {Name("shop", "two")}


def test_a_deletion_that_was_missed_is_found_by_the_next_list(lab: Lab) -> None:
    lab.server.put(service("stays"))
    lab.server.put(service("goes"))
    lab.started()
    lab.server.script(WATCH, faulty.compacts_first)
    lab.server.end_watches()
    lab.server.delete("shop", "goes")
    lab.converged()
    assert lab.held().keys() == {Name("shop", "stays")}


def test_a_bookmark_moves_the_version_on_without_an_event(lab: Lab) -> None:
    lab.started()
    wait_for(lambda: WatchState.WATCHING in lab.observer.states)
    version = lab.server.bookmark()
    wait_for(lambda: lab.observer.contacts >= 3)  # page, watch, bookmark
    lab.server.end_watches()
    wait_for(lambda: lab.server.count(WATCH) == 2)
    assert lab.server.requests[-1].query["resourceVersion"] == version
    assert lab.server.count(LIST) == 1


def test_a_watch_that_the_server_ends_in_time_goes_on_from_the_same_version(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    lab.started()
    lab.server.put(service("one"))
    lab.converged()
    lab.let_the_watch_last()
    lab.server.end_watches()
    wait_for(lambda: lab.server.count(WATCH) == 2)
    assert lab.server.requests[-1].query["resourceVersion"] == "1001"
    assert lab.observer.causes == {RestartCause.ENDED: 1}
    assert not caplog.records


def test_silence_ends_in_another_watch_from_the_same_version_and_is_no_fault(
    impatient: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    impatient.server.script(WATCH, faulty.stalls)
    impatient.server.put(service("one"))
    impatient.start(Timing(lasting=0.05))
    wait_for(lambda: impatient.server.count(WATCH) == 2)
    versions = {request.query["resourceVersion"] for request in impatient.server.requests if request.kind == WATCH}
    assert versions == {"1001"}
    assert impatient.server.count(LIST) == 1
    assert not caplog.records


def test_a_full_list_in_time_cures_a_watch_that_is_deaf(impatient: Lab) -> None:
    impatient.server.script(WATCH, faulty.stalls, faulty.stalls)
    impatient.start(Timing(relist=(0.3, 0.4), lasting=0.05, backoff=QUICK))
    wait_for(lambda: impatient.server.count(WATCH) == 1)
    impatient.server.put(service("unheard"))
    impatient.converged()
    assert impatient.server.count(LIST) >= 2
    assert impatient.observer.causes[RestartCause.RELIST_DUE] >= 1


def test_lists_are_compressed_and_watches_are_not(lab: Lab) -> None:
    lab.started()
    encodings = {request.kind: request.headers["accept-encoding"] for request in lab.server.requests}
    assert encodings == {LIST: "gzip", WATCH: "identity"}


def test_an_nft_resource_is_asked_for_by_name_and_its_status_wakes_nobody() -> None:
    resource = NFT.watched("arbf-operators", "nft")
    raw: Object = {
        "metadata": {"namespace": "arbf-operators", "name": "nft", "uid": "u", "generation": 1},
        "spec": {"public_nic": "eth0"},
    }
    with laboratory() as lab:
        lab.server.path = resource.path
        lab.server.put(raw)
        cache: ObjectCache[Nft] = ObjectCache(parse_nft, lambda: None, time.monotonic)
        watcher = Watcher(lab.api, resource, cache, lab.stop, lab.observer, timing=TIMING)
        lab.thread = threading.Thread(target=watcher.run, daemon=True)
        lab.thread.start()
        wait_for(cache.synced.is_set)
        assert lab.server.requests[0].query["fieldSelector"] == "metadata.name=nft"
        assert len(cache.drain().objects) == 1
        wait_for(lambda: lab.observer.contacts >= 2)
        lab.server.put({**raw, "status": {"pinholes": 12}})
        wait_for(lambda: lab.observer.contacts >= 3)
        assert not cache.drain().objects


# --- faults -------------------------------------------------------------------------------------------

HUGE = b"x" * (9 << 20)
NAMELESS = event_line("ADDED", {"metadata": {"name": "Not A Name"}})

WATCH_FAULTS: dict[str, Fault] = {
    "never answers": faulty.never_answers,
    "accepts and falls silent": faulty.stalls,
    "resets the connection": faulty.resets,
    "ends at once": faulty.ends_at_once,
    "breaks off in a line": faulty.breaks_off_after(1),
    "splits characters": faulty.dribbles,
    "410 as status": faulty.refusal(410),
    "410 as event": faulty.error_event(410),
    "410 because of compaction": faulty.compacts_first,
    "500 as event": faulty.error_event(500, "unable to decode"),
    "504 too large version": faulty.refusal(504, "Too large resource version: 12, current: 9"),
    "504 of a gateway": faulty.refusal(504),
    "400": faulty.refusal(400),
    "401": faulty.refusal(401),
    "403": faulty.refusal(403),
    "404": faulty.refusal(404),
    "429": faulty.refusal(429, Retry_After="0"),
    "500": faulty.refusal(500),
    "503": faulty.refusal(503),
    "redirect": faulty.refusal(302, Location="http://127.0.0.1:1/"),
    "body that is no JSON": faulty.body(b"<html>welcome to the hotel</html>\n"),
    "garbage line": faulty.first_says(b"}{\n"),
    "line that is no object": faulty.first_says(b"[1]\n"),
    "line without an object": faulty.first_says(b'{"type":"ADDED"}\n'),
    "unknown type": faulty.first_says(event_line("RENAMED", {})),
    "deep nesting": faulty.first_says(b"[" * 100_000 + b"\n"),
    "broken UTF-8": faulty.first_says(b'{"type":"ADDED","object":{"a":"\xff"}}\n'),
    "huge line": faulty.first_says(HUGE),
    "nameless object": faulty.first_says(NAMELESS),
    "empty lines": faulty.first_says(b"\n\n"),
    "duplicate events": faulty.repeats,
    "late deletion of a former bearer": faulty.first_says(event_line("DELETED", service("one", uid="former"))),
}

LIST_FAULTS: dict[str, Fault] = {
    "never answers": faulty.never_answers,
    "resets the connection": faulty.resets,
    "truncated JSON": faulty.body(b'{"kind":"ServiceList","metadata":{"resourceVersion":"12"},"items":[{"meta'),
    "body cut off": faulty.body(b'{"kind":"ServiceList","meta', length=5000),
    "no list": faulty.body(b'{"kind":"Status"}'),
    "items are no list": faulty.body(b'{"metadata":{"resourceVersion":"1"},"items":{"a":1}}'),
    "no version": faulty.body(b'{"metadata":{},"items":[]}'),
    "no JSON": faulty.body(b"<html>welcome to the hotel</html>"),
    "empty": faulty.body(b""),
    "deep nesting": faulty.body(b"[" * 100_000),
    "410": faulty.refusal(410),
    "401": faulty.refusal(401),
    "403": faulty.refusal(403),
    "404": faulty.refusal(404),
    "429": faulty.refusal(429, Retry_After="soon"),
    "500": faulty.refusal(500),
    "503": faulty.refusal(503, Retry_After="0"),
    "redirect": faulty.refusal(307, Location="/elsewhere"),
}


@pytest.mark.parametrize("fault", WATCH_FAULTS.values(), ids=WATCH_FAULTS)
def test_after_a_fault_of_a_watch_the_cache_equals_the_server(impatient: Lab, fault: Fault) -> None:
    impatient.server.put(service("one"))
    impatient.server.put(service("two"))
    impatient.started()
    asked = len(impatient.server.requests)
    impatient.server.script(WATCH, fault, fault)
    impatient.server.end_watches()
    impatient.server.delete("shop", "two")
    impatient.server.put(service("three", port=443))
    impatient.server.put(service("four"))
    impatient.server.put(service("one", address="192.0.2.7"))
    impatient.converged()
    assert len(impatient.server.requests) - asked <= 8


@pytest.mark.parametrize("kind", [LIST, PAGE])
@pytest.mark.parametrize("fault", LIST_FAULTS.values(), ids=LIST_FAULTS)
def test_after_a_fault_of_a_list_the_cache_equals_the_server(impatient: Lab, kind: str, fault: Fault) -> None:
    impatient.server.largest_page = 1
    impatient.server.put(service("one"))
    impatient.server.put(service("two"))
    impatient.server.script(kind, fault, fault)
    impatient.started()
    assert impatient.server.count(LIST) == 3


STORMS: dict[str, tuple[str, Fault]] = {
    "410 as status": (WATCH, faulty.refusal(410)),
    "410 as event": (WATCH, faulty.error_event(410)),
    "410 of every list": (LIST, faulty.refusal(410)),
    "watches that end at once": (WATCH, faulty.ends_at_once),
    "watches that are reset": (WATCH, faulty.resets),
    "garbage": (WATCH, faulty.first_says(b"?\n")),
    "401": (LIST, faulty.refusal(401)),
    "403": (LIST, faulty.refusal(403)),
    "404": (LIST, faulty.refusal(404)),
    "429": (LIST, faulty.refusal(429, Retry_After="0")),
    "500": (WATCH, faulty.refusal(500)),
}


@pytest.mark.parametrize(("kind", "fault"), STORMS.values(), ids=STORMS)
def test_a_fault_that_stays_is_met_ever_more_slowly_and_logged_once(
    lab: Lab, kind: str, fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    lab.server.script(kind, *[fault] * 1000)
    lab.start()
    wait_for(lambda: lab.server.count(kind) >= 8)
    times = [request.at for request in lab.server.requests if request.kind == kind][:8]
    waits = [after - before for before, after in itertools.pairwise(times)]
    assert all(wait >= least for wait, least in zip(waits, (0.004, 0.008, 0.016, *[0.02] * 4), strict=True))
    complaints = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(complaints) == 1
    assert TOKEN not in caplog.text


def test_a_garbled_watch_is_counted_and_listed_again(lab: Lab) -> None:
    lab.server.script(WATCH, faulty.first_says(b"garbage\n"))
    lab.started()
    wait_for(lambda: lab.server.count(LIST) == 2)
    assert lab.observer.causes[RestartCause.MALFORMED] == 1


def test_an_object_without_a_usable_name_harms_no_other(lab: Lab) -> None:
    nameless = service("nameless")
    nameless["metadata"]["name"] = "../../etc"
    lab.server.put(service("one"))
    lab.server.put(nameless)
    lab.server.put(service("two"))
    lab.start()
    wait_for(lambda: lab.held().keys() == {Name("shop", "one"), Name("shop", "two")})
    lab.server.put(nameless)
    lab.server.put(service("three"))
    wait_for(lambda: Name("shop", "three") in lab.held())
    assert len(lab.observer.skips) == 2
    assert lab.server.count(LIST) == 1
    assert "../../etc" in lab.observer.skips[0]


def test_objects_without_a_usable_name_that_come_without_end_make_few_lines(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    nameless = service("nameless")
    nameless["metadata"]["name"] = "../../etc"
    lab.started()
    for number in range(100):
        lab.server.put({**nameless, "spec": {"number": number}})
    wait_for(lambda: len(lab.observer.skips) == 100)
    assert len(caplog.records) == OBJECT[0]


def test_a_server_that_fails_and_returns_without_end_makes_few_lines_and_the_last_one_is_right(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    lab.start(Timing(lasting=0.0, backoff=Backoff(initial=0.0001, maximum=0.0002)))
    for number in range(60):
        lab.server.script(LIST, faulty.refusal(500, f"fault {number}"))
        lab.server.script(WATCH, faulty.first_says(b"garbage\n"))
        lab.server.end_watches()
        wait_for(lambda: not lab.server.scripted())
    lab.converged()
    failed = [line for line in caplog.messages if "watching again" not in line]
    assert len(failed) == OBJECT[0]
    wait_for(lambda: caplog.messages[-1].endswith("watching again"))


def test_only_504_that_speaks_of_the_version_costs_a_list(lab: Lab) -> None:
    lab.started()
    lab.server.script(WATCH, faulty.refusal(504, "upstream timeout"))
    lab.server.end_watches()
    wait_for(lambda: lab.server.count(WATCH) >= 3)
    assert lab.server.count(LIST) == 1
    lab.server.script(WATCH, faulty.refusal(504, "Too large resource version: 2, current: 1"))
    lab.server.end_watches()
    wait_for(lambda: lab.server.count(LIST) == 2)


def test_an_answer_too_large_to_hold_is_fetched_in_smaller_pages() -> None:
    with laboratory(longest_answer=100_000) as lab:
        for number in range(500):
            lab.server.put(service(f"s{number}"))
        lab.started()
        assert [request.query["limit"] for request in lab.server.requests[:2]] == ["500", "20"]
        assert lab.observer.causes == {RestartCause.MALFORMED: 1}


def test_retry_after_is_honoured(lab: Lab) -> None:
    lab.server.script(LIST, faulty.refusal(429, Retry_After="1"))
    lab.started(Timing(backoff=Backoff(initial=0.001, maximum=2.0)))
    first, second = (request.at for request in lab.server.requests if request.kind == LIST)
    assert 1.0 <= second - first < 2.0


def test_a_watch_that_lasted_and_broke_is_followed_at_once(lab: Lab) -> None:
    lab.server.script(WATCH, faulty.breaks_off_after(0))
    lab.started(Timing(backoff=Backoff(initial=30.0)))
    lab.let_the_watch_last()
    lab.server.put(service("one"))
    lab.converged()
    assert [request.kind for request in lab.server.requests] == [LIST, WATCH, WATCH]


def test_an_api_server_that_is_away_is_found_again_when_the_kubeconfig_names_it(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        lab.point_at(f"http://127.0.0.1:{nobody.getsockname()[1]}")
        lab.start()
        wait_for(lambda: lab.observer.causes[RestartCause.UNREACHABLE] >= 3)
    lab.server.put(service("one"))
    lab.point_at(f"http://127.0.0.1:{lab.server.port}")
    lab.converged()
    assert "Connection refused" in caplog.text
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1


OPERATIONS: dict[str, Callable[[FaultyServer, random.Random], None]] = {
    "put": lambda server, rng: void(
        server.put(service(f"s{rng.randrange(5)}", port=rng.randrange(1, 99), uid=f"u{rng.randrange(3)}"))
    ),
    "delete": lambda server, rng: server.delete(*rng.choice(list(server.objects))) if server.objects else None,
    "compact": lambda server, _: server.compact(),
    "bookmark": lambda server, _: void(server.bookmark()),
    "end watches": lambda server, _: server.end_watches(),
    "watch fault": lambda server, rng: server.script(WATCH, rng.choice(list(WATCH_FAULTS.values()))),
    "list fault": lambda server, rng: server.script(LIST, rng.choice(list(LIST_FAULTS.values()))),
}


def void(_: object) -> None:
    """A function for its effect."""


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from(sorted(OPERATIONS)), max_size=25), st.randoms(use_true_random=False))
def test_any_sequence_of_changes_and_faults_ends_in_equality(operations: list[str], rng: random.Random) -> None:
    with laboratory(read_timeout=0.06) as lab:
        lab.start(Timing(lasting=0.02, backoff=Backoff(initial=0.001, maximum=0.01, forbidden=0.01)))
        for operation in operations:
            OPERATIONS[operation](lab.server, rng)
        lab.server.end_watches()
        wait_for(lambda: lab.cache.synced.is_set() and lab.held() == lab.truth(), f"equality after {operations}")


# --- credentials --------------------------------------------------------------------------------------


def test_a_token_file_that_rotates_is_noticed_before_it_is_refused(lab: Lab) -> None:
    lab.started()
    lab.token_file.write_text("open-" + TOKEN)
    lab.server.token = "open-" + TOKEN
    lab.server.end_watches()
    lab.server.put(service("one"))
    lab.converged()
    assert RestartCause.UNAUTHORIZED not in lab.observer.causes


def test_a_rotation_that_leaves_no_trace_is_found_through_401(lab: Lab) -> None:
    lab.started()
    before = lab.token_file.stat()
    lab.token_file.write_text(TOKEN[::-1] + "\n")
    os.utime(lab.token_file, ns=(before.st_atime_ns, before.st_mtime_ns))
    lab.server.token = TOKEN[::-1]
    lab.server.end_watches()
    lab.server.put(service("one"))
    lab.converged()
    assert lab.observer.causes[RestartCause.UNAUTHORIZED] == 1


def test_a_kubeconfig_that_comes_later_is_enough(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    kept = lab.kubeconfig.read_text()
    lab.kubeconfig.unlink()
    lab.server.put(service("one"))
    lab.start()
    wait_for(lambda: lab.observer.causes[RestartCause.KUBECONFIG] >= 3)
    lab.kubeconfig.write_text(kept)
    lab.converged()
    assert f"{lab.kubeconfig}: No such file or directory" in caplog.text


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "Invalid kube-config"),
        ("token: 'sesame\n", "this is not YAML (line 2)"),
        ("token: sesame: sesame", "this is not YAML (line 1)"),
        ("- sesame", "this is not a kubeconfig"),
        (
            "{kind: Config, contexts: [{name: c, context: {cluster: c, user: u}}], users: [{name: u, user: {}}], "
            'clusters: [{name: c, cluster: {server: "https://[::1"}}], current-context: c}',
            "Invalid IPv6 URL",
        ),
        ('"sesame"', "not a kubeconfig"),
        ("{kind: Config, contexts: 7, clusters: [], users: [], current-context: c}", ""),
        ("{kind: Config, contexts: [], clusters: [], users: [], current-context: c}", "Expected object with name c"),
    ],
)
def test_a_kubeconfig_that_is_none_is_refused_in_one_line_without_secrets(
    tmp_path: Path, content: str, complaint: str
) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(content)
    with pytest.raises(KubeconfigError) as caught:
        Api(path).connect()
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert complaint in message
    assert "\n" not in message
    assert TOKEN not in message


@pytest.mark.parametrize(
    "user",
    [
        {"tokenFile": "empty"},
        {"tokenFile": "absent"},
        {"token": "ses\name"},
        {"token": "sésame"},
        {"client-certificate": "absent", "client-key": "absent"},
        {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "/nonexistent/plugin"}},
        {"username": "somebody"},
    ],
    ids=lambda user: "-".join(f"{key}" for key in user),
)
def test_nobody_goes_on_without_the_credentials_that_the_kubeconfig_promises(
    tmp_path: Path, user: dict[str, object]
) -> None:
    (tmp_path / "empty").write_text("\n")
    write_kubeconfig(tmp_path / "kubeconfig", {"server": "https://127.0.0.1:1"}, user)
    with pytest.raises(KubeconfigError) as caught:
        Api(tmp_path / "kubeconfig", allowed=UNSAFE).connect()
    assert "\n" not in str(caught.value)
    assert "same" not in str(caught.value)


@pytest.mark.parametrize(("cluster", "user"), [
    ({"insecure-skip-tls-verify": True}, {"token": TOKEN}),
    ({}, {"token": TOKEN, "exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "/nonexistent/plugin"}}),
    ({}, {"token": TOKEN, "auth-provider": {"name": "oidc"}}),
], ids=["no verification", "exec", "auth-provider"])  # fmt: skip
def test_what_makes_a_kubeconfig_unsafe_is_taken_only_if_it_is_allowed(
    tmp_path: Path, cluster: dict[str, object], user: dict[str, object]
) -> None:
    [key] = UNSAFE.keys() & {*cluster, *user}
    path = tmp_path / "kubeconfig"
    write_kubeconfig(path, {"server": "https://127.0.0.1:1", **cluster}, user)
    with pytest.raises(KubeconfigError) as caught:
        Api(path).connect()
    assert str(caught.value).startswith(f"{path}: nftsync refuses {key}: ")
    assert "unsafe_kubeconfig" in str(caught.value)
    Api(path, allowed=[key]).connect()
    assert TOKEN not in str(caught.value)


def test_a_certificate_that_is_none_is_an_error_of_the_request(tmp_path: Path) -> None:
    user: dict[str, object] = {"client-certificate-data": "%%%", "client-key-data": "%%%"}
    write_kubeconfig(tmp_path / "kubeconfig", {"server": "https://127.0.0.1:1"}, user)
    with pytest.raises(ApiError):
        Api(tmp_path / "kubeconfig").request("GET", "/api")


def test_a_kubeconfig_without_a_user_is_anonymous_on_purpose(tmp_path: Path) -> None:
    write_kubeconfig(tmp_path / "kubeconfig", {"server": "http://127.0.0.1:1"}, {})
    assert Kubeconfig.read(tmp_path / "kubeconfig").identification() == {}


def test_messages_never_show_the_password_of_a_url(tmp_path: Path) -> None:
    write_kubeconfig(tmp_path / "kubeconfig", {"server": "http://admin:sesame@127.0.0.1:1"}, {})
    with pytest.raises(ApiError) as caught:
        Api(tmp_path / "kubeconfig").request("GET", "/api")
    assert str(caught.value) == "GET http://127.0.0.1:1/api: Connection refused"


# --- stopping -----------------------------------------------------------------------------------------


def waiting(lab: Lab) -> bool:
    return WatchState.WAITING in lab.observer.states


STATES: dict[str, tuple[str, Fault, Callable[[Lab], bool]]] = {
    "a list that is not answered": (LIST, faulty.never_answers, lambda lab: lab.server.count(LIST) == 1),
    "a page that is not answered": (PAGE, faulty.never_answers, lambda lab: lab.server.count(PAGE) == 1),
    "a watch that is not answered": (WATCH, faulty.never_answers, lambda lab: lab.server.count(WATCH) == 1),
    "a watch that is quiet": (OTHER, faulty.resets, lambda lab: WatchState.WATCHING in lab.observer.states),
    "a watch whose other end is gone": (WATCH, faulty.stalls, lambda lab: WatchState.WATCHING in lab.observer.states),
    "a wait after a failure": (LIST, faulty.refusal(500), waiting),
    "a wait after a refusal": (LIST, faulty.refusal(403), waiting),
    "a wait that the server asked for": (LIST, faulty.refusal(429, Retry_After=str(NEVER)), waiting),
}


@pytest.mark.parametrize(("kind", "fault", "reached"), STATES.values(), ids=STATES)
def test_stop_ends_what_would_last_for_hours(kind: str, fault: Fault, reached: Callable[[Lab], bool]) -> None:
    with laboratory(read_timeout=NEVER) as lab:
        lab.server.largest_page = 1
        lab.server.put(service("one"))
        lab.server.put(service("two"))
        lab.server.script(kind, fault)
        lab.start(Timing(backoff=Backoff(initial=NEVER, maximum=NEVER, forbidden=NEVER, max_retry_after=NEVER)))
        wait_for(lambda: reached(lab))
        lab.end()


def test_stop_ends_a_quiet_watch_over_tls_whose_ca_is_checked() -> None:
    with laboratory(read_timeout=NEVER) as lab:
        folder = lab.kubeconfig.parent
        make_certificate(folder)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
        lab.server.http.socket = context.wrap_socket(lab.server.http.socket, server_side=True)
        authority = base64.b64encode((folder / "cert.pem").read_bytes()).decode()
        lab.point_at(f"https://127.0.0.1:{lab.server.port}", **{"certificate-authority-data": authority})
        lab.server.put(service("one"))
        lab.started()
        lab.end()


def make_certificate(folder: Path) -> None:
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    command += " -addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=critical,CA:TRUE"
    subprocess.run(
        [*command.split(), "-keyout", "key.pem", "-out", "cert.pem"], cwd=folder, check=True, capture_output=True
    )


# --- requests, lines, waits ---------------------------------------------------------------------------


def test_a_request_brings_its_body_and_its_token(lab: Lab) -> None:
    answer = lab.api.request("PATCH", "/apis/x", {"fieldManager": "nftsync"}, {"a": 1}, "application/merge-patch+json")
    assert answer == {"a": 1}
    request = lab.server.requests[0]
    assert request.query == {"fieldManager": "nftsync"}
    assert request.headers["content-type"] == "application/merge-patch+json"
    assert request.headers["authorization"] == "Bearer sesame"


def test_a_refusal_says_what_where_and_what_to_do(lab: Lab) -> None:
    lab.server.script(LIST, faulty.refusal(403, "services is forbidden:\nuser cannot list"))
    with pytest.raises(ApiError) as caught:
        lab.api.request("GET", "/api/v1/services")
    assert caught.value.status == 403
    assert str(caught.value) == (
        f"GET http://127.0.0.1:{lab.server.port}/api/v1/services: 403 Forbidden: "
        r"'services is forbidden:\nuser cannot list'; grant it to the router's user in the cluster's RBAC"
    )


def test_a_redirect_is_not_followed_with_the_token(lab: Lab) -> None:
    lab.server.script(LIST, faulty.refusal(302, Location=f"http://127.0.0.1:{lab.server.port}/elsewhere"))
    with pytest.raises(ApiError, match="nftsync does not follow redirects"):
        lab.api.request("GET", "/api/v1/services")
    assert len(lab.server.requests) == 1


def test_a_closed_api_refuses_requests(lab: Lab) -> None:
    lab.api.close()
    with pytest.raises(ApiError, match="shutting down"):
        lab.api.request("GET", "/api/v1/services")


def test_connections_notice_a_dead_peer(lab: Lab) -> None:
    lab.started()
    (connected,) = (each for each in lab.api._sockets if each.fileno() >= 0)
    assert [connected.getsockopt(level, option) for level, option, _ in SOCKET_OPTIONS] == [1, 1, 30, 10, 3, 60_000]


def test_the_clients_library_is_loaded_only_for_a_connection() -> None:
    probe = (
        "import sys, nftsync.cluster.watch; sys.exit(any(m in sys.modules for m in ('kubernetes', 'urllib3', 'yaml')))"
    )
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0


@given(st.lists(st.binary(min_size=1).filter(lambda line: b"\n" not in line)), st.data())
def test_lines_come_out_whole_however_they_were_cut(lines: list[bytes], data: st.DataObject) -> None:
    sent = b"".join(line + b"\n" for line in lines) + b"a cut-off rest"
    cuts = sorted(data.draw(st.sets(st.integers(0, len(sent)))))
    pieces = [sent[start:end] for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True)]
    assert list(split_lines(pieces, 1000, "x")) == lines


def test_a_line_that_never_ends_is_not_collected_for_ever() -> None:
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield b"x" * 100

    with pytest.raises(TooLargeError):
        list(split_lines(endless(), 1000, "x"))
    assert taken == 11


@given(st.integers(1, 10**9), st.randoms(use_true_random=False), st.sampled_from([None, 429, 500, 403, 404]))
def test_no_wait_is_longer_than_the_longest_and_none_is_nothing(
    failures: int, rng: random.Random, status: int | None
) -> None:
    for retry_after in (None, 0.0, 5.0, 1e9):
        wait = Backoff().wait(failures, ApiError("x", status, retry_after), rng)
        assert 0.8 <= wait <= 30.0
        if status in (403, 404):
            assert 6.4 <= wait <= 8.0
        elif retry_after:
            assert wait >= min(retry_after, 30.0)
        else:
            assert wait <= 8.0


def test_waits_double_from_the_first_to_the_longest_with_jitter() -> None:
    rng = random.Random(1)
    drawn = [[Backoff().wait(failures, ApiError("x"), rng) for _ in range(300)] for failures in range(1, 8)]
    for waits, least in zip(drawn, (0.8, 1.6, 3.2, 4.0, 4.0, 4.0, 4.0), strict=True):
        assert least <= min(waits) < 1.1 * least
        assert 1.9 * least < max(waits) <= 2 * least <= 8.0


# --- kinds that the cluster may lack ------------------------------------------------------------------


@pytest.fixture
def optional() -> Iterator[Lab]:
    """A lab whose kind the cluster may lack, or not show."""
    with laboratory() as made:
        made.resource = replace(SERVICES, optional=True)
        yield made


def told(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


@contextmanager
def refusing(lab: Lab, status: int) -> Iterator[None]:
    """Refuse every list and end the watch under way; within, the watcher has tried some more times in vain."""
    before = lab.server.count(LIST)
    lab.server.script(LIST, *[faulty.refusal(status)] * 1000)
    if lab.thread is None:
        lab.start()
    else:
        lab.server.script(WATCH, faulty.refusal(status))
        lab.let_the_watch_last()
        lab.server.end_watches()
    wait_for(lambda: lab.server.count(LIST) >= before + 5, "tries")
    yield
    lab.server._faults[LIST].clear()


def test_an_optional_kind_that_comes_and_goes_without_end_makes_few_lines(
    optional: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    optional.server.script(LIST, *[faulty.refusal(status) for status in (403, 404)] * 50)
    optional.started()
    assert len(caplog.records) == OBJECT[0]


@pytest.mark.parametrize(
    ("status", "level", "message"), [(404, logging.INFO, "not installed"), (403, logging.WARNING, "403")]
)
def test_nobody_waits_for_an_optional_kind_that_is_not_there_or_not_shown(
    optional: Lab, caplog: pytest.LogCaptureFixture, status: int, level: int, message: str
) -> None:
    """It is asked for again and again, counted as no restart, logged once, and taken up when it comes."""
    caplog.set_level(logging.INFO)
    with refusing(optional, status):
        assert optional.cache.synced.is_set()
        assert optional.observer.states[:4] == [WatchState.LISTING, WatchState.ABSENT] * 2
        (line,) = told(caplog, level)
        assert message in line
        assert level == logging.WARNING or not told(caplog, logging.WARNING)
    optional.server.put(service("late"))
    optional.converged()
    wait_for(
        lambda: optional.observer.states[-3:] == [WatchState.ABSENT, WatchState.LISTING, WatchState.WATCHING], "a watch"
    )
    assert not optional.observer.causes


@pytest.mark.parametrize(("status", "level"), [(404, logging.INFO), (403, logging.WARNING)])
def test_of_an_optional_kind_that_goes_or_may_no_longer_be_read_every_object_stays(
    optional: Lab, caplog: pytest.LogCaptureFixture, status: int, level: int
) -> None:
    """A server that is starting says of every kind but its own that it does not have it."""
    caplog.set_level(logging.INFO)
    optional.server.put(service("one"))
    optional.server.put(service("goes"))
    optional.started()
    optional.cache.drain()
    assert optional.cache.readable
    with refusing(optional, status):
        optional.server.delete("shop", "goes")
        assert optional.held().keys() == {Name("shop", "one"), Name("shop", "goes")}
        assert not optional.cache.drain().objects
        assert optional.cache.synced.is_set()
        assert not optional.cache.readable
        assert optional.observer.causes == {
            RestartCause.ENDED: 1
        }, "the watch that the server ended as it may, and nothing else"
        assert len(told(caplog, level)) == 1
    optional.converged()
    wait_for(lambda: optional.cache.readable, "a complete list")
    assert optional.held().keys() == {Name("shop", "one")}


def test_rights_that_were_taken_away_are_one_warning(optional: Lab, caplog: pytest.LogCaptureFixture) -> None:
    optional.started()
    optional.server.script(
        WATCH, faulty.refusal(403, 'services is forbidden: User "router" cannot watch resource "services"')
    )
    optional.server.script(
        LIST, faulty.refusal(403, 'services is forbidden: User "router" cannot list resource "services"')
    )
    optional.let_the_watch_last()
    optional.server.end_watches()
    wait_for(
        lambda: optional.observer.states[-3:] == [WatchState.ABSENT, WatchState.LISTING, WatchState.WATCHING], "a watch"
    )
    assert len(told(caplog, logging.WARNING)) == 1


def test_an_optional_kind_that_may_be_listed_and_not_watched_is_listed_again_and_again(
    optional: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    readable: list[bool] = []
    optional.observer.watching = lambda *_: readable.append(optional.cache.readable)  # type: ignore[method-assign]
    optional.server.standing[WATCH] = faulty.refusal(403)
    optional.server.put(service("one"))
    optional.start()
    wait_for(lambda: optional.held().keys() == {Name("shop", "one")}, "the first list")
    optional.server.delete("shop", "one")
    optional.server.put(service("two"))
    wait_for(lambda: optional.held().keys() == {Name("shop", "two")}, "a later list")
    assert readable[0] is False, "before the first list"
    assert all(readable[1:]), "what was listed is not told as lost after each list"
    assert len(told(caplog, logging.WARNING)) == 1


@pytest.mark.parametrize("status", [500, 503, 401, 429])
def test_any_other_fault_of_an_optional_kind_is_a_fault(optional: Lab, status: int) -> None:
    optional.server.script(LIST, faulty.refusal(status, Retry_After="0"))
    optional.started()
    assert WatchState.WAITING in optional.observer.states
    assert WatchState.ABSENT not in optional.observer.states
    assert optional.observer.causes.total() == 1


@pytest.mark.parametrize(("status", "cause"), [(404, RestartCause.NOT_FOUND), (403, RestartCause.FORBIDDEN)])
def test_a_kind_that_is_needed_is_waited_for(
    lab: Lab, caplog: pytest.LogCaptureFixture, status: int, cause: RestartCause
) -> None:
    with refusing(lab, status):
        assert not lab.cache.synced.is_set()
        assert lab.observer.states[:4] == [WatchState.LISTING, WatchState.WAITING] * 2
        assert lab.observer.causes[cause] >= 4
        assert len(told(caplog, logging.WARNING)) == 1
    lab.converged()
    assert lab.observer.causes.keys() == {cause}
    assert WatchState.ABSENT not in lab.observer.states


@pytest.mark.parametrize("status", [404, 403])
def test_of_a_kind_that_is_needed_no_refusal_takes_an_object_away(lab: Lab, status: int) -> None:
    lab.server.put(service("one"))
    lab.started()
    lab.cache.drain()
    lab.let_the_watch_last()
    lab.server.script(WATCH, *[faulty.refusal(status)] * 3)
    lab.server.end_watches()
    wait_for(lambda: lab.server.count(WATCH) >= 4)
    assert lab.held().keys() == {Name("shop", "one")}
    assert not lab.cache.drain().objects
    lab.converged()


# --- lists that are suddenly much smaller -------------------------------------------------------------

GUARDED = replace(TIMING, second_look=0.2)


def lacking(names: set[str]) -> Fault:
    """A complete list that has lost these objects."""

    def fault(handler: faulty.Handler) -> bool:
        page = handler.world.page(0, "")
        assert page
        page["items"] = [each for each in page["items"] if each["metadata"]["name"] not in names]
        handler.answer(200, json.dumps(page).encode())
        return faulty.DONE

    return fault


def begin_with(lab: Lab, count: int) -> set[str]:
    """A watcher that knows so many objects; returns their names."""
    names = {f"s{number}" for number in range(count)}
    for name in names:
        lab.server.put(service(name))
    lab.started(GUARDED)
    lab.cache.drain()
    return names


def lists(lab: Lab, *faults: Fault) -> None:
    """Make it list anew, and meet these."""
    before = lab.server.count(LIST)
    lab.server.script(LIST, *faults)
    lab.server.script(WATCH, faulty.error_event(410))
    lab.server.end_watches()
    wait_for(lambda: lab.server.count(LIST) > before and not lab.server.scripted(), "new lists")


def test_what_one_list_lacks_and_the_next_has_was_never_gone(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    names = begin_with(lab, 40)
    with caplog.at_level(logging.WARNING):
        lists(lab, lacking({f"s{number}" for number in range(5, 40)}))
        wait_for(lambda: lab.observer.mass_deletions == [MassDeletion.RAISED, MassDeletion.REFUTED], "a second look")
    assert {each.name for each in lab.held()} == names
    assert lab.cache.drain().objects == {}
    assert "they stay open until a second list confirms it" in caplog.text
    lab.converged()


def test_what_two_lists_lack_is_gone_and_nothing_before_the_second(lab: Lab) -> None:
    names = begin_with(lab, 40)
    gone = {f"s{number}" for number in range(5, 40)}
    began = time.monotonic()
    lists(lab, lacking(gone), lacking(gone))
    assert time.monotonic() - began >= GUARDED.second_look
    wait_for(lambda: lab.observer.mass_deletions == [MassDeletion.RAISED, MassDeletion.CONFIRMED], "a second look")
    assert {each.name for each in lab.held()} == names - gone


@pytest.mark.parametrize(
    ("known", "lost", "doubted"), [(21, 11, True), (22, 11, False), (19, 10, False), (12, 11, True), (11, 11, True)]
)
def test_more_than_half_and_more_than_ten_are_many(lab: Lab, known: int, lost: int, doubted: bool) -> None:  # noqa: FBT001
    names = begin_with(lab, known)
    gone = {f"s{number}" for number in range(lost)}
    lists(lab, lacking(gone), *([lacking(gone)] if doubted else []))
    wait_for(lambda: {each.name for each in lab.held()} == names - gone, "they are gone")
    wanted = [MassDeletion.RAISED, MassDeletion.CONFIRMED] if doubted else []
    wait_for(lambda: lab.observer.mass_deletions == wanted, f"{wanted}")


def test_what_a_list_in_doubt_does_hold_is_taken_up_at_once(lab: Lab) -> None:
    begin_with(lab, 40)
    lab.server.end_watches()
    lab.server.put(service("s0", "192.0.2.99"))
    lab.server.put(service("new"))
    gone = {f"s{number}" for number in range(5, 40)}
    lists(lab, lacking(gone), lacking(gone))
    wait_for(lambda: MassDeletion.RAISED in lab.observer.mass_deletions, "a doubt")
    assert str(lab.held()[Name("shop", "s0")].addresses[0]) == "192.0.2.99"
    assert Name("shop", "new") in lab.held()


def test_a_second_list_that_fails_keeps_the_doubt(lab: Lab) -> None:
    names = begin_with(lab, 40)
    gone = {f"s{number}" for number in range(5, 40)}
    lists(lab, lacking(gone), faulty.refusal(500), lacking(gone), faulty.resets, lacking(gone), lacking(gone))
    wait_for(lambda: MassDeletion.CONFIRMED in lab.observer.mass_deletions, "a second look")
    assert lab.observer.mass_deletions == [
        MassDeletion.RAISED,
        MassDeletion.RAISED,
        MassDeletion.RAISED,
        MassDeletion.CONFIRMED,
    ]
    assert {each.name for each in lab.held()} == names - gone


def test_a_doubt_whose_second_list_fails_ends_with_a_list_that_has_them_again(lab: Lab) -> None:
    names = begin_with(lab, 40)
    lists(lab, lacking({f"s{number}" for number in range(5, 40)}), faulty.refusal(500))
    wait_for(lambda: lab.observer.mass_deletions == [MassDeletion.RAISED, MassDeletion.REFUTED], "the end of the doubt")
    assert {each.name for each in lab.held()} == names


def test_a_second_list_that_lacks_others_confirms_nothing(lab: Lab) -> None:
    names = begin_with(lab, 60)
    some, others = {f"s{number}" for number in range(35)}, {f"s{number}" for number in range(25, 60)}
    seen = []

    def notes(handler: faulty.Handler) -> bool | None:
        seen.append({each.name for each in lab.held()})
        return lacking(others)(handler)

    lists(lab, lacking(some), lacking(others), notes)
    wait_for(lambda: MassDeletion.CONFIRMED in lab.observer.mass_deletions, "a list that says the same")
    assert seen == [names], "what one list alone lacked is still there"
    assert {each.name for each in lab.held()} == names - others
    assert lab.observer.mass_deletions == [MassDeletion.RAISED, MassDeletion.RAISED, MassDeletion.CONFIRMED]


def test_others_in_the_place_of_most_are_no_less_doubtful(lab: Lab) -> None:
    """As after a backup of another cluster was restored: the list has grown, and has lost all that was known."""
    names = begin_with(lab, 20)
    lab.server.end_watches()
    for number in range(60):
        lab.server.put(service(f"other{number}"))
    lists(lab, lacking(names), lacking(names))
    wait_for(lambda: lab.observer.mass_deletions == [MassDeletion.RAISED, MassDeletion.CONFIRMED], "a second look")


def test_what_comes_between_two_lists_does_not_refute_what_both_lack(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    names = begin_with(lab, 21)
    gone = {f"s{number}" for number in range(11)}

    def meanwhile(handler: faulty.Handler) -> bool | None:
        for number in range(10):
            handler.world.put(service(f"new{number}"))
        return lacking(gone)(handler)

    with caplog.at_level(logging.WARNING):
        lists(lab, lacking(gone), meanwhile)
        wait_for(lambda: lab.observer.mass_deletions == [MassDeletion.RAISED, MassDeletion.CONFIRMED], "a second look")
    assert {each.name for each in lab.held()} == names - gone | {f"new{number}" for number in range(10)}
    assert "11 of 21 objects of the kind Service are missing from the list" in caplog.text
    assert "a second list also lacks 11 of the 11 missing objects of the kind Service" in caplog.text


def test_those_that_a_second_list_has_again_stay(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    names = begin_with(lab, 40)
    gone, back = {f"s{number}" for number in range(30)}, {f"s{number}" for number in range(20)}
    with caplog.at_level(logging.WARNING):
        lists(lab, lacking(gone), lacking(gone - back))
        wait_for(lambda: lab.observer.mass_deletions == [MassDeletion.RAISED, MassDeletion.REFUTED], "a second look")
    assert {each.name for each in lab.held()} == names - (gone - back)
    assert "a second list has 20 of the 30 missing objects of the kind Service again" in caplog.text


def remembered(names: set[str]) -> dict[Name, Service]:
    """As the process before this one has accepted them."""
    parsed = [parse_service(service(name), None) for name in names]
    return {each.name: each for each in parsed if each}


@pytest.mark.parametrize("second", ["the same", "all again"])
def test_the_first_list_is_held_against_what_was_open_before_the_restart(lab: Lab, second: str) -> None:
    names = {f"s{number}" for number in range(40)}
    gone = {f"s{number}" for number in range(5, 40)}
    seen = []

    def looks(handler: faulty.Handler) -> bool | None:
        seen.append(lab.cache.synced.is_set())
        return lacking(gone if second == "the same" else set())(handler)

    for name in names:
        lab.server.put(service(name))
    lab.cache = ObjectCache(parse_service, lambda: None, time.monotonic, remembered=remembered(names))
    lab.server.script(LIST, lacking(gone), looks)
    lab.start(GUARDED)
    wait_for(lab.cache.synced.is_set, "a list that counts")
    assert seen == [False], "nothing may be done before: what is missing is known to the kernel alone"
    assert {each.name for each in lab.held()} == (names - gone if second == "the same" else names)
    outcome = MassDeletion.CONFIRMED if second == "the same" else MassDeletion.REFUTED
    wait_for(lambda: lab.observer.mass_deletions == [MassDeletion.RAISED, outcome], "a second look")


def test_a_first_list_that_has_most_of_what_was_open_before_the_restart_counts_at_once(lab: Lab) -> None:
    names = {f"s{number}" for number in range(21)}
    lab.cache = ObjectCache(parse_service, lambda: None, time.monotonic, remembered=remembered(names))
    for number in range(11):
        lab.server.put(service(f"s{number}"))
    lab.started(GUARDED)
    assert lab.observer.mass_deletions == []


def test_deletions_that_a_watch_tells_of_are_meant(lab: Lab) -> None:
    begin_with(lab, 40)
    for number in range(38):
        lab.server.delete("shop", f"s{number}")
    lab.converged()
    assert len(lab.held()) == 2
    assert lab.observer.mass_deletions == []


def test_a_kind_that_is_not_cautious_and_a_first_list_are_believed(lab: Lab) -> None:
    lab.resource = replace(SERVICES, guarded=False)
    names = begin_with(lab, 40)
    gone = {f"s{number}" for number in range(5, 40)}
    lists(lab, lacking(gone))
    wait_for(lambda: {each.name for each in lab.held()} == names - gone, "they are gone")
    assert lab.observer.mass_deletions == []


def test_stop_ends_a_doubt_that_would_last_for_hours(lab: Lab) -> None:
    names = {f"s{number}" for number in range(40)}
    for name in names:
        lab.server.put(service(name))
    lab.started(replace(TIMING, second_look=NEVER))
    lists(lab, lacking(names))
    wait_for(lambda: lab.observer.mass_deletions == [MassDeletion.RAISED], "a doubt")
    lab.stop.set()
    assert lab.thread
    lab.thread.join(PATIENCE)
    assert not lab.thread.is_alive()
    assert len(lab.held()) == 40


def test_a_watch_that_expires_between_failures_does_not_begin_the_waits_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server ends a watch at once, says to the next one that its version is gone, and so on."""
    stop, asked, waits = threading.Event(), itertools.count(1), list[int]()

    class Server:
        def request(self, *_: object) -> Object:
            return {"metadata": {"resourceVersion": "1"}, "items": []}

        @contextmanager
        def stream(self, *_: object) -> Iterator[Iterator[bytes]]:
            if next(asked) % 2 == 0:
                raise ApiError("410 Gone", 410)
            yield iter(())

    def wait(_: Backoff, failures: int, *__: object) -> float:
        waits.append(failures)
        if len(waits) == 4:
            stop.set()
        return 0.0

    monkeypatch.setattr(Backoff, "wait", wait)
    Watcher(Server(), SERVICES, ObjectCache(parse_service), stop, Recorder()).run()  # type: ignore[arg-type]
    assert waits == [1, 2, 3, 4]
