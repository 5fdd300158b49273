# SPDX-License-Identifier: Apache-2.0
"""Takes secrets out of text that leaves the process: logs, messages, tracebacks.

The last line of defence: nothing that is written here on purpose has a secret in it, but the
exception of a library may quote an address or a header. Pure.
"""

from __future__ import annotations

import re
from typing import Final

_HIDDEN: Final = "***"
_KEYS: Final = (
    "(?:password|secret|signature|authorization|(?:identity|access|refresh|registry)?_?token)"
)
_PATTERNS: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    # user and password, and the query (signatures, tokens) of a URL
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s/@'\"]+@", re.IGNORECASE), rf"\1{_HIDDEN}@"),
    (re.compile(r"(\bhttps?://[^\s?'\"<>]+\?)[^\s'\"<>]+", re.IGNORECASE), rf"\1{_HIDDEN}"),
    # the same of a target without scheme and host, as urllib3 and http.client quote it
    (re.compile(r"(?<![\w/])(/(?:v2|store|token)\b[^\s?'\"<>]*\?)[^\s'\"<>]+"), rf"\1{_HIDDEN}"),
    (re.compile(r"\b(Basic|Bearer)(\s+)(?!realm\b)[\w.~+/=-]{6,}", re.IGNORECASE),
     rf"\1\2{_HIDDEN}"),
    (re.compile(rf"(\b{_KEYS}=)[^\s,;&\"'}}]+", re.IGNORECASE), rf"\1{_HIDDEN}"),
    (re.compile(rf"([\"'](?:{_KEYS}|auth)[\"']\s*:\s*)(?:\"[^\"]*\"|'[^']*')", re.IGNORECASE),
     rf"\1{_HIDDEN}"),
)  # fmt: skip


def redact(text: str) -> str:
    """Return `text` without what looks like a password, a token or a signature."""
    for pattern, instead in _PATTERNS:
        text = pattern.sub(instead, text)
    return text
