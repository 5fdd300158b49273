# SPDX-License-Identifier: Apache-2.0
"""The ``Authorization`` header for one repository: basic, or tokens from a token server.

Owns challenges, tokens and their renewal; sends only through the function that it is given.
Invariants: no repr and no message has a token or a password; a valid token costs no lock and no
request; when many threads need a new one, one of them gets it.

Sources: distribution-spec, docker's "Token Authentication Specification" and its OAuth2 variant,
RFC 9110 section 11 (challenges).
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final
from urllib.parse import urlencode, urlsplit

import msgspec

from firstread.errors import AuthError, FirstreadError
from firstread.oci import gojson
from firstread.registry.credentials import Credentials
from firstread.registry.endpoint import is_address
from firstread.units import KiB

CLIENT_ID: Final = "firstread"
DEFAULT_LIFETIME: Final = 60.0  # seconds; of a token that does not say (token specification)
MAX_TOKEN: Final = 64 * KiB  # bytes; it is sent with every request, and servers take 8 to 64 KiB
RENEW_BEFORE: Final = 10.0  # seconds before its end; at most half of the lifetime
BASIC_LIFETIME: Final = 300.0  # seconds; after which a password is looked up again
DENIED_AFTER: Final = 10.0  # seconds; an older token that is denied may have ended unannounced
KEEP_FOR: Final = 5.0  # seconds; of a valid token that could not be renewed, until the next attempt

MAX_CHALLENGE: Final = 8 * KiB  # characters of a header that are looked at; real ones have 300

# What a header of challenges is made of (RFC 9110, 5.6 and 11.2). One of these fits wherever the
# last one ends, a quoted string without an end included: each character is seen twice at most.
_QUOTED = r'"((?:[^"\\]++|\\.|\\\Z)*+)(?:"|\Z)'
_PART = re.compile(
    rf'(,)|([^\s",=]++)(?:\s*+(=)\s*+(?:{_QUOTED}|([^\s",]*+)))?|\s++|=|{_QUOTED}', re.DOTALL
)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_VISIBLE = re.compile(r"[\x21-\x7e]+")

LOGIN_HINT: Final = "log in with docker login, podman login or skopeo login, or name --authfile"


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a registry wants to see, from its ``WWW-Authenticate`` header."""

    scheme: str
    realm: str = ""
    service: str = ""
    scope: str = ""


def parse_challenge(header: str) -> Challenge | None:
    """Return the challenge in a header, Bearer before Basic; None if it has neither.

    A scheme begins the header or follows a comma, outside of quotes; parameters may also have no
    more than a space between them. A Bearer challenge without a realm counts last: it names no
    token server.
    """
    found: list[tuple[str, dict[str, str]]] = []
    values: dict[str, str] = {}
    is_first = True  # of an element of the list
    for comma, word, equals, quoted, plain, _ in _PART.findall(header[:MAX_CHALLENGE]):
        if word and equals:
            values.setdefault(word.lower(), _ESCAPED.sub(r"\1", quoted) or plain)
        elif word and is_first:
            values = {}
            found.append((word.lower(), values))
        is_first = bool(comma) or (is_first and not word)
    challenges = [
        Challenge(scheme, *(given.get(key, "") for key in ("realm", "service", "scope")))
        for scheme, given in found
        if scheme in ("bearer", "basic")
    ]
    return min(challenges, key=_preference, default=None)


def _preference(challenge: Challenge) -> int:
    if challenge.scheme == "bearer":
        return 0 if challenge.realm else 2
    return 1


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """One HTTP request to a token server."""

    method: str
    url: str
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    body: bytes | None = field(default=None, repr=False)


def token_request(
    challenge: Challenge, scopes: Sequence[str], credentials: Credentials | None
) -> TokenRequest:
    """Return how to ask for a token; a pure function."""
    fields = [("service", challenge.service)] if challenge.service else []
    if credentials is not None and credentials.identity_token:
        fields += [
            ("grant_type", "refresh_token"),
            ("refresh_token", credentials.identity_token),
            ("client_id", CLIENT_ID),
            ("scope", " ".join(scopes)),
        ]
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        return TokenRequest("POST", challenge.realm, form, urlencode(fields).encode())
    fields += [("scope", scope) for scope in scopes]
    headers = {"Authorization": credentials.basic()} if credentials is not None else {}
    separator = "&" if urlsplit(challenge.realm).query else "?"
    return TokenRequest("GET", f"{challenge.realm}{separator}{urlencode(fields)}", headers)


class _TokenAnswer(msgspec.Struct, frozen=True):
    token: str | None = None
    access_token: str | None = None
    expires_in: float | None = None


@dataclass(frozen=True, slots=True)
class _Grant:
    """A header value, and its times (monotonic seconds).

    Args:
        header: the value.
        credentials: that paid for it.
        since: when.
        renew_at: when to renew it.
        ends: when it is valid no more.
    """

    header: str = field(repr=False)
    credentials: Credentials | None = field(repr=False)
    since: float
    renew_at: float
    ends: float


