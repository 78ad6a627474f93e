"""A kind of an older version, or a narrower list, is read in the place of one that the server refuses."""

from __future__ import annotations

from typing import Any

import pytest

from nftsync.cluster.api import list_objects
from nftsync.cluster.backoff import ApiError
from nftsync.objects.names import FORMER_POOL, LEGACY, PEER, POOL, Resource, metallb


class Refusing:
    """An API that answers with empty lists, and refuses some paths or queries."""

    def __init__(self, **statuses: int) -> None:
        self.statuses = statuses
        self.asked: list[str] = []

    def request(self, _method: str, path: str, query: dict[str, str]) -> object:
        place = path.split("/")[3] if path.startswith("/apis") else query.get("fieldSelector", "all")
        self.asked.append(place)
        if place in self.statuses:
            raise ApiError("refused", self.statuses[place])
        return {"metadata": {"resourceVersion": "7"}, "items": []}


def listed(api: Any, resource: Resource) -> Resource:
    served, version = list_objects(api, resource, lambda _: None)
    assert version == "7"
    return served


def test_the_newest_version_that_the_server_serves_is_read() -> None:
    assert listed(Refusing(), FORMER_POOL.watched("m")).path.endswith("/v1beta1/namespaces/m/addresspools")
    for status in (403, 404):
        older = Refusing(v1beta1=status)
        assert listed(older, FORMER_POOL.watched("m")).path.endswith("/v1alpha1/namespaces/m/addresspools")
        assert older.asked == ["v1beta1", "v1alpha1"]
    assert listed(Refusing(v1beta2=404), PEER.watched("m")).path.endswith("/v1beta1/namespaces/m/bgppeers")


def test_an_outage_is_no_reason_to_read_another_version() -> None:
    api: Any = Refusing(v1beta1=503)
    with pytest.raises(ApiError):
        list_objects(api, FORMER_POOL.watched("m"), lambda _: None)
    assert api.asked == ["v1beta1"]
    api = Refusing(v1beta1=404)
    with pytest.raises(ApiError):
        list_objects(api, POOL.watched("m"), lambda _: None)


def test_without_the_right_to_read_every_config_map_the_usual_one_is_read() -> None:
    (every,) = (resource for resource in metallb("m") if resource.kind == LEGACY.name)
    assert listed(Refusing(), every).query == ()
    assert listed(Refusing(all=403), every).query == (("fieldSelector", "metadata.name=config"),)
    (named,) = (resource for resource in metallb("m", "mine") if resource.kind == LEGACY.name)
    api = Refusing()
    assert listed(api, named).query == (("fieldSelector", "metadata.name=mine"),)
    assert api.asked == ["metadata.name=mine"], "others are not read"
