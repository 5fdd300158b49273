# SPDX-License-Identifier: Apache-2.0
"""Parts of a page of docs that programs write: between ``<!-- NAME -->`` and ``<!-- end -->``."""

from __future__ import annotations

import re
from pathlib import Path

_PART = re.compile(r"<!-- ([\w-]+) -->\n(.*?)<!-- end -->\n", re.DOTALL)


def parts_of(page: Path) -> dict[str, str]:
    """Return the text of each part of a page by its name; none of a page that is missing."""
    return dict(_PART.findall(page.read_text())) if page.exists() else {}


def marked(name: str, text: str) -> str:
    """Return a part with its marks. `text` ends a line."""
    return f"<!-- {name} -->\n{text}<!-- end -->\n"
