# SPDX-License-Identifier: Apache-2.0
"""Takes secrets out of text that leaves the process: logs, messages, tracebacks.

The last line of defence: we write no secrets on purpose, but the exception of a library may quote
an address or a header. Pure.
"""

from __future__ import annotations

import re
from typing import Final

_HIDDEN: Final = "***"
# Ends of client_secret, id_token, X-Amz-Signature, and the sig of a signed address.
_KEYS: Final = r"\w{0,24}(?:passw(?:or)?d|secret|sig(?:nature)?|authorization|token)"
_QUOTED: Final = r"""(?:"(?:[^"\\]++|\\.)*+"?|'(?:[^'\\]++|\\.)*+'?)"""  # its end may be cut off
_NESTED: Final = r"""\\"(?:[^"\\]++|\\[^"])*+"""  # of JSON within a string of JSON
# The time of each grows with the text, not with its square: a pattern that may begin at every
# character has no part of unbounded length after it that can fail. So `_URLS` looks at a run of
# address characters only from its start, and `_without_query` looks into it.
_PATTERNS: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    (re.compile(r"://[^\s/'\"]*@"), f"://{_HIDDEN}@"),  # user and password of a URL
    (re.compile(r"\b((?:authorization|x-registry-auth):\s*+(?:(?:basic|bearer|token)\s++)?)"
                r"[^\s\"',]++", re.IGNORECASE), rf"\1{_HIDDEN}"),
    (re.compile(r"\b(Basic|Bearer)(\s++)(?!realm\b)[\w.~+/=-]{6,}+", re.IGNORECASE),
     rf"\1\2{_HIDDEN}"),
    (re.compile(rf"(\b{_KEYS}=)(?!\*{{3}})(?:{_QUOTED}|[^\s,;&\"'}}]++)",
                re.IGNORECASE), rf"\1{_HIDDEN}"),
    (re.compile(rf"(\\?[\"'](?:{_KEYS}|auth)\\?[\"']\s*+:\s*+)(?:{_QUOTED}|{_NESTED})",
                re.IGNORECASE | re.DOTALL), rf"\1{_HIDDEN}"),
)  # fmt: skip
_URLS: Final = re.compile(r"(?<![^\s'\"<>])[^\s'\"<>?]++\?[^\s'\"<>]++")
# A target may have no scheme and host, as urllib3 and http.client quote it.
_ADDRESS: Final = re.compile(r"\bhttps?://|^/|(?<![\w/])/(?:v2|store|token)\b", re.IGNORECASE)


def redact(text: str) -> str:
    """Return `text` without what looks like a password, a token or a signature."""
    text = _URLS.sub(_without_query, text)
    for pattern, instead in _PATTERNS:
        text = pattern.sub(instead, text)
    return text


def _without_query(run: re.Match[str]) -> str:
    """Hide the query of an address (signatures, tokens)."""
    text = run[0]
    start = _ADDRESS.search(text)
    query = text.find("?", start.end()) if start else -1
    return text if query < 0 or query + 1 == len(text) else f"{text[: query + 1]}{_HIDDEN}"
