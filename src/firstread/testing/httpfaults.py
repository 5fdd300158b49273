# SPDX-License-Identifier: Apache-2.0
"""Faults of an HTTP server: the language that orders them, and what they do to an answer.

Owns scripts and the spoiling of answers; `scripted` and `faultproxy` are the servers that use it.
Knows nothing of registries. Invariant: what was injected is counted, and a fault whose turn has not
come changes no byte.

A script has one line for each fault: method (or ``*``), a part of the path, what happens, and how
often (once, if it does not say), quoted as in a shell. The first line that fits a request and is
not used up applies::

    GET   /blobs/       hangup 1000            # after 1000 bytes of the body
    GET   /manifests/   status 429 Retry-After=0 x2   # twice, with a header
    GET   /blobs/       trickle 50000 x*       # for ever: that many bytes a second
    GET   /blobs/       flip p0.05             # each request with this probability

========================  ========================================================================
``status N [Header=V…]``  that status, and no more
``slow S``                S seconds before the answer
``blackhole S``           nothing at all for S seconds, then the connection ends
``lost``                  the request is done, but its answer never arrives
``hangup N``              the connection ends after N bytes of the body
``cut N``                 the connection ends N bytes before the end of the body
``short N``               the body is N bytes shorter than was asked for, and says so
``trickle N``             N bytes a second
``flip [N]``              one bit of byte N is wrong; of the one in the middle, if not said
``duplicate N``           the first N bytes come twice, and push the last ones out
``body TEXT [Header=V…]`` another body, status 200
``wrong-range``           one byte beside what was asked for
``wrong-content-range``   the right bytes, but ``Content-Range`` says that they are others
``ignore-range``          the whole blob, status 200
``redirect``              to where everything is redirected, without end
``as N``                  the right answer, with that status
``gzip``                  the right body, compressed without having been asked for
========================  ========================================================================
"""

from __future__ import annotations

import gzip
import json
import random
import re
import shlex
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler
from typing import Final

LOOP: Final = "/redirected/without/end"
TRICKLES_PER_S: Final = 20  # writes, of a body that trickles

_LINE: Final = re.compile(r"(\S+)\s+(\S+)\s+(.*?)(?:\s+(x\d+|x\*|p[\d.]+))?")
_ACTIONS: Final = {  # least and most arguments
    "status": (1, 9),
    "slow": (1, 1),
    "blackhole": (1, 1),
    "lost": (0, 0),
    "hangup": (1, 1),
    "cut": (1, 1),
    "short": (1, 1),
    "trickle": (1, 1),
    "flip": (0, 1),
    "duplicate": (1, 1),
    "body": (1, 9),
    "wrong-range": (0, 0),
    "wrong-content-range": (0, 0),
    "ignore-range": (0, 0),
    "redirect": (0, 0),
    "as": (1, 1),
    "gzip": (0, 0),
}


@dataclass(slots=True)
class Fault:
    """One line of a script.

    Args:
        method: of the requests that it is for, or ``*``.
        part: of their path.
        action: what happens.
        arguments: of the action.
        left: how often it is still to happen; counts down.
        chance: that a request which fits meets it.
    """

    method: str
    part: str
    action: str
    arguments: list[str]
    left: float = 1
    chance: float = 1.0

    def fits(self, method: str, path: str) -> bool:
        return self.left > 0 and self.method in ("*", method) and self.part in path

    def number(self) -> float:
        """Return the first argument."""
        return float(self.arguments[0])


def parse_script(script: str, more: Mapping[str, tuple[int, int]] | None = None) -> list[Fault]:
    """Return the faults of a script; see the module.

    Args:
        script: its text.
        more: actions that only one server has, and how many arguments they take.

    Raises:
        ValueError: a line says nothing that there is.
    """
    actions = {**_ACTIONS, **(more or {})}
    faults = []
    for line in script.splitlines():
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = _LINE.fullmatch(text)
        if match is None:
            raise ValueError(f"not a line of a script: {line.strip()!r}")
        method, part, words, times = match.groups()
        action, *arguments = shlex.split(words)
        if action not in actions:
            raise ValueError(f"there is no fault {action!r}: {line.strip()!r}")
        least, most = actions[action]
        if not least <= len(arguments) <= most:
            raise ValueError(f"{action} takes another number of arguments: {line.strip()!r}")
        faults.append(Fault(method, part, action, arguments, *_times(times or "x1")))
    return faults


def _times(text: str) -> tuple[float, float]:
    """Return how often, and with which chance."""
    if text[0] == "p":
        return float("inf"), float(text[1:])
    return (float("inf") if text == "x*" else int(text[1:])), 1.0


class Script:
    """Faults that wait for requests. Safe to use from several threads.

    Args:
        text: see the module.
        seed: of the faults that happen by chance.
        more: see `parse_script`.

    Attributes:
        injected: how often each action was taken.
    """

    def __init__(
        self, text: str = "", *, seed: int = 0, more: Mapping[str, tuple[int, int]] | None = None
    ) -> None:
        self._more = more
        self._faults = parse_script(text, more)
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self.injected: Counter[str] = Counter()

    def replace(self, text: str) -> None:
        """Replace what is left of the script."""
        faults = parse_script(text, self._more)
        with self._lock:
            self._faults = faults

    def pick(self, method: str, path: str) -> Fault | None:
        """Return what is to happen to a request, and count it."""
        with self._lock:
            for fault in self._faults:
                if fault.fits(method, path) and self._random.random() < fault.chance:
                    fault.left -= 1
                    self.injected[fault.action] += 1
                    return fault
        return None

    def unused(self) -> list[str]:
        """Return the faults that no request met, so that a test can insist."""
        with self._lock:
            return [
                f"{f.method} {f.part} {f.action}"
                for f in self._faults
                if 0 < f.left < float("inf") and f.chance == 1.0
            ]


