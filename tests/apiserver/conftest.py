"""The real API servers as fixtures: an old one and today's.

Under CI these tests never skip. Elsewhere they do only where kube-apiserver is not there and can't be built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.apiserver.harness import MANIFESTS, ApiServer, Programs, programs_of, versions
from tests.apiserver.router import running_cluster
from tests.lab.lab import Lab
from tests.programs.cache import ProgramsError

Start = Callable[..., ApiServer]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "programs" in metafunc.fixturenames:
        wanted = metafunc.config.getoption("server") or versions()
        metafunc.parametrize("programs", wanted, indirect=True, scope="session")


@pytest.fixture(scope="session")
def programs(request: pytest.FixtureRequest, pytestconfig: pytest.Config) -> Programs:
    """Each Kubernetes in turn.

    `make test` has built them. If you run pytest alone, this fixture builds what is missing.
    """
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        try:
            return programs_of(request.param)
        except ProgramsError as fault:
            pytest.skip(str(fault))


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
