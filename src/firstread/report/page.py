# SPDX-License-Identifier: Apache-2.0
"""The page: one HTML file that needs no other file, no network and no script.

Owns the sections and their words. Invariant: the page has a bounded size, whatever the starts have.
Its own policy forbids all requests, so that no name from an image can make one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Final

from firstread.report import charts
from firstread.report.shownstart import QUIET_S, Start, directories, percentile
from firstread.report.startrecord import FileRead
from firstread.report.svg import (
    Markup,
    bar,
    element,
    joined,
    number,
    plot,
    seconds,
    text,
)
from firstread.units import counted, format_size

MOST_STARTS: Final = 12
_DIRECTORIES, _FILES = 15, 30  # rows
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

_MEMORY: Final = (
    " “In memory” is what the kernel holds of a file: what was read, or read ahead of a reader,"
    " and not dropped since."
)
_SEEN: Final = (
    "“Read” counts reads that waited for data. Reads of present sectors are invisible to the node."
)
_LOOKED: Final = (
    "Sectors that came, uncompressed. Bytes with a page in memory were read, or read ahead of a"
    " reader. Nobody has read the others, or the kernel has dropped them since."
)
_NOT_LOOKED: Final = (
    "Not known: the node sees no reads of present sectors. A report about a mount asks the kernel"
    " which pages of its files are in memory."
)


def page(starts: Sequence[Start]) -> str:
    """Return the page about one start, or about several that are compared."""
    title = starts[0].name if len(starts) == 1 else f"{len(starts)} starts compared"
    body = [_head(starts[0]), *_sections(starts[0])] if len(starts) == 1 else _compared(starts)
    style = files("firstread.report").joinpath("style.css").read_text()
    head = [
        Markup('<meta charset="utf-8">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        Markup('<link rel="icon" href="data:,">'),
        element("title", f"{title} – firstread"),
        element("style", Markup(style)),
    ]
    html = element("html", element("head", *head), element("body", *body, _foot()), lang="en")
    return f"<!doctype html>\n{html}\n"


def _foot() -> Markup:
    return element("footer", "Made by firstread report.")


def _head(start: Start, level: str = "h1", name: str = "") -> Markup:
    facts = [element("li", f"{key}: {value}") for key, value in start.facts]
    return joined(
        [
            element(level, name or start.name),
            element("ul", *facts, class_="facts"),
            element(
                "dl", *(_tile(key, value) for key, value, _ in _figures(start)), class_="tiles"
            ),
        ]
    )


def _tile(key: str, value: str) -> Markup:
    return element("div", element("dt", key), element("dd", value))


Figure = tuple[str, str, float | None]  # name, in words, and as a number that is best when small


def _figures(start: Start) -> list[Figure]:
    """Return the figures of a start."""
    ready = start.ready
    found: list[Figure] = [("ready", seconds(ready), ready)] if ready is not None else []
    if start.kind == "trace":
        total = sum(read.bytes for read in start.reads)
        count = len(start.files) + start.more_files
        found += [
            ("read", format_size(total), None),
            ("first reads", number(len(start.reads)), None),
            ("files", number(count), None),
        ]
        return found
    fetched, requests = start.fetched(), sum(r.at <= start.end for r in start.requests)
    waits = start.waits()
    found += [
        ("fetched", format_size(fetched), fetched),
        ("requests", number(requests), requests),
        ("reads that waited", number(len(waits)), len(waits)),
    ]
    if waits:
        p50, p99 = percentile(waits, 0.5), percentile(waits, 0.99)
        found += [
            ("median wait", seconds(p50), p50),
            ("p99 wait", seconds(p99), p99),
            ("longest wait", seconds(waits[-1]), waits[-1]),
        ]
    present = sum(s.filled >= s.size for s in start.sectors)
    found.append(("sectors on the node", f"{present} of {len(start.sectors)}", None))
    unused = start.unused()
    if unused and unused[0]:
        share = unused[1] / unused[0]
        found.append(("fetched, not read", f"{share:.0%}", share))
    return found


# -- one start -----------------------------------------------------------------------------------


def _sections(start: Start, end: float | None = None, level: str = "h2") -> list[Markup]:
    """Return the sections of a start.

    Args:
        start: which.
        end: of the time axes, in seconds; that of the start if None.
        level: element of their headings.
    """
    end = end or start.end
    parts: list[tuple[str, str, Callable[[], Markup], object]] = [
        ("Timeline", _about_time(start), lambda: charts.timeline(start, end), True),
        ("Bytes that arrive", "Compressed, by the cause of the request.",
         lambda: joined([charts.arrivals(start, end), charts.requests(start)]), start.requests),
        ("Sectors", _about_sectors(start), lambda: _sectors(start), start.sectors),
        ("How long reads waited", "Logarithmic; five bins for each factor of ten.",
         lambda: charts.histogram(start.waits()), start.kind == "start" and start.waits()),
        ("Fetched, but not read", *_unused(start)),
        ("Directories", "", lambda: _table(directories(start.files, _DIRECTORIES), _DIRECTORIES, 0),
         start.files),
        ("Files", _about_files(start), lambda: _table(start.files, _FILES, start.more_files),
         start.files),
    ]  # fmt: skip
    made = []
    for title, words, draw, wanted in parts:
        if wanted:
            about = [element("p", words, class_="soft")] if words else []
            made.append(element("section", element(level, title), *about, draw()))
    return made


def _about_time(start: Start) -> str:
    if start.kind == "trace":
        return "First reads of each moment; the higher, the more."
    words = "Time since a new fetcher took the mount over; nothing is known of before."
    if start.steps:
        is_command = start.steps[0].name == "command"
        words = f"Time since {'the command' if is_command else 'the request for the mount'}."
    if later := start.later_reads():
        words += (
            f" The start counts as over after {QUIET_S:g} s without a read that waits;"
            f" {counted(later, 'later read')} left out."
        )
    if start.lost:
        words += f" The record was full: {counted(start.lost, 'row')} missing."
    return words


def _about_sectors(start: Start) -> str:
    share = -(-len(start.sectors) // 4096)
    words = "Each cell is a sector" if share == 1 else f"Each cell is {share} sectors"
    return f"{words}, in order of device slots. Below: when each came."


def _sectors(start: Start) -> Markup:
    drawn = [charts.legend(start), charts.sector_map(start)]
    if any(sector.at is not None for sector in start.sectors):
        drawn.append(element("div", charts.order(start), style="margin-top:1.5rem"))
    return joined(drawn)


def _unused(start: Start) -> tuple[str, Callable[[], Markup], bool]:
    """Return the words, the drawing and whether there is anything to say."""
    unused = start.unused()
    if unused is None:
        return _NOT_LOOKED, Markup, bool(start.sectors)
    total, rest = unused
    used = f"in memory: {format_size(total - rest)}"
    return (
        _LOOKED,
        lambda: charts.share(total - rest, total, used, f"not: {format_size(rest)}"),
        total > 0,
    )


def _about_files(start: Start) -> str:
    if start.kind == "trace":
        return "The first read of each page."
    cached = any(file.cached is not None for file in start.files)
    return _SEEN + (_MEMORY if cached else "")


def _table(rows: Sequence[FileRead], most: int, more: int) -> Markup:
    """Return a table of files or directories: the first `most`, and how many others there are."""
    cached = any(row.cached is not None for row in rows)
    waited = any(row.seconds for row in rows)
    top = max(1, *(max(row.bytes, row.cached or 0) for row in rows))
    columns: list[tuple[str, Callable[[FileRead], str], bool]] = [
        ("read", lambda row: format_size(row.bytes), True),
        ("in memory", lambda row: format_size(row.cached or 0), cached),
        ("reads", lambda row: number(row.reads), True),
        ("waited", lambda row: seconds(row.seconds), waited),
        ("first", lambda row: seconds(row.first) if row.first is not None else "", True),
    ]
    shown = [(name, words) for name, words, wanted in columns if wanted]
    lines = [element("tr", *(element("th", name) for name in ("path", *dict(shown), "")))]
    for row in rows[:most]:
        cells = [element("td", words(row)) for _, words in shown]
        length = max(row.bytes, row.cached or 0) / top
        drawn = plot(10, bar(0, length, 0, 10, "reads"), title=format_size(length * top))
        lines.append(
            element("tr", element("td", row.path), *cells, element("td", drawn, class_="bar"))
        )
    others = len(rows[most:]) + more
    about = [element("p", f"and {number(others)} others", class_="soft")] if others else []
    return joined([element("div", element("table", *lines), class_="scroll"), *about])


# -- several starts ------------------------------------------------------------------------------


def _compared(starts: Sequence[Start]) -> list[Markup]:
    names = [f"{at}. {start.name}" for at, start in enumerate(starts, 1)]
    end = max(start.end for start in starts)
    body = [
        element("h1", f"{len(starts)} starts compared"),
        element("div", _comparison(starts, names), class_="scroll"),
        element("h3", "Bytes over time"),
        element("p", "Fetched, compressed; for a trace: read.", class_="soft"),
        charts.growth(starts),
        element("h3", "Timelines, on one axis"),
    ]
    for name, start in zip(names, starts, strict=True):
        body += [element("p", text(name)), charts.timeline(start, end)]
    for name, start in zip(names, starts, strict=True):
        body += [_head(start, "h2", name), *_sections(start, None, "h3")]
    return body


def _comparison(starts: Sequence[Start], names: Sequence[str]) -> Markup:
    """Return a table of the figures, the best of each line marked."""
    figures = [{key: (words, value) for key, words, value in _figures(s)} for s in starts]
    keys = list(dict.fromkeys(key for found in figures for key in found))
    lines = [element("tr", element("th", ""), *(element("th", name) for name in names))]
    for key in keys:
        row = [found.get(key, ("", None)) for found in figures]
        values = [value for _, value in row if value is not None]
        best = min(values) if len(set(values)) > 1 else None
        cells = [
            element("td", words, class_="best" if value is not None and value == best else None)
            for words, value in row
        ]
        lines.append(element("tr", element("td", key), *cells))
    return element("table", *lines, class_="compared")
