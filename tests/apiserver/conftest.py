"""The real API server as fixtures.

Under CI these tests never skip. Elsewhere they do only where kube-apiserver is not there and can't be built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.apiserver.harness import MANIFESTS, ApiServer, Programs, build_programs, find_programs, may_build
from tests.apiserver.router import running_cluster
from tests.lab.lab import Lab

Start = Callable[..., ApiServer]


@pytest.fixture(scope="session")
def programs(pytestconfig: pytest.Config) -> Programs:
    """etcd and kube-apiserver.

    `make test` has built kube-apiserver. If you run pytest alone, this fixture builds it when
    necessary.
    """
    if found := find_programs():
        return found
    if not may_build():
        pytest.skip("there is no kube-apiserver: run tests/apiserver/build once as root")
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        return build_programs()


@pytest.fixture(scope="session")
def apiserver(programs: Programs) -> Iterator[ApiServer]:
    """One server for all tests that leave it as they found it, with the shipped CRD and RBAC."""
    with ApiServer(programs=programs) as server:
        server.apply(MANIFESTS / "crd.yaml", MANIFESTS / "rbac.yaml")
        yield server


@pytest.fixture(scope="module")
def cluster(programs: Programs) -> Iterator[tuple[Lab, ApiServer]]:
    """The tests of a module that asks for it live in the network namespace of the lab's router."""
    with running_cluster(programs) as running:
        yield running


@pytest.fixture
def start_apiserver(programs: Programs) -> Iterator[Start]:
    """Starts a server of the test's own, empty, with these further flags of kube-apiserver."""
    with ExitStack() as stack:
        yield lambda *options: stack.enter_context(ApiServer(options, programs))


@pytest.fixture
def private_apiserver(start_apiserver: Start) -> ApiServer:
    """A server that the test may kill, restart and compact, with the shipped CRD and RBAC."""
    server = start_apiserver()
    server.apply(MANIFESTS / "crd.yaml", MANIFESTS / "rbac.yaml")
    return server
