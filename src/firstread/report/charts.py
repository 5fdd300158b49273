# SPDX-License-Identifier: Apache-2.0
"""The drawings of one start: timeline, bytes that arrive, sectors, and how long reads waited.

Owns what each shows and how it stays small: above a bound, marks share bins. Colours are classes
that the style sheet of the page defines, so that they fit to light and dark.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from firstread.fetch.imagehistory import SectorCame, Step
from firstread.report.shownstart import Start, cause_of, percentile
from firstread.report.svg import (
    Markup,
    bar,
    element,
    joined,
    label,
    number,
    percent,
    plot,
    seconds,
    ticks,
)
from firstread.units import counted, format_size

BINS: Final = 240  # of time
ROW: Final = 24.0  # pixels of a step
READS: Final = 62.0  # pixels of the reads that wait
AXIS: Final = 22.0  # pixels below a plot, for its axis
CAUSES: Final = ("demand", "hot", "prefetch", "completion", "background", "before", "absent")
WORDS: Final = {
    "demand": "a read asked for it",
    "hot": "streamed, hot sectors first",
    "prefetch": "fetched ahead of a reader",
    "completion": "the rest of it, or of a pinned image",
    "background": "background completion",
    "before": "on the node before",
    "absent": "absent",
}


def causes(names: Iterable[str]) -> list[str]:
    """Return these causes in the order of all; a later version may know others."""
    return sorted(set(names), key=lambda name: (*CAUSES, name).index(name))


def kind(cause: str) -> str:
    """Return the class of a cause's colour."""
    return f"c-{cause}" if cause in CAUSES else "c-other"


def axis(end: float, height: float) -> Iterator[Markup]:
    """Yield the time axis of a plot, with a line through it at each tick."""
    for at in ticks(end):
        x = percent(at / end)
        yield element("line", x1=x, x2=x, y1=0, y2=height, class_="grid")
        anchor = "start" if not at else "end" if at > 0.95 * end else "middle"
        yield element("text", seconds(at), x=x, y=height + 15, text_anchor=anchor, class_="tick")


def timeline(start: Start, end: float) -> Markup:
    """Return the steps of a start, the moment it was ready, and the reads that wait."""
    ready_y = ROW * len(start.steps)
    reads_y = ready_y + (0.0 if start.ready is None else ROW)
    height = reads_y + (READS if start.reads else 0.0)
    parts = list(axis(end, height))
    if start.ready is not None:
        x = percent(start.ready / end)
        parts.append(element("line", x1=x, x2=x, y1=0, y2=height, class_="ready"))
        words = f"ready {seconds(start.ready)}"
        parts.append(label(start.ready / end, ready_y + 16, words, "strong"))
    for row, step in enumerate(start.steps):
        parts += _step(step, end, row * ROW)
    if start.reads:
        parts += _reads(start, end, reads_y)
    return plot(height + AXIS, *parts, title=f"timeline of {start.name}")


def _step(step: Step, end: float, y: float) -> Iterator[Markup]:
    """Yield the bar of a step, and its words: behind it if there is room, else in it or before."""
    words = f"{step.name} {seconds(step.seconds)}"
    begins, stops = step.at / end, (step.at + step.seconds) / end
    yield bar(begins, max(stops - begins, 0.002), y + 5, ROW - 10, "step", words)
    if stops <= 0.65:
        yield label(stops, y + 16, words)
    elif stops - begins >= 0.25:
        yield label(begins, y + 16, words, "inside", room=0)
    else:
        yield label(begins, y + 16, words, room=1)


def _reads(start: Start, end: float, y: float) -> Iterator[Markup]:
    """Yield how many reads wait at each moment."""
    counts, most = _waiting(start, end)
    scale = (READS - 22) / most
    for x, count in enumerate(counts):
        if count:
            tall = max(2.0, count * scale)
            yield bar(x / BINS, 1 / BINS, y + READS - tall, tall, "reads")
    words = f"reads that wait: {number(most)} at once at most" if start.kind == "start" else ""
    yield element("text", words, x=0, y=y + 12, class_="note")


def _waiting(start: Start, end: float) -> tuple[list[int], int]:
    """Return how many reads wait in each bin of time, and the most at once."""
    changes = [0] * (BINS + 1)
    for read in start.reads:
        first = int(read.at / end * BINS)
        if first < BINS:
            changes[first] += 1
            changes[min(BINS, int((read.at + read.seconds) / end * BINS) + 1)] -= 1
    counts, now = [], 0
    for change in changes[:BINS]:
        now += change
        counts.append(now)
    return counts, max(1, *counts)


