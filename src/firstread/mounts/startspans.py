# SPDX-License-Identifier: Apache-2.0
"""A start as spans of a trace: pull, mount, first reads, ready. Pure.

Owns names, attributes and bounds of the spans; `firstread.fetch.history` and `Puller` own facts.
`firstread.daemon.spanexporter` sends spans to a collector. Nothing here needs OpenTelemetry.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from firstread.documents import Document, Moment, Seconds
from firstread.fetch.imagehistory import ImageHistory, ReadWaited
from firstread.fetch.stats import ReadFigures

MOST_READS: Final = 32  # of a start that get a span of their own: the longest
RECENT_S: Final = 60.0  # a pull that ended longer before the mount is not part of the start
_CONTEXT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")

START: Final = "firstread.start"


class Span(Document):
    """A span.

    name: `firstread.start`, or a part of it
    began: when
    seconds: that it took
    attributes: of it
    parent: place of the span above it; null for the first, and where `context` names another
    context: W3C trace context of the span above it, or empty
    """

    name: str
    began: Moment
    seconds: Seconds
    attributes: dict[str, str | int | float]
    parent: int | None = None
    context: str = ""


@dataclass
class PullFacts:
    """A pull that has asked a registry.

    Args:
        began: monotonic seconds, as the others.
        resolved: manifest and config were known.
        ended: the metadata was on the node.
        context: W3C trace context of who asked, or empty.
    """

    began: float
    resolved: float
    ended: float
    context: str = ""


@dataclass(frozen=True)
class StartFacts:
    """A start that is over.

    Args:
        image: reference.
        digest: of its manifest.
        device: how the kernel asks for its bytes.
        context: W3C trace context of who asked for the mount, or empty.
        pull: of the image, if there was one.
        history: of the image; its sectors are not needed.
        offset_s: what monotonic seconds lack to seconds since 1970.
        figures: of the image.
    """

    image: str
    digest: str
    device: str
    context: str
    pull: PullFacts | None
    history: ImageHistory
    offset_s: float
    figures: ReadFigures


def checked_context(text: str) -> str:
    """Return a ``traceparent`` (https://www.w3.org/TR/trace-context), or nothing if it is none."""
    return text if len(text) <= 55 and _CONTEXT.fullmatch(text) else ""


def spans_of(start: StartFacts) -> list[Span]:
    """Return the spans of a start, each behind the one above it."""
    history, figures = start.history, start.figures
    steps = {step.name: step for step in history.steps}
    mount, reads = steps["mount"], history.reads
    ready = max([mount.at + mount.seconds, *(read.at + read.seconds for read in reads)])
    pull = start.pull
    if pull is not None and history.began - (pull.ended + start.offset_s) > RECENT_S:
        pull = None
    began = min(history.began, pull.began + start.offset_s) if pull else history.began
    attributes: dict[str, str | int | float] = {
        "container.image.name": start.image,
        "container.image.id": start.digest,
        "firstread.device": start.device,
        "firstread.requests": figures.requests,
        "firstread.fetched_bytes": figures.bytes_fetched,
        "firstread.failed_reads": figures.failed_reads,
    }
    causes = figures.bytes_by_cause.items()
    attributes |= {f"firstread.fetched_bytes.{cause}": count for cause, count in causes}
    context = start.context or (pull.context if pull else "")
    spans = [Span(START, began, history.began + ready - began, attributes, context=context)]
    if pull is not None:
        spans += _of_pull(pull, start.offset_s, apart=bool(start.context and pull.context))
    spans.append(Span("mount", history.began + mount.at, mount.seconds, {}, 0))
    if reads:
        spans += _of_reads(reads, history.began, len(spans))
    spans.append(Span("ready", history.began + ready, 0.0, {}, 0))
    return spans


def _of_pull(pull: PullFacts, offset_s: float, *, apart: bool) -> list[Span]:
    """Return the spans of a pull, the second of a trace.

    Args:
        pull: it.
        offset_s: see `StartFacts`.
        apart: somebody else asked for it than for the mount, and both have a trace.
    """
    began, resolved = pull.began + offset_s, pull.resolved + offset_s
    above: tuple[int | None, str] = (None, pull.context) if apart else (0, "")
    return [
        Span("pull", began, pull.ended - pull.began, {}, *above),
        Span("resolve", began, pull.resolved - pull.began, {}, 1),
        Span("metadata", resolved, pull.ended - pull.resolved, {}, 1),
    ]


def _of_reads(reads: Sequence[ReadWaited], began: float, place: int) -> list[Span]:
    """Return a span over all reads that waited, and one for each of the longest."""
    first = min(read.at for read in reads)
    last = max(read.at + read.seconds for read in reads)
    waits = sorted(read.seconds for read in reads)
    attributes: dict[str, str | int | float] = {
        "firstread.reads": len(reads),
        "firstread.wait.p50": waits[len(waits) // 2],
        "firstread.wait.p99": waits[min(len(waits) - 1, int(0.99 * len(waits)))],
        "firstread.wait.max": waits[-1],
    }
    longest = sorted(reads, key=lambda read: -read.seconds)[:MOST_READS]
    return [
        Span("first reads", began + first, last - first, attributes, 0),
        *(
            Span("first read", began + read.at, read.seconds, _of_read(read), place)
            for read in sorted(longest, key=lambda read: read.at)
        ),
    ]


def _of_read(read: ReadWaited) -> dict[str, str | int | float]:
    return {
        "firstread.sector": read.sector,
        "firstread.offset": read.offset,
        "firstread.bytes": read.bytes,
    }
