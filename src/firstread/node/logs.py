# SPDX-License-Identifier: Apache-2.0
"""Structured logs: one JSON object a line. Fields of a record come by ``extra={"fields": …}``.

Invariant: no line has a secret, whatever a library put into an exception.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time

from firstread.redact import redact


class JsonFormatter(logging.Formatter):
    """Formats a record as JSON: time, level, part, message, and its own fields."""

    def format(self, record: logging.LogRecord) -> str:
        document: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "part": record.name,
            "message": redact(record.getMessage()),
        }
        for name, value in getattr(record, "fields", {}).items():
            document[name] = redact(value) if isinstance(value, str) else value
        if record.exc_info:
            document["exception"] = redact(self.formatException(record.exc_info))
        return json.dumps(document, default=lambda value: redact(str(value)))


def configure_logging(level: str) -> None:
    """Log as JSON lines to stderr, what ends the process included."""
    logging.raiseExceptions = False  # a log on a full disk loses a record, and no more
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler])
    log = logging.getLogger("supervisor")
    sys.excepthook = lambda *exc: log.critical("the process ends: %s", exc[1], exc_info=exc)
    threading.excepthook = lambda failure: log.critical(
        "a thread ends: %s", failure.exc_value, exc_info=failure.exc_value
    )