class HangUpError(Exception):
    """The script says to break the connection here."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of a server, in preparation.

    Args:
        status: HTTP status.
        headers: all but ``Content-Length``.
        length: bytes of `body`; None leaves ``Content-Length`` out.
        body: comes in pieces.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    length: int | None = 0
    body: Iterable[bytes] = ()


def plain(status: int, headers: Mapping[str, str], data: bytes = b"") -> Answer:
    """Return an answer whose body is here."""
    return Answer(status, headers, None if status == 204 else len(data), [data])


def refusal(
    status: int, code: str, message: str, headers: Mapping[str, str] | None = None
) -> Answer:
    """Return an error as registries send it."""
    document = {"errors": [{"code": code, "message": message}]}
    return plain(status, headers or {}, json.dumps(document).encode())


def instead(fault: Fault | None, says: str) -> Answer | None:
    """Return the answer that a fault gives instead of the true one; wait, if that is the fault.

    Args:
        fault: of the request, if any.
        says: message of the error.

    Raises:
        HangUpError: there is to be no answer.
    """
    if fault is None:
        return None
    if fault.action in ("slow", "blackhole"):
        time.sleep(fault.number())
    if fault.action == "blackhole":
        raise HangUpError
    if fault.action == "status":
        return refusal(int(fault.arguments[0]), "SCRIPTED", says, _headers(fault))
    if fault.action == "body":
        return plain(200, _headers(fault), fault.arguments[0].encode())
    if fault.action == "redirect":
        return plain(307, {"Location": LOOP})
    return None


def _headers(fault: Fault) -> dict[str, str]:
    return dict(word.split("=", 1) for word in fault.arguments[1:])


def send(handler: BaseHTTPRequestHandler, answer: Answer, fault: Fault | None = None) -> None:
    """Send an answer, with what a fault does to it.

    Raises:
        HangUpError: the connection is to end.
    """
    if fault is not None and fault.action == "lost":
        raise HangUpError
    answer = _spoiled(answer, fault)
    handler.send_response(answer.status)
    for key, value in answer.headers.items():
        handler.send_header(key, value)
    if answer.length is not None:
        handler.send_header("Content-Length", str(answer.length))
    handler.end_headers()
    if handler.command != "HEAD":
        _write(handler, answer, fault)


def _write(handler: BaseHTTPRequestHandler, answer: Answer, fault: Fault | None) -> None:
    """Send the body, as far and as fast as the fault says."""
    left = _bytes_until_hangup(answer, fault)
    slowly = fault is not None and fault.action == "trickle"
    body = _pieces(answer.body, fault.number()) if fault and slowly else answer.body
    for chunk in body:
        if left is not None and left < len(chunk):
            handler.wfile.write(chunk[:left])
            left = 0
            break
        handler.wfile.write(chunk)
        left = None if left is None else left - len(chunk)
    if left is not None:
        raise HangUpError


def _bytes_until_hangup(answer: Answer, fault: Fault | None) -> int | None:
    if fault is None or fault.action not in ("hangup", "cut"):
        return None
    count = int(fault.number())
    return count if fault.action == "hangup" else max(0, (answer.length or 0) - count)


def _pieces(body: Iterable[bytes], bytes_per_s: float) -> Iterator[bytes]:
    """Yield a body in so small pieces, and with such pauses, that it comes at this rate."""
    size = max(1, int(bytes_per_s / TRICKLES_PER_S))
    for chunk in body:
        for start in range(0, len(chunk), size):
            yield chunk[start : start + size]
            time.sleep(1 / TRICKLES_PER_S)


def _spoiled(answer: Answer, fault: Fault | None) -> Answer:
    """Return an answer with its body or headers changed."""
    if fault is not None and fault.action == "as":
        return replace(answer, status=int(fault.number()))
    if fault is None or answer.length is None:
        return answer
    length = answer.length
    match fault.action:
        case "flip":
            place = int(fault.number()) if fault.arguments else length // 2
            return replace(answer, body=_flipped(answer.body, place))
        case "short":
            length = max(0, length - int(fault.number()))
            return replace(answer, length=length, body=_first(answer.body, length))
        case "gzip":
            packed = gzip.compress(b"".join(answer.body))
            headers = {**answer.headers, "Content-Encoding": "gzip"}
            return replace(answer, headers=headers, length=len(packed), body=[packed])
        case "duplicate":
            doubled = _doubled(answer.body, int(fault.number()))
            return replace(answer, body=_first(doubled, length))
        case "wrong-content-range" if "Content-Range" in answer.headers:
            said = re.sub(
                r"\d+", lambda m: str(int(m[0]) + 1), answer.headers["Content-Range"], count=2
            )
            return replace(answer, headers={**answer.headers, "Content-Range": said})
    return answer


def _flipped(body: Iterable[bytes], place: int) -> Iterator[bytes]:
    for chunk in body:
        if 0 <= place < len(chunk):
            yield chunk[:place] + bytes([chunk[place] ^ 1]) + chunk[place + 1 :]
        else:
            yield chunk
        place -= len(chunk)


def _first(body: Iterable[bytes], length: int) -> Iterator[bytes]:
    for chunk in body:
        yield chunk[:length]
        length -= len(chunk[:length])


def _doubled(body: Iterable[bytes], count: int) -> Iterator[bytes]:
    """Yield the first `count` bytes twice, then the others."""
    held = b""
    pieces = iter(body)
    while len(held) < count and (chunk := next(pieces, b"")):
        held += chunk
    yield held[:count]
    yield held
    yield from pieces
