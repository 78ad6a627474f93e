"""The fields that `kubectl apply` sent and that an API server did not keep. Old servers do not say so."""

from contextlib import suppress

from nftsync.cluster.api import Api, list_objects
from nftsync.cluster.backoff import ApiError
from nftsync.objects.fields import removed
from nftsync.objects.names import SERVICE, Malformed, Resource, identify, mapping


def not_kept(api: Api, resource: Resource) -> list[str]:
    """A line for each such field of the objects of a list. Of Services, those of type LoadBalancer count.

    A list that is not there, or that RBAC forbids, has none. Raises ApiError.
    """
    lines: list[str] = []

    def look(raw: object) -> None:
        with suppress(Malformed):  # the daemon tells of such an object
            given = mapping(raw, "the object")
            if resource.kind != SERVICE.name or mapping(given.get("spec"), "spec").get("type") == "LoadBalancer":
                texts, name = removed(given, resource.kind).texts, identify(given)[0]
                lines.extend(f"{name}: {text}; the API server did not keep it" for text in texts)

    try:
        list_objects(api, resource, look)
    except ApiError as error:
        if error.status not in (403, 404):
            raise
    return lines
