# SPDX-License-Identifier: Apache-2.0
"""Sends the trace of each start to an OpenTelemetry collector, if the environment names one.

Owns when spans leave this process; `firstread.mounts.startspans` makes them. Invariant: no read
waits for it. A thread takes starts that are over, and a process of its own with the lowest priority
(`firstread.daemon.sendspans`) talks to the collector: only that one imports OpenTelemetry, and a
collector that hangs holds up nothing else. `MOST_STARTS` wait at most; the oldest go.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Final

from firstread.documents import encode
from firstread.mounts.startspans import Span, StartFacts, spans_of

log = logging.getLogger("otel")

MOST_STARTS: Final = 64
SEND_S: Final = 60.0  # for a collector to take them; OTEL_EXPORTER_OTLP_TIMEOUT is less
_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_NEEDED: Final = ("opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http")


def wants_traces(environment: Mapping[str, str]) -> bool:
    """Return whether the standard variables ask for traces by OTLP.

    Source: OpenTelemetry specification, "Environment Variable Specification".
    """
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    exporters = environment.get("OTEL_TRACES_EXPORTER", "")
    if exporters:
        return "otlp" in exporters.split(",")
    return any(environment.get(name) for name in _ENDPOINTS)


def is_installed() -> bool:
    """Return whether this installation has the extra ``otel``. Imports none of it."""
    try:
        return all(metadata.version(name) for name in _NEEDED)
    except metadata.PackageNotFoundError:
        return False


class SpanExporter:
    """Sends the traces of one fetcher.

    Args:
        command: reads a list of traces on stdin, as JSON, and sends them.
        send_s: seconds that it may take.
    """

    def __init__(
        self,
        command: tuple[str, ...] = (sys.executable, "-m", "firstread.daemon.sendspans"),
        send_s: float = SEND_S,
    ) -> None:
        self._command, self._send_s = command, send_s
        self._waiting: deque[Callable[[], StartFacts]] = deque(maxlen=MOST_STARTS)
        self._came = threading.Event()
        self._failing = False

    def start(self) -> None:
        """Send from now on."""
        threading.Thread(target=self._run, name="otel", daemon=True).start()

    def put(self, facts: Callable[[], StartFacts]) -> None:
        """Take a start that is over. Does not block.

        Args:
            facts: gives what is known of it, in another thread.
        """
        self._waiting.append(facts)
        self._came.set()

    def _run(self) -> None:
        while True:
            self._came.wait()
            self._came.clear()
            try:
                self.send()
            except Exception:  # a trace is worth nothing beside the reads of this process
                log.exception("traces of starts are lost")

    def send(self) -> None:
        """Send what waits."""
        traces = list[list[Span]]()
        while self._waiting:
            traces.append(spans_of(self._waiting.popleft()()))
        if not traces:
            return
        problem = self._sent(encode(traces).encode())
        if problem and not self._failing:
            log.warning("traces of starts are lost until the collector takes them: %s", problem)
        elif self._failing and not problem:
            log.info("the collector takes traces of starts again")
        self._failing = bool(problem)

    def _sent(self, document: bytes) -> str:
        """Send a document; return what went wrong."""
        try:
            done = subprocess.run(
                self._command,
                input=document,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=self._send_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"it has not answered for {self._send_s:g} s"
        except OSError as exc:
            return str(exc)
        words = done.stderr[-1000:].decode(errors="replace").strip()
        return (words or f"code {done.returncode}") if done.returncode else ""
