# SPDX-License-Identifier: Apache-2.0
"""What a failed HTTP exchange means: the one table from urllib3 and status codes to our errors.

Owns the mapping; sends nothing. Invariants: the words of a server are bounded and printable before
they get into a message; query strings (signatures, tokens) and headers never do.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Final

import msgspec
import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    LocationParseError,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
)

from firstread.errors import (
    AuthError,
    FirstreadError,
    NotFoundError,
    SourceError,
    TransportError,
    cut,
)
from firstread.redact import redact
from firstread.registry.bearer import LOGIN_HINT
from firstread.registry.calls import CancelledCallError, TooSlowError, current
from firstread.registry.encoding import decoded
from firstread.registry.endpoint import shown
from firstread.structs import completed
from firstread.units import KiB

MAX_ERROR_BODY: Final = 64 * KiB  # bytes read of an answer that is an error
_MAX_DETAIL: Final = 300  # characters of it that a message quotes
_MAX_DATE: Final = 64  # characters; those of HTTP have 29

_MAX_CAUSES: Final = 8
_SLOW = "it may be overloaded: try again, or allow it more time (docs/registries.md)"
_ONLINE = "check the name of the registry and the network"
_STATUSES: Final[dict[int, tuple[type[SourceError], str | None]]] = {
    401: (AuthError, f"check the name, and {LOGIN_HINT}"),
    403: (AuthError, f"check that this account may do this, or {LOGIN_HINT}"),
    404: (NotFoundError, "check the name; a private image may need a login"),
    405: (SourceError, "the registry does not take this: it may be read-only"),
    408: (TransportError, None),
    413: (SourceError, "a proxy before the registry limits uploads: raise its limit"),
    429: (TransportError, "the registry limits requests: wait, or log in for a higher limit"),
    501: (SourceError, "the registry cannot do this"),
}
_EXCEPTIONS: Final[tuple[tuple[type[HTTPError], type[SourceError], str, str | None], ...]] = (
    (NameResolutionError, TransportError, "its name is not known", _ONLINE),
    (NewConnectionError, TransportError, "it cannot be reached", _ONLINE),
    (ConnectTimeoutError, TransportError, "it does not answer", _ONLINE),
    (ReadTimeoutError, TransportError, "it stopped answering", None),
    (ProxyError, TransportError, "the proxy fails", "check http_proxy, https_proxy and no_proxy"),
    (LocationParseError, SourceError, "it names an address that is not valid", None),
    (ProtocolError, TransportError, "it hung up", None),
    (HTTPError, TransportError, "the exchange failed", None),
)
_OS_ERRORS: Final[tuple[tuple[type[OSError], str], ...]] = (
    (TimeoutError, "it stopped answering"),
    (ssl.SSLError, "the TLS connection broke"),
    (OSError, "it hung up"),
)


class _Said(msgspec.Struct, frozen=True):
    code: str = ""
    message: str = ""


class _ErrorBody(msgspec.Struct, frozen=True):
    """``errors`` of the distribution specification, "Error Codes"."""

    errors: list[_Said] = []


def from_exception(exc: HTTPError | OSError, url: str) -> SourceError:
    """Return what a failed exchange with `url` means."""
    host, call = shown(url), current()
    if (call is not None and call.cancelled) or _is_due_to(exc, CancelledCallError):
        return TransportError(f"registry {host}: nobody waits for its answer any more")
    if (call is not None and call.is_late) or _is_due_to(exc, TooSlowError):
        return TransportError(f"registry {host}: its answer takes too long", hint=_SLOW)
    if not isinstance(exc, HTTPError):  # of a body: while it is sent, urllib3 lets some through
        text = next(text for kind, text in _OS_ERRORS if isinstance(exc, kind))
        return TransportError(f"registry {host}: {text}")
    if isinstance(exc, SSLError):
        return _from_tls(exc, host)
    kind, text, hint = next(row[1:] for row in _EXCEPTIONS if isinstance(exc, row[0]))
    return kind(f"registry {host}: {text}", hint=hint)


def _is_due_to(exc: BaseException, kind: type[BaseException]) -> bool:
    """Return whether an error, or one that it was made of, is of a kind."""
    for _ in range(_MAX_CAUSES):
        if isinstance(exc, kind) or any(isinstance(arg, kind) for arg in exc.args):
            return True
        if (cause := exc.__cause__ or exc.__context__) is None:
            break
        exc = cause
    return False


def _from_tls(exc: SSLError, host: str) -> SourceError:
    cause = exc.args[0] if exc.args else None
    if isinstance(cause, ssl.SSLCertVerificationError):
        return SourceError(
            f"registry {host}: its certificate is not trusted: {cause.verify_message}",
            hint="name the certificate of its authority with --ca-file",
        )
    # What a server without TLS looks like to OpenSSL; not every SSLError has a reason.
    if getattr(cause, "reason", None) in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST"):
        return SourceError(f"registry {host}: it does not speak TLS", hint="use --plain-http")
    return TransportError(f"registry {host}: the TLS connection broke")


def from_response(
    response: urllib3.BaseHTTPResponse,
    what: str,
    url: str,
    secrets: Iterable[str] = (),
    *,
    quote: bool = True,
) -> SourceError:
    """Return what an unexpected answer means, from a bounded part of its body.

    Args:
        response: opened without preloading.
        what: was being done, such as ``"cannot read blob sha256:…"``.
        url: asked for.
        secrets: that were sent, and that the answer might repeat.
        quote: repeat its text. False for an address that the registry led us to: it may be a
            service that talks to this machine alone.
    """
    status = response.status
    try:
        body = response.read(MAX_ERROR_BODY) if quote else b""
        body = decoded(body, response.headers.get("Content-Encoding", ""), MAX_ERROR_BODY)
    except (HTTPError, OSError, FirstreadError):
        body = b""
    otherwise = TransportError if status >= 500 else SourceError
    kind, hint = _STATUSES.get(status, (otherwise, None))
    phrase = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else ""
    said = quote_error(body, secrets)
    text = f"{what}: registry {shown(url)} answers {status} {phrase}".rstrip()
    error = kind(f"{text}: {said}" if said else text, hint=hint)
    if isinstance(error, TransportError):
        error.retry_after = retry_after(response.headers)
    return error


def quote_error(body: bytes, secrets: Iterable[str]) -> str:
    """Return what the body of an error says, in one short printable line without `secrets`."""
    try:
        errors = msgspec.json.decode(body, type=completed(_ErrorBody)).errors
        text = "; ".join(": ".join(filter(None, (e.code, e.message))) for e in errors)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        text = body[: 4 * _MAX_DETAIL].decode("utf-8", "replace")
        text = "" if text.lstrip().startswith("<") else text  # a page for browsers
    for secret in secrets:  # before the text is cut, which could leave a part of one
        text = text.replace(secret, "***")
    text = redact(text[: 4 * _MAX_DETAIL])
    return cut(" ".join("".join(c if c.isprintable() else " " for c in text).split()), _MAX_DETAIL)


def retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds that an answer asks to wait (RFC 9110, 10.2.3), 0 if it does not."""
    value = headers.get("Retry-After", "")[:_MAX_DATE].strip()
    if value.isdecimal():
        return float(value[:9])
    try:
        when = parsedate_to_datetime(value)
        if when.tzinfo is None:
            when = when.replace(tzinfo=UTC)
        return max(0.0, (when - datetime.now(UTC)).total_seconds())
    except (ValueError, OverflowError):
        return 0.0
