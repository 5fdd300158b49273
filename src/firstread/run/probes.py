# SPDX-License-Identifier: Apache-2.0
"""Asks once whether a workload is ready: a URL, or a command of the user.

Owns what counts as an answer, and how long one may take; `firstread.run.readiness` asks again.
Invariant: no process of a question outlives it.

What they ask is what a kubelet's probes ask: ``httpGet``, and by a command whatever else.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from typing import Protocol

from firstread.errors import UsageError

POLL_S = 0.01
_CONNECT_S = 1.0
_ANSWER_S = 30.0  # a server that has accepted may still be loading


class Probe(Protocol):
    """A question whose answer says that a workload is ready; as text it names what is asked."""

    def succeeds(self, most_s: float, given_up: threading.Event) -> bool:
        """Ask once.

        Args:
            most_s: seconds to wait for the answer.
            given_up: nobody wants the answer any more.

        Raises:
            UsageError: it cannot be asked.
        """


@dataclass(frozen=True)
class UrlProbe:
    """Asks a URL, which has to answer with a status from 200 to 299; redirects do not count.

    It accepts any certificate, since it sends no secret.

    Args:
        url: of HTTP.
    """

    url: str

    def __str__(self) -> str:
        return self.url

    def succeeds(self, most_s: float, given_up: threading.Event) -> bool:
        import urllib3  # noqa: PLC0415 - takes 40 ms

        timeout = urllib3.Timeout(connect=min(_CONNECT_S, most_s), read=min(_ANSWER_S, most_s))
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        with urllib3.PoolManager(cert_reqs="CERT_NONE", timeout=timeout, retries=False) as pool:
            try:
                response = pool.request("GET", self.url, redirect=False, preload_content=False)
            except urllib3.exceptions.HTTPError:
                return False
            found = 200 <= response.status < 300
            response.close()
            return found


@dataclass(frozen=True)
class CommandProbe:
    """Runs a command on this machine, which has to exit with 0. Nobody sees what it prints.

    Args:
        words: of it; the first is a program.
    """

    words: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join(self.words)

    def succeeds(self, most_s: float, given_up: threading.Event) -> bool:
        nothing = subprocess.DEVNULL
        until = time.monotonic() + min(most_s, _ANSWER_S)
        try:
            process = subprocess.Popen(
                self.words, stdin=nothing, stdout=nothing, stderr=nothing, process_group=0
            )
        except OSError as exc:
            raise UsageError(f"cannot run {self.words[0]!r}: {exc.strerror}") from exc
        try:
            while process.poll() is None:
                if given_up.wait(POLL_S) or time.monotonic() > until:
                    return False
            return process.returncode == 0
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def parse_url(text: str) -> UrlProbe:
    """Return what asks a URL.

    Raises:
        UsageError: it is none of HTTP.
    """
    from urllib3.exceptions import LocationParseError  # noqa: PLC0415 - help does not wait for it
    from urllib3.util import parse_url as parse  # noqa: PLC0415

    try:
        parsed = parse(text)
    except LocationParseError:
        parsed = None
    if parsed is None or parsed.scheme not in ("http", "https") or not parsed.host:
        raise UsageError(
            f"{text!r} is not the URL of a server", hint="such as http://127.0.0.1:8080/"
        )
    return UrlProbe(text)


def parse_command(text: str) -> CommandProbe:
    """Return what runs a command: words as a shell's, but no shell.

    Raises:
        UsageError: it has no words, or its first is no program of this machine.
    """
    try:
        words = tuple(shlex.split(text))
    except ValueError as exc:
        raise UsageError(f"{text!r} is not a command: {exc}") from exc
    if not words or shutil.which(words[0]) is None:
        raise UsageError(
            f"{words[0] if words else text!r} is no program of this machine",
            hint="one of the image runs by 'firstread exec NAME PROGRAM', with --name NAME",
        )
    return CommandProbe(words)
