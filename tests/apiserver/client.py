"""A client of a real API server for tests: JSON requests as one user, without retries."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import urllib3

MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"


class RefusedError(Exception):
    """The server answered with an error. status: HTTP status.  body: usually a Status object."""

    def __init__(self, request: str, status: int, body: Any) -> None:
        self.status = status
        self.body = body
        self.message = str(body.get("message", "")) if isinstance(body, dict) else str(body)
        super().__init__(f"{request}: {status}: {self.message}")


def refusal_of(request: Callable[[], object]) -> int | None:
    """The HTTP status with which the server refuses this request; None if it grants it."""
    try:
        request()
    except RefusedError as refused:
        return refused.status
    return None


class Client:
    """JSON requests as one user, without retries. Every method but watch() gives the parsed answer.

    All raise RefusedError for a status of 400 and above, and urllib3's HTTPError if there is no answer.
    """

    def __init__(self, url: str, certificate: Path, token: str) -> None:
        self._url = url
        self._token = token
        self._pool = urllib3.PoolManager(ca_certs=str(certificate), retries=False)

    def get(self, path: str, query: Mapping[str, str] | None = None, *, accept: str = "application/json") -> Any:
        return self._request("GET", path, query=query, headers={"Accept": accept})

    def post(self, path: str, body: object, query: Mapping[str, str] | None = None) -> Any:
        return self._request("POST", path, body, query=query)

    def put(self, path: str, body: object, query: Mapping[str, str] | None = None) -> Any:
        return self._request("PUT", path, body, query=query)

    def patch(self, path: str, body: object, query: Mapping[str, str] | None = None) -> Any:
        """A JSON merge patch (RFC 7386)."""
        return self._request("PATCH", path, body, query=query, headers={"Content-Type": MERGE_PATCH})

    def apply(self, path: str, body: object, manager: str) -> Any:
        """Server-side apply as this field manager, without force."""
        headers = {"Content-Type": APPLY_PATCH}
        return self._request("PATCH", path, body, query={"fieldManager": manager}, headers=headers)

    def delete(self, path: str) -> Any:
        return self._request("DELETE", path)

    def watch(self, path: str, version: str | None = None, *, seconds: int = 30) -> Iterator[Any]:
        """Events since `version`, or of everything there is and what follows; ends after `seconds`."""
        query = {"watch": "true", "timeoutSeconds": str(seconds)}
        if version is not None:
            query["resourceVersion"] = version
        response = self._open("GET", path, query=query)
        try:
            for line in response:
                if line.strip():
                    yield json.loads(line)
        finally:
            response.close()

    def _request(self, method: str, path: str, body: object = None, **how: Mapping[str, str] | None) -> Any:
        response = self._open(method, path, body, **how)
        return parsed(response.read())

    def _open(self, method: str, path: str, body: object = None, **how: Mapping[str, str] | None) -> Any:
        """The answer, not read yet. how: `query` and further `headers`."""
        query = how.get("query")
        headers = {
            "Authorization": f"Bearer {self._token}",
            "Content-Type": "application/json",
            **(how.get("headers") or {}),
        }
        response = self._pool.request(
            method,
            self._url + path + (f"?{urlencode(query)}" if query else ""),
            body=None if body is None else json.dumps(body),
            headers=headers,
            timeout=urllib3.Timeout(connect=5.0, read=90.0),
            preload_content=False,
        )
        if response.status >= 400:
            raise RefusedError(f"{method} {path}", response.status, parsed(response.read()))
        return response


def parsed(data: bytes) -> Any:
    """From JSON; else the text that it is."""
    try:
        return json.loads(data)
    except ValueError:
        return data.decode(errors="replace")
