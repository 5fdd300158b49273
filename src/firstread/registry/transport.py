# SPDX-License-Identifier: Apache-2.0
"""One attempt at an endpoint of a registry, with what it wants to see and where it redirects.

Owns authorization and redirects; does not know what a manifest or a blob is, and never tries again
what failed. Invariants: an ``Authorization`` header, and those of ``hosts.toml``, only go to the
endpoint itself, never to where it redirects, and no message has what is said there; no foreign
exception leaves; the caller reads a body only after its status was expected.

Threads share a transport: each takes a connection of its own from the pool.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final, NamedTuple
from urllib.parse import quote, urljoin, urlsplit

import urllib3

from firstread.errors import AuthError, FirstreadError, LimitError, SourceError
from firstread.oci.reference import Reference
from firstread.registry.answer import Answer, read_whole, release
from firstread.registry.auth import LookUp, look_up
from firstread.registry.bearer import LOGIN_HINT, Authorizer, TokenRequest
from firstread.registry.calls import within
from firstread.registry.connections import Connections
from firstread.registry.credentials import Credentials
from firstread.registry.endpoint import follow, origin, shown
from firstread.registry.faults import from_response, quote_error
from firstread.registry.hosts import Endpoint
from firstread.registry.options import AccessOptions

SUCCESS: Final = range(200, 300)
ANY: Final = range(1000)
Body = bytes | Callable[[], Iterable[bytes]]
"""Of a request; a function, where it is too long to keep, is called for each attempt."""

LEAST_SECRET: Final = 4  # characters; a shorter one would make messages unreadable
ERROR_S: Final = 5.0  # seconds for the text of an error; then it has none
_MAX_REDIRECTS: Final = 5
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_SAME_METHOD: Final = frozenset({307, 308})  # those of them that keep method and body


class _Hop(NamedTuple):
    """One request of an attempt.

    Args:
        url: it goes to.
        own: that is of the endpoint itself.
        shown: authorization that goes with it.
        redirects: that led to it.
        challenged: the endpoint has said what it wants to see.
    """

    url: str
    own: bool
    shown: str | None
    redirects: int = 0
    challenged: bool = False


class Transport:
    """Requests to one endpoint, about the repository of one reference.

    Args:
        reference: names host and repository.
        actions: what will be done in the repository: ``pull`` or ``pull,push``.
        options: how.
        endpoint: which.

    Attributes:
        root: path of the repository in the API, without a slash at its end.
    """

    def __init__(
        self,
        reference: Reference,
        actions: str,
        options: AccessOptions,
        endpoint: Endpoint,
    ) -> None:
        self.options = options
        self.base = endpoint.base
        self._origin = origin(endpoint.base)
        self.root = f"{endpoint.path}/{reference.repository}"
        self._host = endpoint.host
        self._headers = {name.title(): value for name, value in endpoint.headers}
        self._query = f"ns={quote(endpoint.namespace)}" if endpoint.namespace else ""
        self._connections = Connections(endpoint, options)
        self._reference = reference
        self._account = endpoint.host if endpoint.namespace else reference.host
        self._place = f"{self._account}/{reference.repository}"
        self._looked: LookUp | None = None  # for credentials, last
        self._authorizer = Authorizer(
            [f"repository:{reference.repository}:{actions}"] if reference.repository else [],
            self._credentials,
            self._fetch_token,
            refuse=self._refuse,
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

    def _refuse(self, credentials: Credentials) -> None:
        if self.options.logins is not None:
            self.options.logins.pulled.refuse(self._place, credentials)

    def _note(self, *, refused: bool) -> None:
        if self.options.logins is not None:
            self.options.logins.pulled.answered(self._place, refused=refused)

    @property
    def was_challenged(self) -> bool:
        """Whether the registry has asked for credentials."""
        return self._authorizer.was_challenged

    def ask_for(self, scope: str) -> None:
        """Ask for one more right, a scope of the token specification."""
        self._authorizer.widen(scope)

    def request(
        self,
        method: str,
        url: str,
        *,
        what: str,
        expect: Container[int] = (200,),
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        stay: bool = False,
    ) -> Answer:
        """Do one attempt and return the whole answer. Arguments and errors as `open`.

        Raises:
            LimitError: the answer has more than `MAX_ANSWER` bytes.
        """
        response, final = self.open(
            method, url, what=what, expect=expect, headers=headers, body=body, stay=stay
        )
        data = read_whole(response, what, final, self.options.answer_timeout)
        return Answer(response.status, response.headers, data, final)

    def open(
        self,
        method: str,
        url: str,
        *,
        what: str,
        expect: Container[int] = (200,),
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        stay: bool = False,
    ) -> tuple[urllib3.BaseHTTPResponse, str]:
        """Do one attempt; return the answer, its body unread, and the URL that gave it.

        The caller gives the answer to `release`.

        Args:
            method: HTTP method.
            url: whole, or a path from the root of the registry.
            what: is being done, for messages: ``"cannot …"``.
            expect: status codes that are answers; all others are errors.
            headers: besides those that every request has.
            body: of the request.
            stay: a redirect to another host is not followed: it is the answer.

        Raises:
            SourceError: the registry refuses, cannot be reached, is too slow or hangs up.
        """
        try:
            hop: _Hop | None = self._hop(urljoin(self.base, self._named(url)))
            while hop is not None:
                here = hop
                data = body() if callable(body) else body
                response = self._connections.request(
                    method, here.url, self._dressed(here, headers or {}), data
                )
                hop = self._following(method, response, here, stay=stay)
            if response.status not in expect:
                raise self._refusal(response, what, here.url)
        except AuthError as exc:
            self._note(refused=True)
            self._tell_where(exc)
            raise
        self._note(refused=False)
        return response, here.url

    def connect_ahead(self) -> None:
        """As `RemoteRepository.connect_ahead`."""
        self._connections.connect_ahead()

    def close(self) -> None:
        """Close idle connections."""
        self._connections.close()

    def is_own(self, url: str) -> bool:
        """Return whether a URL is of the endpoint itself."""
        try:
            return origin(url) == self._origin
        except SourceError:
            return False

    # -- one attempt ---------------------------------------------------------------------------

    def _named(self, url: str) -> str:
        """Add the registry whose content is wanted, unless the endpoint itself made the URL."""
        if not self._query or not url.startswith("/"):
            return url
        return f"{url}{'&' if urlsplit(url).query else '?'}{self._query}"

    def _hop(self, url: str, redirects: int = 0) -> _Hop:
        own = origin(url) == self._origin
        return _Hop(url, own, self._authorizer.header() if own else None, redirects)

    def _dressed(self, hop: _Hop, headers: Mapping[str, str]) -> dict[str, str]:
        """Return the headers of a request: those of the endpoint go nowhere else."""
        if not hop.own:
            return {name: value for name, value in headers.items() if name != "Authorization"}
        shown = {"Authorization": hop.shown} if hop.shown else {}
        return {**self._headers, **headers, **shown}

    def _following(
        self, method: str, response: urllib3.BaseHTTPResponse, hop: _Hop, *, stay: bool
    ) -> _Hop | None:
        """Return the request that an answer asks for; None if it is the last answer.

        The answer is released if it is not the last, or an error.
        """
        if hop.own and response.status in (401, 403) and not hop.challenged:
            return self._challenged(response, hop)
        url = self._redirected(method, response, hop.url, hop.redirects, stay=stay)
        return None if url is None else self._hop(url, hop.redirects + 1)

    def _challenged(self, response: urllib3.BaseHTTPResponse, hop: _Hop) -> _Hop | None:
        """Return the request with what the registry wants to see; None if there is nothing new."""
        challenge = response.headers.get("WWW-Authenticate", "")
        with _releasing_on_error(response):
            denied = response.status == 403
            if not self._authorizer.refused(challenge, hop.shown, denied=denied):
                return None
        release(response)
        return hop._replace(shown=self._authorizer.header(), challenged=True)

    def _redirected(
        self,
        method: str,
        response: urllib3.BaseHTTPResponse,
        url: str,
        redirects: int,
        *,
        stay: bool = False,
    ) -> str | None:
        """Return where an answer redirects to; None if it does not.

        Requests other than reads follow only on the same host, and only if the method is kept.
        """
        target = response.headers.get("Location")
        reads = method in ("GET", "HEAD")
        if not target or response.status not in (_REDIRECTS if reads else _SAME_METHOD):
            return None
        try:
            following = follow(url, target)
        except SourceError:
            if stay:
                return None
            release(response)
            raise
        if stay and not self.is_own(following):
            return None
        release(response)
        if not reads and origin(following) != origin(url):
            raise SourceError(
                f"registry {self._host} redirects what it is sent to {shown(following)}"
            )
        if redirects == _MAX_REDIRECTS:
            raise SourceError(f"registry {self._host} redirects without end")
        return following

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

    # -- answers -------------------------------------------------------------------------------

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

    def _fetch_token(self, request: TokenRequest) -> bytes:
        """Send a token request; called by the authorizer."""
        secret = request.body is not None or "Authorization" in request.headers
        if secret and self.base.startswith("https:") and request.url.startswith("http:"):
            raise AuthError("the registry wants the password to be sent without TLS")
        what = "cannot get a token"

        url: str | None = request.url
        redirects = 0
        while url is not None:
            here = url
            if request.url.startswith("https:") and here.startswith("http:"):
                raise AuthError("the token server wants the token to be sent without TLS")
            headers = request.headers if origin(here) == origin(request.url) else {}
            if self.is_own(here):
                headers = self._headers | headers
            response = self._connections.request(request.method, here, headers, request.body)
            url = self._redirected(request.method, response, here, redirects)
            redirects += 1
        if response.status == 200:
            try:
                return read_whole(response, what, here, self.options.answer_timeout)
            except LimitError as exc:
                raise AuthError(exc.message, hint=LOGIN_HINT) from exc
        error = self._refusal(response, what, here)
        raise error if error.retryable else AuthError(error.message, hint=LOGIN_HINT)


@contextmanager
def _releasing_on_error(response: urllib3.BaseHTTPResponse) -> Iterator[None]:
    try:
        yield
    except FirstreadError:
        release(response)
        raise


def _secrets_in(header: str) -> list[str]:
    """Return what may be secret in the value of a header, with and without its scheme."""
    values = [header, *header.split(", ")]
    return [*values, *(value.partition(" ")[2] for value in values)]