class Authorizer:
    """Gives the header that a repository wants to see.

    Args:
        scopes: the rights to ask for (``repository:NAME:pull``).
        credentials: looks them up anew; called whenever a registry asks.
        fetch: sends a token request, and returns the body of a successful answer.
        clock: monotonic seconds.
        refuse: is told of credentials that the registry does not take.
    """

    def __init__(
        self,
        scopes: Sequence[str],
        credentials: Callable[[], Credentials | None],
        fetch: Callable[[TokenRequest], bytes],
        clock: Callable[[], float] = time.monotonic,
        refuse: Callable[[Credentials], None] = lambda _: None,
    ) -> None:
        self._scopes = list(scopes)
        self._credentials = credentials
        self._fetch = fetch
        self._refuse = refuse
        self._clock = clock
        self._lock = threading.Lock()
        self._challenge: Challenge | None = None
        self._grant: _Grant | None = None
        self._used: Credentials | None = None  # looked up last

    def header(self) -> str | None:
        """Return the header to send now; None as long as the registry asked for nothing.

        Raises:
            AuthError: the token server refuses.
            TransportError: it cannot be reached.
        """
        grant = self._grant
        if grant is None or self._clock() < grant.renew_at:
            return grant.header if grant else None
        with self._lock:
            if self._grant is grant:  # else another thread has just renewed it
                self._grant = self._renewed(grant)
            return self._grant.header if self._grant else None

    def widen(self, scope: str) -> None:
        """Ask for `scope`, too, from the next token on."""
        with self._lock:
            if scope not in self._scopes:
                self._scopes.append(scope)
                if self._grant is not None:
                    self._grant = replace(self._grant, renew_at=0.0)

    def refused(self, challenge: str, shown: str | None, *, denied: bool = False) -> bool:
        """Take note of an answer 401 or 403, and look credentials up again.

        Args:
            challenge: its ``WWW-Authenticate`` header, if it has one.
            shown: the header that was sent and refused.
            denied: it was a 403: the registry knows the account, which may not do this. Then only
                other credentials, or a token that may have ended, are worth another request.

        Returns:
            True if `header` now gives something else, so that another attempt makes sense.

        Raises:
            AuthError, TransportError: as `header`.
        """
        with self._lock:
            if self._grant is not None and self._grant.header != shown:
                return True  # refused was an older one
            self._challenge = parse_challenge(challenge) or (self._challenge if denied else None)
            self._blame()
            if denied and not self._outdated():
                return False
            self._grant = self._obtain()
            return self._grant is not None and self._grant.header != shown

    @property
    def was_challenged(self) -> bool:
        """Whether the registry has asked for credentials."""
        return self._challenge is not None

    def secrets(self) -> list[str]:
        """Return what was shown last, to be taken out of messages."""
        grant, used = self._grant, self._used
        found = [grant.header, grant.header.partition(" ")[2]] if grant else []
        if used is not None:
            found += [used.password, used.identity_token, used.basic().partition(" ")[2]]
        return [secret for secret in found if secret]

    def _outdated(self) -> bool:
        """Return whether another grant could differ from what was denied; the lock is held."""
        grant = self._grant
        return grant is None or self._credentials() != grant.credentials or self._may_have_ended()

    def _may_have_ended(self) -> bool:
        """Return whether the grant is a token that is not new; the lock is held."""
        grant = self._grant
        if grant is None or grant.ends == math.inf:
            return False
        return self._clock() - grant.since > DENIED_AFTER

    def _blame(self) -> None:
        """Note that credentials paid for what was refused, unless it was an old token's fault."""
        grant = self._grant
        if grant is not None and grant.credentials is not None and not self._may_have_ended():
            self._refuse(grant.credentials)

    def _renewed(self, grant: _Grant) -> _Grant | None:
        """Return a new grant, or the old one if there is none and it is still valid."""
        try:
            return self._obtain()
        except FirstreadError:
            if self._clock() >= grant.ends:
                raise
            return replace(grant, renew_at=min(grant.ends, self._clock() + KEEP_FOR))

    def _obtain(self) -> _Grant | None:
        """Return a new grant; the lock is held."""
        challenge, credentials = self._challenge, self._credentials()
        self._used = credentials
        if challenge is None:
            return None
        asked = self._clock()
        if challenge.scheme == "basic":
            if credentials is None:
                return None
            renew_at = asked + BASIC_LIFETIME
            return _Grant(credentials.basic(), credentials, asked, renew_at, math.inf)
        if not is_address(challenge.realm):
            raise AuthError("the registry names no valid token server")
        try:
            data = self._fetch(token_request(challenge, self._wanted(challenge), credentials))
        except AuthError:
            if credentials is not None:
                self._refuse(credentials)
            raise
        try:
            answer = gojson.decode(data, _TokenAnswer)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise AuthError("the token server gave no valid answer") from None
        token = answer.token or answer.access_token or ""
        if len(token) > MAX_TOKEN:
            raise AuthError(f"the token server gave a token of more than {MAX_TOKEN} bytes")
        if not _VISIBLE.fullmatch(token):
            raise AuthError("the token server gave no token", hint=LOGIN_HINT)
        lifetime = answer.expires_in or 0.0
        if lifetime <= 0:
            lifetime = DEFAULT_LIFETIME
        renew_at = asked + max(lifetime - RENEW_BEFORE, lifetime / 2)
        return _Grant(f"Bearer {token}", credentials, asked, renew_at, asked + lifetime)

    def _wanted(self, challenge: Challenge) -> list[str]:
        """Return our scopes, and those of the challenge that are of something else."""
        ours = {scope.rpartition(":")[0] for scope in self._scopes}
        theirs = challenge.scope.split()
        return self._scopes + [s for s in theirs if s.rpartition(":")[0] not in ours]
