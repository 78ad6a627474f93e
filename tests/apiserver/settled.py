"""An API server does not act at once on an object that it has accepted.

It learns of tokens, rights and kinds through caches of its own.

Each function says whether the caches have caught up. The harness waits for that, so that no test has to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from tests.apiserver.client import Client, RefusedError, refusal_of

_RBAC = "/apis/rbac.authorization.k8s.io/v1"
_REVIEWS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"

Raw = Mapping[str, Any]


def knows_bearer(client: Client) -> bool:
    """Whether the server takes this client's token, whatever its bearer may do."""
    return refusal_of(lambda: client.get("/api")) != 401


def grants_rights(admin: Client, namespace: str) -> bool:
    """Whether the server grants all rights that bindings give to the ServiceAccounts of a namespace."""
    reviews = [{"spec": {"user": user, "resourceAttributes": right}} for user, right in _rights(admin, namespace)]
    return all(admin.post(_REVIEWS, review)["status"]["allowed"] for review in reviews)


def serves_kind(admin: Client, definition: Raw) -> bool:
    """Whether the server lists objects of a CustomResourceDefinition's kind.

    Discovery must name the kind, too.
    """
    for group, plural in _served(definition):
        try:
            known = {each["name"] for each in admin.get(group)["resources"]}
            admin.get(f"{group}/{plural}")
        except RefusedError:
            return False
        if plural not in known:
            return False
    return True


def serves_no_kind(admin: Client, definition: Raw) -> bool:
    """Whether the server no longer knows the kind of a CustomResourceDefinition that was deleted."""
    paths = [f"{group}/{plural}" for group, plural in _served(definition)]
    return all(refusal_of(partial(admin.get, path)) == 404 for path in paths)


def _served(definition: Raw) -> Iterator[tuple[str, str]]:
    spec = definition["spec"]
    for version in spec["versions"]:
        if version["served"]:
            yield f"/apis/{spec['group']}/{version['name']}", spec["names"]["plural"]


def _rights(admin: Client, namespace: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Who may do what, as resourceAttributes of a SubjectAccessReview."""
    bindings = [
        each for kind in ("clusterrolebindings", "rolebindings") for each in admin.get(f"{_RBAC}/{kind}")["items"]
    ]
    for binding in bindings:
        users = [
            f"system:serviceaccount:{namespace}:{subject['name']}"
            for subject in binding.get("subjects") or ()
            if subject["kind"] == "ServiceAccount" and subject["namespace"] == namespace
        ]
        if users:
            where = binding["metadata"].get("namespace", "")
            for rule in _rules(admin, binding["roleRef"], where):
                yield from ((user, {**right, "namespace": where}) for user in users for right in _each(rule))


def _rules(admin: Client, role: Raw, namespace: str) -> list[Raw]:
    """None if the role is not there."""
    path = f"{_RBAC}/clusterroles" if role["kind"] == "ClusterRole" else f"{_RBAC}/namespaces/{namespace}/roles"
    try:
        return admin.get(f"{path}/{role['name']}")["rules"] or []
    except RefusedError as refused:
        if refused.status != 404:
            raise
        return []


def _each(rule: Raw) -> Iterator[dict[str, str]]:
    for group in rule.get("apiGroups", ()):
        for resource, _, subresource in (each.partition("/") for each in rule.get("resources", ())):
            for verb in rule["verbs"]:
                for name in rule.get("resourceNames", [""]):
                    yield {"group": group, "resource": resource, "subresource": subresource, "verb": verb, "name": name}
