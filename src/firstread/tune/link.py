# SPDX-License-Identifier: Apache-2.0
"""A link to a registry, and answers on their way over it. Pure: the time is an argument.

Owns rate, delay, set-up of connections and slow start. TCP sends a window of bytes, then waits a
round trip for the acknowledgement and doubles the window; so a small answer takes its round trip
and little more, and a large one takes several before it fills the link. Answers that arrive at the
same time share the link evenly. Losses, and windows beyond what the link holds, are not modelled.

Invariant: no more bytes arrive than the rate allows, and none before its round trip is over.

Source: RFC 6928 (the first window), RFC 5681, 4.1 (after a pause it begins anew).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import NamedTuple

from firstread.errors import UsageError

FIRST_WINDOW = 10 * 1448.0  # bytes: ten segments
PAUSE_S = 0.2  # Linux' least retransmission timeout: a window halves for each such pause
NEAR_S = 0.0002  # round trips below this leave nothing to wait for
WIRE = 1448 / 1500  # of the bytes of a link, those that TCP delivers
MIN_BITS, MAX_BITS = 1_000, 10**13  # per second
MAX_RTT_S = 60.0
LOOPBACK = "loopback"

_FACTORS = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_LINK = re.compile(
    r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([kmgt])bit(?:/s)?/([0-9]{1,9}(?:\.[0-9]{1,9})?)(us|ms|s)",
    re.IGNORECASE | re.ASCII,
)
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


class LinkSpeed(NamedTuple):
    """A link.

    Args:
        bits_per_s: its rate.
        rtt_s: its round trip time, in seconds.
        name: as the user wrote it.
    """

    bits_per_s: float
    rtt_s: float
    name: str

    @property
    def bytes_per_s(self) -> float:
        """What TCP delivers."""
        return self.bits_per_s / 8 * WIRE

    def __str__(self) -> str:
        return self.name


def parse_link(text: str) -> LinkSpeed:
    """Return the link that `text` names, such as ``100Mbit/20ms`` or ``loopback``.

    Raises:
        UsageError: `text` is not a link, or one that nobody has.
    """
    name = text.strip()
    if name.lower() == LOOPBACK:
        return LinkSpeed(40e9, 0.00005, LOOPBACK)
    match = _LINK.fullmatch(name)
    if match is None:
        raise UsageError(
            f"{text!r} is not a link",
            hint="write rate and round trip time, like 100Mbit/20ms or 1Gbit/500us, or loopback",
        )
    bits = float(match[1]) * _FACTORS[match[2].lower()]
    seconds = float(match[3]) * _SECONDS[match[4].lower()]
    if not MIN_BITS <= bits <= MAX_BITS:
        raise UsageError(f"{text!r}: the rate must be between 1kbit and 10Tbit")
    if seconds > MAX_RTT_S:
        raise UsageError(f"{text!r}: the round trip time must be at most {MAX_RTT_S:.0f} s")
    return LinkSpeed(bits, seconds, name)


@dataclass(eq=False)
class _Connection:
    window: float = FIRST_WINDOW
    idle_since: float = -math.inf


@dataclass(eq=False)
class Transfer:
    """The answer to one request.

    Args:
        size: bytes of it.
        opens: when its first byte arrives.
        arrived: bytes by now.
        wake: `Pipe.step` stops when so many have arrived.
        is_full: its reader has stopped, and so no more comes.
    """

    size: float
    opens: float
    connection: _Connection
    arrived: float = 0.0
    wake: float = 0.0
    is_full: bool = False
    allowed: float = 0.0  # bytes that may come before the next acknowledgement
    round_ends: float = field(default=-1.0)


class Pipe:
    """A link in use.

    Args:
        link: which.
        trips: round trips that a new connection takes: 1 for TCP, 2 with TLS 1.3.
        most: bytes per second that one reader takes, whatever the link could give.
    """

    def __init__(self, link: LinkSpeed, trips: int = 1, most: float = math.inf) -> None:
        self.now = 0.0
        self._rtt, self._rate, self._trips, self._most = link.rtt_s, link.bytes_per_s, trips, most
        # A window that covers twice what the link holds never makes it wait.
        self._enough = 2 * self._rate * self._rtt if self._rtt > NEAR_S else 0.0
        self._idle: list[_Connection] = []
        self._active: list[Transfer] = []

    def request(self, size: float, delay_s: float = 0.0) -> Transfer:
        """Ask for `size` bytes now, on the connection that was used last or a new one.

        Args:
            size: of the answer.
            delay_s: that both sides need before its first byte leaves.
        """
        opens = self.now + delay_s + self._rtt
        if self._idle:
            connection = self._idle.pop()
            pauses = (self.now - connection.idle_since) / (PAUSE_S + self._rtt)
            halved = connection.window * 0.5 ** min(64, int(pauses))
            connection.window = max(FIRST_WINDOW, halved)
        else:
            connection = _Connection()
            opens += self._trips * self._rtt
        transfer = Transfer(size, opens, connection, wake=size)
        self._active.append(transfer)
        return transfer

    def finish(self, transfer: Transfer, *, reuse: bool = True) -> None:
        """End an answer; `reuse`: all of it has arrived, so that its connection is free."""
        self._active.remove(transfer)
        transfer.connection.idle_since = self.now
        if reuse:
            self._idle.append(transfer.connection)

    def step(self, until: float) -> Transfer | None:
        """Let time pass, until an answer reaches its `wake` or to `until` at the latest.

        Returns:
            the answer; None if it is `until` now.
        """
        while True:
            for transfer in self._active:
                if transfer.is_full or transfer.opens > self.now:
                    continue
                if transfer.arrived >= transfer.wake:
                    return transfer
                self._acknowledge(transfer)
            if self.now >= until:
                return None
            self._pass(until)

    def _acknowledge(self, transfer: Transfer) -> None:
        """Begin the next round of an answer whose round trip is over."""
        if transfer.round_ends > self.now:
            return
        connection = transfer.connection
        if transfer.round_ends >= 0 and transfer.allowed <= 0:
            connection.window *= 2
        if connection.window >= self._enough:
            transfer.allowed, transfer.round_ends = math.inf, math.inf
        else:
            transfer.allowed, transfer.round_ends = connection.window, self.now + self._rtt

    def _pass(self, until: float) -> None:
        """Let time pass to the next moment at which something changes."""
        active = [transfer for transfer in self._active if not transfer.is_full]
        flowing = [each for each in active if each.opens <= self.now and each.allowed > 0]
        rate = min(self._most, self._rate / len(flowing)) if flowing else 0.0
        due = until
        for transfer in active:
            if transfer.opens > self.now:
                due = min(due, transfer.opens)
            elif transfer.allowed > 0:
                step = min(transfer.allowed, transfer.wake - transfer.arrived)
                due = min(due, self.now + step / rate)
            if transfer.round_ends > self.now:
                due = min(due, transfer.round_ends)
        seconds = due - self.now
        for transfer in flowing:
            self._receive(transfer, rate * seconds)
        self.now = due

    @staticmethod
    def _receive(transfer: Transfer, count: float) -> None:
        left = transfer.wake - transfer.arrived
        # Sums of small steps never quite reach a limit: a hundredth of a byte is none.
        transfer.arrived = transfer.wake if left - count < 0.01 else transfer.arrived + count
        transfer.allowed = 0.0 if transfer.allowed - count < 0.01 else transfer.allowed - count
