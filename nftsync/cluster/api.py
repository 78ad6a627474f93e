"""Requests to the Kubernetes API, with the official client's configuration and connection pool.

nftsync uses no other part of that client. Its typed models, Watch and informers are too slow, or
they give up or spin on faults of real API servers. This module turns third-party exceptions into
ApiError.
"""

import json
import re
import socket
import threading
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.client import responses
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from nftsync import __version__
from nftsync.cluster.backoff import ApiError, RestartCause
from nftsync.cluster.kubeconfig import Kubeconfig
from nftsync.objects.names import Resource, quote

PAGE = 500  # objects, as in kubectl and client-go
JSON = "application/json"
PIECE = 65536  # bytes read at once
LONGEST_LINE = 8 << 20  # bytes
CONNECT_TIMEOUT = 5.0  # seconds
LONGEST_COMPLAINT = 65536  # bytes to read of an error's body

_WARNING = re.compile(r'\b299 \S+ "((?:[^"\\]|\\.)*)"')
_MOST_WARNINGS = 10
_REDIRECTED = "nftsync does not follow redirects: name the API server itself in the kubeconfig"
_ADVICE = {
    **dict.fromkeys((301, 302, 303, 307, 308), _REDIRECTED),
    401: "the API server does not know these credentials: renew the token or certificate of the kubeconfig",
    403: "grant it to the router's user in the cluster's RBAC",
    404: "the cluster does not know this resource: install its CustomResourceDefinition",
}


class MalformedAnswerError(ApiError):
    """The answer does not have the shape that the Kubernetes API defines."""

    _cause = RestartCause.MALFORMED


class TooLargeError(MalformedAnswerError):
    """An answer, or one line of a watch, exceeds the limit of its size."""


class Api:
    """A connection to one cluster's API server, for any number of threads.

    allowed: the keys of kubeconfig.UNSAFE that the kubeconfig may have.
    count: called with the verb and the status of each answer; None stands for no answer.
    read_timeout: seconds.
    longest_answer: bytes, after decompression.
    """

    def __init__(  # tests set the limits
        self,
        kubeconfig: Path,
        *,
        allowed: Collection[str] = (),
        count: Callable[[str, int | None], None] = lambda _verb, _status: None,
        read_timeout: float = 20.0,
        longest_answer: int = 64 << 20,
    ) -> None:
        self._kubeconfig = kubeconfig
        self._allowed = allowed
        self._count = count
        # Called with the text of each warning that comes with an answer of request().
        self.warned: Callable[[str], None] = lambda _text: None
        self._read_timeout = read_timeout
        self._longest_answer = longest_answer
        self._session_lock = threading.Lock()
        self._session: tuple[Kubeconfig, Any] | None = None  # with a urllib3.PoolManager
        self._socket_lock = threading.Lock()
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._closed = False

    def connect(self) -> tuple[Kubeconfig, Any]:
        """The kubeconfig, read again after a change, and its pools. Raises KubeconfigError."""
        if self._closed:
            raise ApiError("shutting down")
        with self._session_lock:
            if self._session is None or self._session[0].changed():
                self._session = None
                kubeconfig = Kubeconfig.read(self._kubeconfig, self._allowed)
                self._session = kubeconfig, kubeconfig.pools(self._track)
            return self._session

    def close(self) -> None:
        """End every request under way, from any thread, except a connect(), and refuse new ones."""
        with self._socket_lock:
            self._closed = True
            for connected in self._sockets:
                _shut(connected)

    def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: object = None,
        content_type: str = JSON,
    ) -> Any:
        """The answer's parsed JSON; None without a body. body: sent as JSON. Raises ApiError."""
        headers = {"Accept-Encoding": "gzip"} | ({} if body is None else {"Content-Type": content_type})
        with self._exchange(method, path, query or {}, headers, body) as response:
            content = bytearray()
            for piece in response.stream(PIECE, decode_content=True):
                content += piece
                if len(content) > self._longest_answer:
                    raise TooLargeError(f"{method} {path}: the answer is larger than {self._longest_answer} bytes")
            response.release_conn()
            for warning in _warnings(response.headers.getlist("Warning")):
                self.warned(warning)
        return parse_json(content, f"{method} {path}: the answer") if content else None

    @contextmanager
    def stream(self, path: str, query: Mapping[str, str]) -> Iterator[Iterator[bytes]]:
        """The lines of an answer, as they come. Raises ApiError, also while you read them.

        They end with the answer, or after read_timeout seconds of silence: a quiet server and a
        dead connection look the same, and a new request helps against both.
        """
        with self._exchange("GET", path, query, {"Accept-Encoding": "identity"}, None) as response:
            # Without chunks, a read blocks until its buffer is full: read byte by byte.
            pieces = response.stream(PIECE if response.chunked else 1, decode_content=False)
            yield split_lines(pieces, LONGEST_LINE, f"GET {path}")

    @contextmanager
    def _exchange(
        self, method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str], body: object
    ) -> Iterator[Any]:
        """The answer to a request; you read its body. Raises ApiError, also while you read."""
        import urllib3

        kubeconfig, pools = self.connect()
        what, verb = f"{method} {kubeconfig.server}{path}", "WATCH" if "watch" in query else method
        response = None
        try:
            response = pools.urlopen(
                method,
                kubeconfig.configuration.host + path + ("?" + urlencode(query) if query else ""),
                headers={
                    "Accept": JSON,
                    "User-Agent": f"nftsync/{__version__}",
                    **kubeconfig.identification(),
                    **headers,
                },
                body=None if body is None else json.dumps(body).encode(),
                timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT, read=self._read_timeout),
                retries=False,
                redirect=False,
                preload_content=False,
            )
            self._count(verb, int(response.status))
            if response.status == 401:  # read the kubeconfig again with the next request
                with self._session_lock:
                    self._session = None
            if not 200 <= response.status < 300:
                raise _refusal(what, response)
            yield response
        except (urllib3.exceptions.HTTPError, OSError) as error:
            if response is None:
                self._count(verb, None)
            raise ApiError(f"{what}: {'shutting down' if self._closed else _cause(error)}") from error
        finally:
            if response is not None:
                response.close()

    def _track(self, connected: socket.socket) -> None:
        """Remember a socket so that close() can end the threads that block in it."""
        with self._socket_lock:
            self._sockets.add(connected)
            if self._closed:
                _shut(connected)


