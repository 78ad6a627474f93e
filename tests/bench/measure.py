"""What every part of the benchmark needs: Services as an API server sends them, samples taken in turns, tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

CREATED = "2025-01-01T00:00:00Z"
NIC = "public0"  # the lab's name for the router's interface towards the client


def address_of(number: int) -> str:
    """Of a Service below 15,600. All have the same length."""
    return f"172.20.{100 + number // 100}.{100 + number % 100}"


def service(number: int, *, port: int = 443, protocol: str = "TCP") -> dict[str, Any]:
    """One of many Services as a real API server sends it, about 1.7 KB of JSON; every tenth is rate-limited."""
    name = f"shop-frontend-{number:05d}"
    cluster_ip = f"10.96.{number >> 8}.{number & 255}"
    annotations = {"metallb.universe.tf/ip-allocated-from-pool": "public"}
    if number % 10 == 0:
        annotations["ratelimit"] = "2 mbytes/second burst 512 kbytes"
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            "namespace": "shop",
            "uid": f"6f9619ff-8b86-4d01-b42d-{number:012x}",
            "resourceVersion": str(100_000 + number),
            "creationTimestamp": CREATED,
            "labels": {"app.kubernetes.io/name": name, "app.kubernetes.io/managed-by": "Helm"},
            "annotations": annotations,
            "managedFields": [_managed("helm", _HELM), _managed("controller", _METALLB)],
        },
        "spec": {
            "type": "LoadBalancer",
            "clusterIP": cluster_ip,
            "clusterIPs": [cluster_ip],
            "externalTrafficPolicy": "Cluster",
            "internalTrafficPolicy": "Cluster",
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "ports": [{"name": "https", "port": port, "protocol": protocol, "targetPort": 8443, "nodePort": 30_443}],
            "selector": {"app.kubernetes.io/name": name},
            "sessionAffinity": "None",
        },
        "status": {"loadBalancer": {"ingress": [{"ip": address_of(number)}]}},
    }


_HELM: dict[str, Any] = {
    "f:metadata": {"f:labels": {".": {}, "f:app.kubernetes.io/managed-by": {}, "f:app.kubernetes.io/name": {}}},
    "f:spec": {
        "f:externalTrafficPolicy": {},
        "f:internalTrafficPolicy": {},
        "f:ports": {
            'k:{"port":443,"protocol":"TCP"}': {
                ".": {},
                "f:name": {},
                "f:port": {},
                "f:protocol": {},
                "f:targetPort": {},
            }
        },
        "f:selector": {},
        "f:sessionAffinity": {},
        "f:type": {},
    },
}
_METALLB: dict[str, Any] = {
    "f:metadata": {"f:annotations": {".": {}, "f:metallb.universe.tf/ip-allocated-from-pool": {}}},
    "f:status": {"f:loadBalancer": {"f:ingress": {}}},
}


def _managed(manager: str, fields: dict[str, Any]) -> dict[str, Any]:
    head = {"apiVersion": "v1", "fieldsType": "FieldsV1", "manager": manager, "operation": "Update", "time": CREATED}
    return {**head, "fieldsV1": fields}


def nft_resource() -> dict[str, Any]:
    metadata = {"name": "nft", "namespace": "arbf-operators", "uid": "1-2-3", "generation": 1, "resourceVersion": "99"}
    return {"apiVersion": "nft.acnodal.com/v1alpha1", "kind": "Nft", "metadata": metadata, "spec": {"public_nic": NIC}}


Samples = dict[str, list[float]]


def in_turns(contestants: Mapping[str, Callable[[], float]], rounds: int) -> Samples:
    """Samples of each, taken A B C A B C …, so that whatever else the machine does befalls all of them."""
    samples: Samples = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, measure in contestants.items():
            samples[name].append(measure())
    return samples


@dataclass(frozen=True, slots=True)
class Goal:
    """A ratio or a quantity, and what it should be."""

    text: str
    met: bool

    def __str__(self) -> str:
        return f"  {'met   ' if self.met else 'MISSED'}  {self.text}"


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: the first column is words, the others are numbers."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    print(f"\n{title}")
    for row in (header, ["-" * width for width in widths], *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        print("  " + "  ".join(cells))


def spread(samples: Sequence[float], scale: float, digits: int = 2) -> list[str]:
    """Median, 95th percentile and number of samples, for a table's row."""
    ordered = sorted(samples)
    worst = ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]
    return [f"{median(ordered) * scale:.{digits}f}", f"{worst * scale:.{digits}f}", str(len(ordered))]
