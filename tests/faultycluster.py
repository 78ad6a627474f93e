"""A Kubernetes API for a daemon that runs as a process: it serves all kinds at one address.

Each kind has its own faults (see tests/faultyserver.py). The API accepts Events and the Nft's
status and remembers them.
"""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from nftsync.kernel.netns import Namespace
from tests.faultyserver import (
    LIST,
    OTHER,
    PAGE,
    WATCH,
    Fault,
    FaultyServer,
    HttpServer,
    Object,
    never_answers,
    serve,
    waits_for,
)

PATHS = {
    "Service": "/api/v1/services",
    "Nft": "/apis/nft.acnodal.com/v1alpha1/namespaces/arbf-operators/nfts",
    "IPAddressPool": "/apis/metallb.io/v1beta1/namespaces/metallb-system/ipaddresspools",
    "BGPAdvertisement": "/apis/metallb.io/v1beta1/namespaces/metallb-system/bgpadvertisements",
    "BGPPeer": "/apis/metallb.io/v1beta2/namespaces/metallb-system/bgppeers",
    "ConfigMap": "/api/v1/namespaces/metallb-system/configmaps",
    "AddressPool": "/apis/metallb.io/v1beta1/namespaces/metallb-system/addresspools",
    "ConfigurationState": "/apis/metallb.io/v1beta1/namespaces/metallb-system/configurationstates",
}
METALLB = ("IPAddressPool", "BGPAdvertisement", "BGPPeer", "ConfigMap", "AddressPool")  # those that decide
PORT = 6443

_KUBECONFIG = {
    "apiVersion": "v1", "kind": "Config", "current-context": "c",
    "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{PORT}"}}],
    "users": [{"name": "u", "user": {"token": "sesame"}}],
    "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
}  # fmt: skip


class FaultyCluster:
    """Listens in a network namespace, from `listen` until `refuse`, again and again. Use it as a context manager.

    kinds: by kind, the world that answers for it.  rest: the world that takes Events and the status.
    """

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._http: HttpServer | None = None
        self.kinds = {kind: FaultyServer(path, listens=False) for kind, path in PATHS.items()}
        self.rest = FaultyServer("", listens=False)
        self.listen()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for world in self._worlds:
            world.stopping.set()
        self.refuse()

    @property
    def _worlds(self) -> list[FaultyServer]:
        return [*self.kinds.values(), self.rest]

    def _world_of(self, path: str) -> FaultyServer:
        return next((world for world in self.kinds.values() if world.path == path), self.rest)

    # --- the whole server -----------------------------------------------------------------------------------

    def listen(self) -> None:
        if self._http is None:
            self._http = self._namespace.call(serve, ("127.0.0.1", PORT), self._world_of)

    def refuse(self) -> None:
        """Stop listening and cut open connections."""
        if self._http is not None:
            self._http.end()
            self._http = None
        for world in self._worlds:
            world.end_watches()

    def hang(self, *kinds: str) -> None:
        """Accept requests and answer none of them, those of the kinds, or all."""
        self.always(never_answers, *kinds)

    def always(self, fault: Fault, *kinds: str) -> None:
        """Every request meets this fault from now on, until `heal`."""
        for kind in kinds or self.kinds:
            self.kinds[kind].standing.update(dict.fromkeys((LIST, PAGE, WATCH), fault))
        if not kinds:
            self.rest.standing[OTHER] = fault

    def heal(self) -> None:
        """Every request is answered as it should be."""
        for world in self._worlds:
            world.standing.clear()
        for kind, path in PATHS.items():
            self.kinds[kind].path = path
        self.listen()

    def hold(self, *kinds: str, page: str = LIST) -> threading.Event:
        """Answer lists of these kinds only after the event is set.

        page: PAGE to hold all but the first page.
        """
        gate = threading.Event()
        for kind in kinds:
            self.kinds[kind].standing[page] = waits_for(gate)
        return gate

    def uninstall(self, kind: str) -> None:
        """The server knows no such kind: 404."""
        self.kinds[kind].path = f"no {kind} here"

    # --- its objects ----------------------------------------------------------------------------------------

    def put(self, *objects: Object) -> None:
        for raw in objects:
            self.kinds[raw["kind"]].put(raw)

    def remove(self, *objects: Object) -> None:
        for raw in objects:
            with suppress(KeyError):  # it is gone already
                self.kinds[raw["kind"]].delete(raw["metadata"]["namespace"], raw["metadata"]["name"])

    def events(self) -> list[dict[str, Any]]:
        """The Events that it was sent, in their order."""
        return [json.loads(each.body) for each in list(self.rest.requests) if each.path.endswith("/events")]

    def asked(self, kind: str) -> int:
        """The number of list requests for a kind."""
        return self.kinds[kind].count(LIST)


def write_kubeconfig(path: Path) -> Path:
    path.write_text(json.dumps(_KUBECONFIG))
    return path
