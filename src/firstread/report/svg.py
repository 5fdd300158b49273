# SPDX-License-Identifier: Apache-2.0
"""The parts of drawings: elements as text, scales, ticks, and figures in words. Pure.

Owns the escaping: every text and every attribute passes `element`. A plot stretches to the width of
its page, so x and widths are shares of it, from 0 to 1, while y and heights are pixels.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Iterator
from typing import Final

from firstread.printable import printable

MAX_TEXT: Final = 300  # characters of a name; the middle of a longer one is left out


class Markup(str):
    """Text that is HTML or SVG already."""

    __slots__ = ()


def element(tag: str, *content: str | Markup, **attributes: str | float | None) -> Markup:
    """Return an element; text in it is escaped, unless it is `Markup`.

    Args:
        tag: its name.
        content: of it.
        attributes: those that are None are left out; ``_`` in a name stands for ``-``, and one at
            the end is left out.
    """
    pairs = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(printable(_value(value)))}"'
        for name, value in attributes.items()
        if value is not None
    )
    inner = "".join(part if isinstance(part, Markup) else text(part) for part in content)
    return Markup(f"<{tag}{pairs}>{inner}</{tag}>")


def text(value: str) -> Markup:
    """Return text from anywhere as one line of HTML."""
    shown = printable(value)
    if len(shown) > MAX_TEXT:
        shown = f"{shown[: MAX_TEXT // 2]}…{shown[-MAX_TEXT // 2 :]}"
    return Markup(html.escape(shown))


def joined(parts: Iterable[Markup]) -> Markup:
    """Return parts behind each other."""
    return Markup("".join(parts))


def percent(share: float) -> str:
    """Return a share of the width as an attribute."""
    return f"{min(max(share, 0.0), 1.0) * 100:.3f}".rstrip("0").rstrip(".") + "%"


def _value(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")


def bar(x: float, width: float, y: float, height: float, kind: str, title: str = "") -> Markup:
    """Return a bar; `kind` is its class, `title` what it says when pointed at."""
    told = [element("title", title)] if title else []
    return element(
        "rect",
        *told,
        x=percent(x),
        width=percent(width),
        y=y,
        height=height,
        class_=kind,
    )


def label(x: float, y: float, content: str, kind: str = "", *, room: float = 0.35) -> Markup:
    """Return text that begins at `x`, or ends there if less than `room` of the width is left."""
    ends = x > 1 - room
    return element(
        "text",
        content,
        x=percent(x),
        y=y,
        dx=-6 if ends else 6,
        text_anchor="end" if ends else None,
        class_=kind or None,
    )


def plot(height: float, *content: Markup, title: str) -> Markup:
    """Return a drawing as wide as its page; `title` says for a screen reader what it shows."""
    return element("svg", *content, height=height, width="100%", role="img", aria_label=title)


def ticks(end: float, most: int = 6) -> Iterator[float]:
    """Yield round values from 0 to at most `end`, `most` of them besides 0."""
    step = 10.0 ** math.floor(math.log10(end / most))
    step *= next(factor for factor in (1, 2, 5, 10) if end / (step * factor) <= most)
    for number in range(int(end / step + 1e-9) + 1):
        yield number * step


def seconds(value: float) -> str:
    """Return a time in words: ``"12 ms"``, ``"1.25 s"``."""
    if value < 0.001:
        return f"{value * 1e6:.0f} µs" if value else "0 s"
    if value < 0.9995:
        return f"{value * 1000:.3g} ms"
    return f"{value:.3g} s" if value < 999.5 else f"{value:.0f} s"


def number(value: int) -> str:
    """Return a count with its thousands apart."""
    return f"{value:,}"
