# SPDX-License-Identifier: Apache-2.0
"""HTTP to one endpoint of a registry: authorization, redirects, retries.

Owns the loop around a request; does not know what a manifest or a blob is. Invariants: an
``Authorization`` header, and those of ``hosts.toml``, only go to the endpoint itself, never to
where it redirects, and what is said there is in no message; no foreign exception leaves; a body is
read by the caller only after its status was expected.

Threads share a transport: each takes a connection of its own from the pool.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar
from urllib.parse import quote, urljoin, urlsplit

import urllib3
from urllib3.exceptions import HTTPError

from firstread import __version__
from firstread.errors import AuthError, FirstreadError, LimitError, SourceError, TransportError
from firstread.oci.auth import LookUp, look_up
from firstread.oci.bearer import LOGIN_HINT, Authorizer, TokenRequest
from firstread.oci.calls import current, pause, within
from firstread.oci.connections import Connections
from firstread.oci.encoding import decoded
from firstread.oci.endpoint import default_endpoint, follow, origin, shown
from firstread.oci.faults import backoff, from_exception, from_response, quote_error
from firstread.oci.hosts import Endpoint
from firstread.oci.logins import Credentials
from firstread.oci.options import AccessOptions
from firstread.oci.reference import Reference
from firstread.units import KiB, MiB

T = TypeVar("T")
SUCCESS: Final = range(200, 300)
ANY: Final = range(1000)
Body = bytes | Callable[[], Iterable[bytes]]
"""Of a request; a function, where it is too long to keep, is called for each attempt."""

LEAST_SECRET: Final = 4  # characters; a shorter one would make messages unreadable
MAX_ANSWER: Final = 4 * MiB  # bytes; of an answer that is kept in memory, such as a manifest
ERROR_S: Final = 5.0  # seconds for the text of an error; then it has none
DRAIN_S: Final = 2.0  # seconds for what nobody reads; else the connection is closed
_MAX_REDIRECTS: Final = 5
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_SAME_METHOD: Final = frozenset({307, 308})  # those of them that keep method and body
_DRAIN: Final = 64 * KiB  # bytes; less is read to its end, to keep the connection


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer.

    Args:
        status: HTTP status.
        headers: case does not matter.
        data: the body.
        url: that answered, after redirects.
    """

    status: int
    headers: Mapping[str, str]
    data: bytes
    url: str

    def location(self, otherwise: str = "") -> str:
        """Return where the answer points to, as a whole URL.

        Args:
            otherwise: this, if it points nowhere.

        Raises:
            SourceError: it points nowhere.
        """
        target = self.headers.get("Location", "") or otherwise
        if not target:
            raise SourceError(f"registry {shown(self.url)}: its answer has no Location")
        return follow(self.url, target)