def arrivals(start: Start, end: float) -> Markup:
    """Return the bytes that arrive each moment, by the cause of their request."""
    by_cause = start.arrivals(end, BINS)
    height, per_s = 110.0, BINS / end
    top = max((sum(bins) for bins in zip(*by_cause.values(), strict=True)), default=0.0) or 1.0
    parts = list(axis(end, height))
    below = [height] * BINS
    for cause in causes(by_cause):
        for x, count in enumerate(by_cause[cause]):
            if count > 0:
                tall = count / top * (height - 20)
                below[x] -= tall
                parts.append(bar(x / BINS, 1 / BINS, below[x], tall, kind(cause)))
    parts.append(element("line", x1=0, x2="100%", y1=20, y2=20, class_="grid"))
    parts.append(element("text", f"{format_size(top * per_s)}/s", x=0, y=14, class_="note"))
    return plot(height + AXIS, *parts, title="compressed bytes that arrive, by cause")


def order(start: Start) -> Markup:
    """Return when each sector came: time to the right, device slots downwards."""
    came = [(s.at, slot, cause_of(s)) for slot, s in enumerate(start.sectors) if s.at is not None]
    end = max((at for at, _, _ in came), default=1.0) or 1.0
    height, slots = 160.0, max(1, len(start.sectors))
    rows = min(slots, int(height) // 3)
    marks = dict[tuple[int, int], str]()
    for at, slot, cause in came:
        marks.setdefault((int(at / end * (BINS - 1)), slot * rows // slots), cause)
    tall = height / rows
    parts = list(axis(end, height))
    for (x, row), cause in sorted(marks.items()):
        parts.append(bar(x / BINS, 1.5 / BINS, row * tall, min(tall, 6.0), kind(cause)))
    parts.append(element("text", "sector 0", x=0, y=11, class_="note"))
    parts.append(element("text", f"sector {slots - 1}", x=0, y=height - 4, class_="note"))
    return plot(height + AXIS, *parts, title="when each sector came")


def sector_map(start: Start) -> Markup:
    """Return a cell for each sector, in the colour of why it came; a share of it if it is partial.

    Above 4,096 sectors, neighbours share a cell.
    """
    sectors = start.sectors
    share = -(-len(sectors) // 4096)
    groups = [sectors[n : n + share] for n in range(0, len(sectors), share)]
    columns = 64 if len(groups) <= 1024 else 128
    cells = []
    for place, group in enumerate(groups):
        y, x = divmod(place, columns)
        cause = Counter(map(cause_of, group)).most_common(1)[0][0]
        filled = sum(s.filled for s in group) / max(1, sum(s.size for s in group))
        tall = 8 * min(1.0, filled) if cause == "absent" else 8
        cells.append(element("rect", x=10 * x, y=10 * y, width=8, height=8, class_="c-absent"))
        if cause != "absent" or tall:
            look = kind(cause) if cause != "absent" else "partial"
            words = _about(group[0], place) if len(groups) <= 1024 else ""
            told = [element("title", words)] if words else []
            top = 10 * y + 8 - tall
            cells.append(element("rect", *told, x=10 * x, y=top, width=8, height=tall, class_=look))
    height = 10 * -(-len(groups) // columns)
    return element(
        "svg",
        *cells,
        viewBox=f"0 0 {10 * columns} {height}",
        role="img",
        aria_label="sectors in order of device slots",
        class_="map",
    )


def _about(sector: SectorCame, slot: int) -> str:
    cause = cause_of(sector)
    when = f" at {seconds(sector.at)}" if sector.at is not None else ""
    return f"sector {slot}: {WORDS.get(cause, cause)}{when}, {format_size(sector.filled)}"


def share(part: float, whole: float, words: str, others: str) -> Markup:
    """Return a bar for the whole with a darker part, and what both are."""
    drawn = plot(
        14,
        bar(0, 1, 0, 14, "c-absent", others),
        bar(0, part / whole, 0, 14, "reads", words),
        title=f"{words}; {others}",
    )
    return joined([drawn, _legend([("c-demand", words), ("c-absent", others)])])


def histogram(waits: Sequence[float]) -> Markup:
    """Return how long reads have waited, on a logarithmic axis with five bins for each decade.

    Args:
        waits: seconds, sorted; at least one.
    """
    floor = -5.0  # 10 µs: what is below that is in the first bin
    top = max(1, math.ceil(math.log10(max(waits[-1], 1e-4)) + 1e-9) * 5 - int(floor * 5))
    counts = [0] * top
    for wait in waits:
        place = int((math.log10(max(wait, 1e-5)) - floor) * 5)
        counts[min(top - 1, max(0, place))] += 1
    most, height = max(counts), 110.0
    parts = [
        element("text", counted(most, "read"), x=0, y=12, class_="note"),
        element("line", x1=0, x2="100%", y1=18, y2=18, class_="grid"),
    ]
    for decade in range(top // 5 + 1):
        x = percent(decade * 5 / top)
        words = seconds(10 ** (floor + decade))
        anchor = "start" if not decade else "end" if decade * 5 == top else "middle"
        parts.append(element("line", x1=x, x2=x, y1=0, y2=height, class_="grid"))
        parts.append(element("text", words, x=x, y=height + 15, text_anchor=anchor, class_="tick"))
    for place, count in enumerate(counts):
        if count:
            tall = max(1.5, count / most * (height - 18))
            low, high = (10 ** (floor + n / 5) for n in (place, place + 1))
            words = f"{seconds(low)} to {seconds(high)}: {counted(count, 'read')}"
            parts.append(bar(place / top, 0.92 / top, height - tall, tall, "reads", words))
    for share, words in ((0.5, "p50"), (0.99, "p99")):
        value = percentile(waits, share)
        x_share = (math.log10(max(value, 1e-5)) - floor) * 5 / top
        x = percent(x_share)
        parts.append(element("line", x1=x, x2=x, y1=22, y2=height, class_="ready"))
        y = 32 if share == 0.5 else 46
        parts.append(label(x_share, y, f"{words} {seconds(value)}", "strong"))
    return plot(height + AXIS, *parts, title="how long reads have waited")


def growth(starts: Sequence[Start]) -> Markup:
    """Return the bytes of several starts as they grow; each line bears its number."""
    end, height = max(start.end for start in starts), 220.0
    curves = [_grown(start, end) for start in starts]
    top = max(1.0, *(curve[-1] for curve in curves))
    lines, labels = [], [element("text", format_size(top), x=0, y=12, class_="note")]
    for at, (start, curve) in enumerate(zip(starts, curves, strict=True)):
        last, colour = min(BINS, math.ceil(start.end / end * BINS)), f"s{at % 6}"
        heights = [height - 2 - value / top * (height - 30) for value in [0.0, *curve[:last]]]
        points = " ".join(f"{x * 1000 / BINS:.1f},{y:.1f}" for x, y in enumerate(heights))
        lines.append(element("polyline", points=points, class_=f"line {colour}"))
        word, moment = ("end", start.end) if start.ready is None else ("ready", start.ready)
        y = heights[min(last, int(moment / end * BINS))]
        words = f"{at + 1} {word} {seconds(moment)}"
        labels.append(label(moment / end, y - 6, words, colour, room=0.8))  # the curve rises
    box = f"0 0 1000 {height:g}"
    fluid = {"viewBox": box, "preserveAspectRatio": "none", "width": "100%"}
    drawn = element("svg", *lines, height=height, **fluid)
    title = "bytes of each start as they grow"
    return plot(height + AXIS, *axis(end, height), drawn, *labels, title=title)


def _grown(start: Start, end: float) -> list[float]:
    """Return the bytes by the end of each bin: fetched ones; those of a trace: read."""
    bins = [0.0] * BINS
    if start.kind == "start":
        for part in start.arrivals(end, BINS).values():
            bins = [a + b for a, b in zip(bins, part, strict=True)]
    else:
        for read in start.reads:
            bins[min(BINS - 1, int(read.at / end * BINS))] += read.bytes
    total, grown = 0.0, []
    for count in bins:
        total += count
        grown.append(total)
    return grown


def legend(start: Start) -> Markup:
    """Return the causes of sectors with their numbers and bytes."""
    counts, held = start.came(), Counter[str]()
    for sector in start.sectors:
        held[cause_of(sector)] += sector.size
    return _legend(
        (
            kind(cause),
            f"{WORDS.get(cause, cause)}: {counted(count, 'sector')}, {format_size(held[cause])}",
        )
        for cause, count in ((cause, counts[cause]) for cause in causes(counts))
    )


def requests(start: Start) -> Markup:
    """Return the causes of requests with their numbers and bytes, during the start and later."""
    counts, came = Counter[str](), Counter[str]()
    for request in start.requests:
        counts[request.cause] += 1
        came[request.cause] += request.received
    return _legend(
        (kind(cause), f"{cause}: {format_size(came[cause])} in {counted(counts[cause], 'request')}")
        for cause in causes(counts)
    )


def _legend(rows: Iterable[tuple[str, str]]) -> Markup:
    """Return a list of colours and what they stand for."""
    items = (element("li", element("i", class_=look), words) for look, words in rows)
    return element("ul", *items, class_="legend")