def list_objects(
    api: Api,
    resource: Resource,
    put: Callable[[object], None],
    *,
    page: int = PAGE,
    answered: Callable[[], None] = lambda: None,
) -> tuple[Resource, str]:
    """Pass every object of a list to `put`.

    Returns the resource that the server served, and the list's resourceVersion, where a watch continues.
    page: the number of objects in memory at once.
    answered: called for each page that arrives, before its objects go to `put`.
    Raises ApiError, and the exceptions of `put` and `answered`.
    """
    query = {**dict(resource.query), "limit": str(page)}
    try:
        version, token = _take_page(api, resource.path, query, put, answered)
    except ApiError as error:
        if resource.otherwise is None or error.status not in (403, 404):
            raise
        return list_objects(api, resource.otherwise, put, page=page, answered=answered)
    while token:
        _, token = _take_page(api, resource.path, {**query, "continue": token}, put, answered)
    return resource, version  # the first page's: the watch repeats the changes since then


def _take_page(
    api: Api, path: str, query: dict[str, str], put: Callable[[object], None], answered: Callable[[], None]
) -> tuple[str, str]:
    """The resourceVersion, and the token for the next page or "". No page stays in memory."""
    page = api.request("GET", path, query)
    answered()
    match page:
        case {"metadata": {"resourceVersion": str(version), **metadata}, **rest} if version:
            items = rest.get("items") or []
            if isinstance(items, list):
                for item in items:
                    put(item)
                return version, str(metadata.get("continue") or "")
    raise MalformedAnswerError(f"GET {path}: the answer is not a list of objects with a resourceVersion")


def parse_json(content: bytes | bytearray, what: str) -> Any:
    """The value of a JSON text. Raises MalformedAnswerError.  what: a name for the text."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise MalformedAnswerError(
            f"{what} is not JSON: look for a proxy between the router and the API server"
        ) from None


def split_lines(pieces: Iterable[bytes], longest: int, what: str) -> Iterator[bytes]:
    """The complete, non-empty lines, without their line ends, until the pieces end or a time-out.

    It splits bytes, because a character can arrive in two pieces. Raises TooLargeError for a line
    of more than `longest` bytes.
    """
    from urllib3.exceptions import ReadTimeoutError

    rest = bytearray()
    with suppress(ReadTimeoutError):
        for piece in pieces:
            rest += piece
            if b"\n" in piece:
                *lines, rest = rest.split(b"\n")
                yield from map(bytes, filter(None, lines))
            if len(rest) > longest:
                raise TooLargeError(f"{what}: a line is longer than {longest} bytes")


def _warnings(values: Iterable[str]) -> Iterator[str]:
    """The texts of Warning headers (RFC 7234, 5.5), as API servers write them."""
    for match in islice(_WARNING.finditer(", ".join(values)), _MOST_WARNINGS):
        yield quote(re.sub(r"\\(.)", r"\1", match[1]), 300)[1:-1]


def _refusal(what: str, response: Any) -> ApiError:
    status = int(response.status)
    try:
        message = json.loads(response.read(LONGEST_COMPLAINT, decode_content=True)).get("message")
    except (ValueError, RecursionError, AttributeError):
        message = None
    reason = f"{status} {responses.get(status, '')}".strip() + (f": {quote(message, 300)}" if message else "")
    advice = f"; {_ADVICE[status]}" if status in _ADVICE else ""
    retry_after = response.headers.get("Retry-After", "")
    seconds = float(retry_after) if retry_after.isascii() and retry_after.isdigit() else None
    return ApiError(f"{what}: {reason}{advice}", status, seconds)


def _cause(error: Exception) -> str:
    """A transport's exception in words. Its text has memory addresses: each would look new."""
    from urllib3 import exceptions as urllib3

    if isinstance(error, urllib3.ConnectTimeoutError) and not isinstance(error, urllib3.NewConnectionError):
        return "no connection in time: check the server's address, and firewalls on the way"
    if isinstance(error, urllib3.ReadTimeoutError):
        return "no answer in time"
    if isinstance(error, urllib3.SSLError):
        return f"TLS: {quote(str(error), 200)}: check the certificate-authority of the kubeconfig"
    inner: BaseException | None = error
    while inner is not None and not (isinstance(inner, OSError) and inner.strerror):
        inner = inner.__cause__ or inner.__context__
    if not isinstance(inner, OSError):
        return f"the connection broke off ({type(error).__name__})"
    return f"{inner.strerror}: {inner.filename}" if inner.filename else str(inner.strerror)


def _shut(connected: socket.socket) -> None:
    """Wake the thread that blocks in a socket."""
    with suppress(OSError):  # it is closed already
        # SSLSocket.shutdown() would destroy the state that this thread uses.
        socket.socket.shutdown(connected, socket.SHUT_RDWR)