class Transport:
    """Requests to one endpoint, about the repository of one reference.

    Args:
        reference: names host and repository.
        actions: what will be done in the repository: ``pull`` or ``pull,push``.
        options: how.
        endpoint: which; None for the registry itself.

    Attributes:
        root: path of the repository in the API, without a slash at its end.
    """

    def __init__(
        self,
        reference: Reference,
        actions: str,
        options: AccessOptions,
        endpoint: Endpoint | None = None,
    ) -> None:
        self.options = options
        endpoint = endpoint or default_endpoint(reference.host, options)
        self.base = endpoint.base
        self.root = f"{endpoint.path}/{reference.repository}"
        self._host = endpoint.host
        self._headers = {name.title(): value for name, value in endpoint.headers}
        self._query = f"ns={quote(endpoint.namespace)}" if endpoint.namespace else ""
        self._connections = Connections(endpoint, options)
        self._closed = threading.Event()
        self._reference = reference
        self._account = endpoint.host if endpoint.namespace else reference.host
        self._looked: LookUp | None = None  # for credentials, last
        self._authorizer = Authorizer(
            [f"repository:{reference.repository}:{actions}"] if reference.repository else [],
            self._credentials,
            self._fetch_token,
        )

    def _credentials(self) -> Credentials | None:
        options = self.options
        self._looked = look_up(
            self._account,
            self._reference.repository,
            options.auth_file,
            directory=options.credentials_dir,
            logins=options.logins,
        )
        return self._looked.credentials

    @property
    def was_challenged(self) -> bool:
        """Whether the registry has asked for credentials."""
        return self._authorizer.was_challenged

    def allow_mount(self, repository: str) -> None:
        """Ask for the right to read another repository of the registry, too."""
        self._authorizer.widen(f"repository:{repository}:pull")

    def request(
        self,
        method: str,
        url: str,
        *,
        what: str,
        expect: Container[int] = (200,),
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        retry: bool = True,
        stay: bool = False,
    ) -> Answer:
        """Send a request and return the whole answer.

        Args:
            method: HTTP method.
            url: whole, or a path from the root of the registry.
            what: is being done, for messages: ``"cannot …"``.
            expect: status codes that are answers; all others are errors.
            headers: besides those that every request has.
            body: of the request.
            retry: send it again after a transient failure.
            stay: a redirect to another host is not followed: it is the answer.

        Raises:
            SourceError: the registry refuses, cannot be reached, is too slow or hangs up.
            LimitError: the answer has more than `MAX_ANSWER` bytes.
        """

        def exchange() -> Answer:
            response, final = self._expected(method, url, what, expect, headers, body, stay=stay)
            data = self._read_whole(response, what, final)
            return Answer(response.status, response.headers, data, final)

        return self._persist(exchange, retry=retry)

    def open(
        self,
        method: str,
        url: str,
        *,
        what: str,
        expect: Container[int] = (200,),
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        retry: bool = True,
    ) -> tuple[urllib3.BaseHTTPResponse, str]:
        """Send a request; return the answer, its body unread, and the URL that gave it.

        Arguments and errors as `request`; the caller gives the answer to `release`.
        """
        return self._persist(
            lambda: self._expected(method, url, what, expect, headers, body), retry=retry
        )

    def wait(self, attempt: int, error: TransportError) -> None:
        """Wait before the next attempt, or raise `error` if there is to be none.

        Args:
            attempt: failed ones without progress before this, from 0.
            error: why there is to be another.
        """
        options = self.options
        delay = backoff(attempt, options.retry_base, options.retry_limit, error.retry_after)
        if attempt >= options.retries or delay is None or pause(delay, self._closed):
            raise error

    def close(self) -> None:
        """Close idle connections and end the waits between attempts."""
        self._closed.set()
        self._connections.close()

    def _persist(self, exchange: Callable[[], T], *, retry: bool = True) -> T:
        """Do an exchange, again after a transient failure."""
        attempt = 0
        while True:
            try:
                return exchange()
            except AuthError as exc:
                self._tell_where(exc)
                raise
            except TransportError as exc:
                if not retry:
                    raise
                self.wait(attempt, exc)
            attempt += 1

    def _tell_where(self, error: AuthError) -> None:
        """Say in the hint who has looked for credentials, and where; a command's files may differ.

        A command has none but those that log-ins made, so what is not there is not worth a word.
        """
        looked, who = self._looked, self.options.who
        if looked is None or not (who or looked.read_any):
            return
        told = f"{who or 'this command'} {looked}"
        if told not in (error.hint or ""):
            error.hint = f"{error.hint}; {told}" if error.hint else told

    def _expected(
        self,
        method: str,
        url: str,
        what: str,
        expect: Container[int],
        headers: Mapping[str, str] | None,
        body: Body | None,
        *,
        stay: bool = False,
    ) -> tuple[urllib3.BaseHTTPResponse, str]:
        """Do one exchange; return an answer that was expected, unread, and who gave it."""
        sent = dict(headers or {})
        response, final = self._follow(
            method,
            urljoin(self.base, self._named(url)),
            lambda url: self._authorized(method, url, sent, body),
            stay=stay,
        )
        if response.status not in expect:
            raise self._refusal(response, what, final)
        return response, final

    def _follow(
        self,
        method: str,
        url: str,
        send: Callable[[str], urllib3.BaseHTTPResponse],
        *,
        stay: bool = False,
    ) -> tuple[urllib3.BaseHTTPResponse, str]:
        """Send, and send again to where an answer redirects; return the last answer and its URL.

        What is not read is sent elsewhere only on the same host, and only if the method is kept.
        """
        for _ in range(_MAX_REDIRECTS + 1):
            response = send(url)
            target = response.headers.get("Location")
            reads = method in ("GET", "HEAD")
            if not target or response.status not in (_REDIRECTS if reads else _SAME_METHOD):
                return response, url
            try:
                following = follow(url, target)
            except SourceError:
                if stay:
                    return response, url
                release(response)
                raise
            if stay and not self.is_own(following):
                return response, url
            release(response)
            here, url = url, following
            if not reads and origin(url) != origin(here):
                raise SourceError(
                    f"registry {self._host} redirects what it is sent to {shown(url)}"
                )
        raise SourceError(f"registry {self._host} redirects without end")

    def is_own(self, url: str) -> bool:
        """Return whether a URL is of the endpoint itself."""
        try:
            return origin(url) == origin(self.base)
        except (SourceError, ValueError):
            return False

    def _named(self, url: str) -> str:
        """Add the registry whose content is wanted, unless the endpoint itself made the URL."""
        if not self._query or not url.startswith("/"):
            return url
        return f"{url}{'&' if urlsplit(url).query else '?'}{self._query}"

    def _authorized(
        self, method: str, url: str, headers: dict[str, str], body: Body | None
    ) -> urllib3.BaseHTTPResponse:
        """Send once, and once more with what the registry wants to see."""
        if origin(url) != origin(self.base):
            return self._send(method, url, headers, body)
        sent = self._authorizer.header()
        response = self._send(method, url, self._own(headers, sent), body)
        if response.status not in (401, 403):
            return response
        try:
            challenge = response.headers.get("WWW-Authenticate", "")
            changed = self._authorizer.refused(challenge, sent, denied=response.status == 403)
        except FirstreadError:
            release(response)
            raise
        if not changed:
            return response
        release(response)
        return self._send(method, url, self._own(headers, self._authorizer.header()), body)

    def _own(self, headers: dict[str, str], authorization: str | None) -> dict[str, str]:
        """Return the headers of a request to the endpoint itself."""
        shown = {"Authorization": authorization} if authorization else {}
        return self._headers | headers | shown

    def _send(
        self, method: str, url: str, headers: dict[str, str], body: Body | None
    ) -> urllib3.BaseHTTPResponse:
        """Do one HTTP exchange. Raises: SourceError."""
        data = body() if callable(body) else body
        try:
            if (call := current()) is not None:
                call.check()
            return self._connections.request(
                method, url, _COMMON_HEADERS | headers | _IDENTITY, data
            )
        except (HTTPError, OSError) as exc:
            raise from_exception(exc, url) from exc

    def quoted(self, answer: Answer) -> str:
        """Return what an answer says, for a message; ``""`` if it is of another host."""
        return quote_error(answer.data, self._secrets()) if self.is_own(answer.url) else ""

    def _secrets(self) -> list[str]:
        """Return what was sent and must be in no message."""
        secrets = self._authorizer.secrets()
        for value in self._headers.values():
            secrets += _secrets_in(value)
        if self.options.logins is not None:
            secrets += self.options.logins.secrets()
        return [secret for secret in secrets if len(secret) >= LEAST_SECRET]

    def _refusal(self, response: urllib3.BaseHTTPResponse, what: str, url: str) -> SourceError:
        try:
            with within(ERROR_S):
                return from_response(response, what, url, self._secrets(), quote=self.is_own(url))
        finally:
            release(response)

    def _read_whole(self, response: urllib3.BaseHTTPResponse, what: str, url: str) -> bytes:
        """Return the body of an answer.

        Raises:
            TransportError: it ends before the length that was announced, or takes too long.
            LimitError: it has more than `MAX_ANSWER` bytes.
        """
        try:
            with within(self.options.answer_timeout):
                try:
                    data = response.read(MAX_ANSWER + 1)
                except (HTTPError, OSError) as exc:
                    raise from_exception(exc, url) from exc
        finally:
            left = getattr(response, "length_remaining", None)
            release(response)
        if len(data) > MAX_ANSWER:
            raise LimitError(f"{what}: the answer has more than {MAX_ANSWER} bytes")
        if left:  # urllib3 says so only to who goes on reading
            raise TransportError(
                f"{what}: the answer of {shown(url)} broke off, {left} bytes are missing"
            )
        return decoded(data, response.headers.get("Content-Encoding", ""), MAX_ANSWER)

    def _fetch_token(self, request: TokenRequest) -> bytes:
        """Send a token request; called by the authorizer."""
        secret = request.body is not None or "Authorization" in request.headers
        if secret and self.base.startswith("https:") and request.url.startswith("http:"):
            raise AuthError("the registry wants the password to be sent without TLS")
        what = "cannot get a token"

        def send(url: str) -> urllib3.BaseHTTPResponse:
            headers = request.headers if origin(url) == origin(request.url) else {}
            if origin(url) == origin(self.base):
                headers = self._headers | headers
            if request.url.startswith("https:") and url.startswith("http:"):
                raise AuthError("the token server wants the token to be sent without TLS")
            return self._send(request.method, url, headers, request.body)

        def exchange() -> bytes:
            response, url = self._follow(request.method, request.url, send)
            if response.status == 200:
                return self._read_whole(response, what, url)
            error = self._refusal(response, what, url)
            raise error if error.retryable else AuthError(error.message, hint=LOGIN_HINT)

        return self._persist(exchange)


_COMMON_HEADERS: Final = {"User-Agent": f"firstread/{__version__}"}
_IDENTITY: Final = {"Accept-Encoding": "identity"}  # a digest is that of the bytes on the wire


def _secrets_in(header: str) -> list[str]:
    """Return what may be secret in the value of a header, with and without its scheme."""
    values = [header, *header.split(", ")]
    return [*values, *(value.partition(" ")[2] for value in values)]


def release(response: urllib3.BaseHTTPResponse) -> None:
    """Give the connection back: reused if little of the body is left, else closed."""
    left = getattr(response, "length_remaining", None)
    if left is not None and left <= _DRAIN:
        with within(DRAIN_S):
            response.drain_conn()
        response.release_conn()
    else:
        response.close()
