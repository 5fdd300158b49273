# SPDX-License-Identifier: Apache-2.0
"""Structured logs: one JSON object a line. Fields of a record come by ``extra={"fields": …}``.

Invariant: no line has a secret, or more than some KiB, whatever a library put into an exception.

A daemon that was started on demand writes into a file, which it turns over itself: nobody else
looks after it. Several processes write to that file; each follows when it was turned over.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import sys
import threading
import time
from pathlib import Path

from firstread.control.daemonlog import LOG_BYTES, turn_over
from firstread.errors import FirstreadError
from firstread.opener import Opener
from firstread.redact import redact
from firstread.units import KiB

MAX_TEXT = 4 * KiB  # characters of a message, or of a field
MAX_TRACEBACK = 16 * KiB  # its end says most
_MARGIN = 8  # times as much is looked at for secrets, so that none is cut in two where it shows


def _shown(value: object, most: int = MAX_TEXT) -> str:
    """Return text for a line: without secrets, and without its middle if it is long."""
    return _halves(redact(_halves(str(value), _MARGIN * most)), most)


def _halves(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}"


class JsonFormatter(logging.Formatter):
    """Formats a record as JSON: time, level, part, message, and its own fields."""

    def format(self, record: logging.LogRecord) -> str:
        document: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "part": record.name,
            "message": _shown(record.getMessage()),
        }
        for name, value in getattr(record, "fields", {}).items():
            document[name] = _shown(value) if isinstance(value, str) else value
        if record.exc_info:
            document["exception"] = _shown(self.formatException(record.exc_info), MAX_TRACEBACK)
        return json.dumps(document, default=_shown)


class LogFile(logging.StreamHandler):  # type: ignore[type-arg]
    """Logs to stderr, which is the file at `path`, or was before it was turned over.

    Args:
        path: of the file.
        limit_bytes: at which the file becomes ``PATH.1`` and a new one is begun.
    """

    def __init__(self, path: Path, limit_bytes: int = LOG_BYTES) -> None:
        super().__init__()
        self._path, self._limit_bytes = path, limit_bytes
        self._opener = Opener("log")

    def emit(self, record: logging.LogRecord) -> None:
        # A log line raises nothing: its writer has often met the same shortage.
        with contextlib.suppress(OSError, FirstreadError, RuntimeError, MemoryError):
            if not self._is_current() or os.fstat(2).st_size >= self._limit_bytes:
                self._opener.do(self._follow)
        super().emit(record)

    def _follow(self) -> None:
        if not self._is_current():
            self._reopen()
        if os.fstat(2).st_size < self._limit_bytes:
            return
        with open(self._path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self._is_current():  # no other process was faster
                turn_over(self._path)
        self._reopen()

    def _is_current(self) -> bool:
        try:
            return os.path.samestat(os.fstat(2), os.stat(self._path))
        except FileNotFoundError:
            return False

    def _reopen(self) -> None:
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if os.path.samestat(os.fstat(1), os.fstat(2)):
                os.dup2(fd, 1)
            os.dup2(fd, 2)
        finally:
            os.close(fd)


def _writes_to(path: Path) -> bool:
    """Return whether stderr is a log file, or was one before it was turned over, or removed."""
    with contextlib.suppress(OSError):
        for name in (path, f"{path}.1"):
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(2), os.stat(name)):
                    return True
        # Of who was quiet while others turned it over twice.
        gone = os.path.realpath(path)
        return os.readlink("/proc/self/fd/2") in {f"{gone} (deleted)", f"{gone}.1 (deleted)"}
    return False


def configure_logging(level: str, own_log: Path | None = None) -> None:
    """Log as JSON lines to stderr, what ends the process included.

    Args:
        level: the least that is logged.
        own_log: a file that is turned over when it has grown, if stderr is that file.
    """
    logging.raiseExceptions = False  # a log on a full disk loses a record, and no more
    handler = logging.StreamHandler()
    if own_log is not None and _writes_to(own_log):
        handler = LogFile(own_log)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler])
    log = logging.getLogger("supervisor")
    sys.excepthook = lambda *exc: log.critical("the process ends: %s", exc[1], exc_info=exc)
    threading.excepthook = lambda failure: log.critical(
        "a thread ends: %s", failure.exc_value, exc_info=failure.exc_value
    )
