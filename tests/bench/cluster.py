"""A real API server with many Services, if kube-apiserver and etcd are here."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nftsync.objects.names import Name
from tests.apiserver.harness import MANIFESTS, ApiServer, Programs
from tests.bench.measure import address_of, nft_resource, service

BATCH = 100  # keys; etcd takes 128 operations in a transaction


@contextmanager
def cluster(programs: Programs, count: int) -> Iterator[Path]:
    """Yields a kubeconfig of the shipped ServiceAccount. The servers run in the calling thread's network namespace."""
    with ApiServer(programs=programs) as server:
        server.apply(MANIFESTS / "crd.yaml", MANIFESTS / "rbac.yaml")
        server.apply_object({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}})
        nft = nft_resource()
        server.apply_object({**nft, "metadata": {key: nft["metadata"][key] for key in ("name", "namespace")}})
        _fill(server, count)
        yield server.kubeconfig()


def _fill(server: ApiServer, count: int) -> None:
    """Two Services, limited and not, are made through the API; the others are their copies in etcd.

    All that differs between two Services has the same length, so a copy of the stored protobuf is valid.
    """
    templates = [_stored(server, number) for number in (0, 1)]
    for start in range(0, count, BATCH):
        puts = []
        for number in range(start, min(start + BATCH, count)):
            like = 0 if number % 10 == 0 else 1
            value = templates[like]
            for old, new in zip(_particulars(like), _particulars(number), strict=True):
                value = value.replace(old, new)
            puts.append({"requestPut": {"key": _base64(_key(number)), "value": _base64(value)}})
        server._etcd_request("txn", {"success": puts})


def _stored(server: ApiServer, number: int) -> bytes:
    """What etcd holds of a Service, with the UID of our choice."""
    whole = service(number)
    name = Name(whole["metadata"]["namespace"], whole["metadata"]["name"])
    sent: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {key: whole["metadata"][key] for key in ("name", "namespace", "labels", "annotations")},
        "spec": {key: whole["spec"][key] for key in ("type", "externalTrafficPolicy", "selector", "ports")},
    }
    del sent["spec"]["ports"][0]["nodePort"]
    collection = f"/api/v1/namespaces/{name.namespace}/services"
    made = server.admin.post(collection, sent)
    server.admin.put(f"{collection}/{name.name}/status", {**made, "status": whole["status"]})
    found = server._etcd_request("range", {"key": _base64(_key(number))})
    uid: str = made["metadata"]["uid"]
    return base64.b64decode(found["kvs"][0]["value"]).replace(uid.encode(), whole["metadata"]["uid"].encode())


def _key(number: int) -> bytes:
    return f"/registry/services/specs/shop/{service(number)['metadata']['name']}".encode()


def _particulars(number: int) -> tuple[bytes, ...]:
    """What makes a Service differ from the others, all of fixed length."""
    metadata = service(number)["metadata"]
    return metadata["name"].encode(), metadata["uid"].encode(), address_of(number).encode()


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
