"""Fixtures and rules of all tests.

CI skips a test only if it runs elsewhere. hypothesis draws the same examples on every machine.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.children import give_children_default_signals
from tests.lab.features import kernel_has
from tests.lab.lab import Lab
from tests.support import Netns

give_children_default_signals()

CI = bool(os.environ.get("CI"))

settings.register_profile(
    "nftsync",
    deadline=None,  # a busy machine is no fault of the code
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("explore", parent=settings.get_profile("nftsync"), derandomize=False, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "nftsync"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--regenerate", action="store_true", help="write the golden cases' expected files anew; read them afterwards"
    )
    parser.addoption("--server", action="append", help="a version of Kubernetes in place of all that tests run against")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs_kernel"):
        if missing := [kind for kind in mark.args if not kernel_has(kind)]:
            pytest.skip(f"this kernel lacks {', '.join(missing)}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if CI and report.skipped and not any(map(item.get_closest_marker, ("elsewhere", "needs_kernel"))):
        report.outcome = "failed"
        report.longrepr = f"under CI nothing is skipped: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if CI and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"under CI nothing is skipped: {report.longrepr}"
    return report


@pytest.fixture(autouse=True)
def no_log_outlives_its_stream() -> Iterator[None]:
    """Remove log handlers of commands in this process: the next test closes their stderr."""
    yield
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if type(handler) is logging.StreamHandler:
            root.removeHandler(handler)


@pytest.fixture
def netns() -> Iterator[Netns]:
    """A network namespace for one test."""
    yield from _netns()


@pytest.fixture(scope="module")
def shared_netns() -> Iterator[Netns]:
    """A network namespace for the many examples of a property; each example starts with our tables gone."""
    yield from _netns()


def _netns() -> Iterator[Netns]:
    try:
        made = Netns()
    except PermissionError as fault:
        pytest.skip(f"a network namespace needs root: {fault.strerror}")
    yield made
    made.close()


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A client, a router and a node, in three network namespaces."""
    with Lab() as made:
        yield made


@pytest.fixture
def no_dns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any look-up of a name fails the test."""

    def asked(*args: Any, **_: Any) -> None:
        raise AssertionError(f"somebody asked DNS for {args[:1]}")

    for function in ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "gethostbyaddr", "getnameinfo", "getfqdn"):
        monkeypatch.setattr(f"socket.{function}", asked)
