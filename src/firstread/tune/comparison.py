# SPDX-License-Identifier: Apache-2.0
"""Replays every setting over every link, and chooses one.

Owns the order of the work and the choice: the setting whose starts are soonest ready, over all
links; among those within `CLOSE` of it the one that fetches the fewest bytes. Only layouts that
firstread can make are chosen, the others are there to compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, exp, log
from typing import NamedTuple

from firstread.errors import LimitError, UsageError
from firstread.oci.repository import Repository
from firstread.oci.resolve import ResolvedImage
from firstread.sectors.image import BlockImage
from firstread.traces.tracefile import Trace
from firstread.tune.hits import count_hits, held
from firstread.tune.layercontent import Content, read_content, read_frames
from firstread.tune.link import LinkSpeed
from firstread.tune.replay import Replayed, replay
from firstread.tune.settings import Layouts, Setting
from firstread.tune.simulatedlane import Costs
from firstread.tune.tuned import CacheTuned, SettingTuned, Tuned
from firstread.tune.workload import Workload, fit, steps
from firstread.units import counted

CLOSE = 1.02
MAX_REPLAYED = 20_000_000  # reads of all settings and links: some minutes
OURS = ("plain", "hot")


class Question(NamedTuple):
    """A comparison to make.

    Args:
        settings: of the image.
        links: to its registry.
        costs: of the node.
        stores: sizes of the store, in bytes, for its hit ratio.
        repeat: starts of each trace for that.
        local_s: seconds that each workload works until it is ready, if its trace did not keep the
            time: a slow trace hides what a start would wait for (docs/adr/0125).
    """

    settings: Sequence[Setting]
    links: Sequence[LinkSpeed]
    costs: Costs = Costs()
    stores: Sequence[int] = ()
    repeat: int = 1
    local_s: float | None = None


def tune(
    repository: Repository,
    resolved: ResolvedImage,
    image: BlockImage,
    traces: Sequence[Trace],
    question: Question,
) -> Tuned:
    """Replay traces on an image, and choose a setting.

    Args:
        repository: where the image is.
        resolved: its manifest.
        image: its metadata.
        traces: of starts.
        question: what to compare.

    Raises:
        UsageError: a trace has nothing of this image.
        FirstreadError: the image cannot be read, or cannot have such sectors.
    """
    content = read_content(repository, resolved, image)
    workloads = [_fit(content, trace, number, traces) for number, trace in enumerate(traces, 1)]
    if question.local_s is not None:
        workloads = [workload.paced(question.local_s) for workload in workloads]
        question = question._replace(costs=question.costs._replace(traced_s=0.0))
    keys = frozenset(key for workload in workloads for key in workload.keys)
    read_frames(repository, content, keys)
    layouts = Layouts(content, traces, keys)
    _check_work(question, workloads)
    rows, impossible = compare(layouts, workloads, question)
    chosen, why = choose(rows, len(question.links))
    return Tuned(
        reference=str(repository.reference),
        digest=resolved.descriptor.digest,
        traces=len(workloads),
        reads=sum(len(workload.reads) for workload in workloads),
        impossible=impossible,
        left_out=sum(workload.left_out for workload in workloads),
        later=sum(workload.later for workload in workloads),
        local=sum(workload.local_s for workload in workloads) / len(workloads),
        settings=rows,
        chosen=chosen,
        why=why,
        stores=caches(layouts, workloads, rows[chosen].setting, question),
    )


def _fit(content: Content, trace: Trace, number: int, traces: Sequence[Trace]) -> Workload:
    try:
        return fit(content, trace)
    except UsageError as exc:
        if len(traces) > 1:
            exc.message = f"trace {number} of {len(traces)}: {exc.message}"
        raise


def _check_work(question: Question, workloads: Sequence[Workload]) -> None:
    reads = sum(len(workload.reads) for workload in workloads)
    reads *= len(question.settings) * len(question.links)
    if reads > MAX_REPLAYED:
        raise UsageError(
            f"this would replay {reads} reads, {MAX_REPLAYED} at most are replayed",
            hint="give fewer settings or links; firstread trace merge makes one trace of several",
        )


def compare(
    layouts: Layouts, workloads: Sequence[Workload], question: Question
) -> tuple[list[SettingTuned], list[str]]:
    """Replay every workload for every setting and link.

    Returns:
        a row for each pair of setting and link, and what is wrong with the settings left out.

    Raises:
        LimitError: the image can have none of the settings.
    """
    rows: list[SettingTuned] = []
    wrong: list[str] = []
    for setting in question.settings:
        try:
            layout = layouts.get(setting)
        except LimitError as exc:
            wrong.append(f"{setting}: {exc.message}")
            continue
        work = [(steps(workload, layout), workload.end_s) for workload in workloads]
        for link in question.links:
            starts = [
                replay(layout, link, question.costs, reads, end_s, prefetch=setting.prefetch)
                for reads, end_s in work
            ]
            rows.append(_row(setting, link, starts, layout.size))
    if not rows:
        raise LimitError(f"the image cannot have {wrong[0]}", hint="give larger sizes")
    return rows, wrong


def _row(
    setting: Setting, link: LinkSpeed, starts: Sequence[Replayed], image_size: int
) -> SettingTuned:
    waits = sorted(wait for start in starts for wait in start.waits)
    count = len(starts)
    return SettingTuned(
        link=link.name,
        layout=setting.kind,
        unit_size=setting.unit_size,
        frame_size=setting.frame_size,
        granule=setting.granule,
        prefetch=setting.prefetch,
        ready=sum(start.ready_s for start in starts) / count,
        wait_p50=quantile(waits, 0.5),
        wait_p99=quantile(waits, 0.99),
        wait_p999=quantile(waits, 0.999),
        bytes=round(sum(start.bytes for start in starts) / count),
        requests=sum(start.requests for start in starts) / count,
        image_size=image_size,
    )


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the value of an ordered sequence that a share of it does not exceed."""
    return ordered[min(len(ordered) - 1, ceil(share * len(ordered)) - 1)]


def choose(rows: Sequence[SettingTuned], count: int) -> tuple[int, str]:
    """Return the first row of the setting to use, and why.

    Args:
        rows: as from `compare`.
        count: links.
    """
    links = counted(count, "link")
    best = [min(row.ready for row in rows[at::count]) for at in range(count)]
    scores, fetched = {}, {}
    for first in range(0, len(rows), count):
        own = rows[first : first + count]
        lags = [log(row.ready / least) for row, least in zip(own, best, strict=True)]
        scores[first] = exp(sum(lags) / count)
        fetched[first] = sum(row.bytes for row in own)
    ours = [first for first in scores if rows[first].layout in OURS] or list(scores)
    least = min(scores[first] for first in ours)
    close = [first for first in ours if scores[first] <= least * CLOSE]
    chosen = min(close, key=lambda first: (fetched[first], scores[first]))
    if len(close) == 1:
        return chosen, f"of {counted(len(ours), 'setting')} it is soonest ready over {links}"
    return chosen, (
        f"{len(close)} settings are within {CLOSE - 1:.0%} of the soonest ready over {links};"
        " of these it fetches the fewest bytes"
    )


def caches(
    layouts: Layouts, workloads: Sequence[Workload], setting: Setting, question: Question
) -> list[CacheTuned]:
    """Return what stores of several sizes save, for starts of all workloads in turn."""
    layout = layouts.get(setting)
    starts = [held(layout, steps(workload, layout)) for workload in workloads] * question.repeat
    found = [count_hits(starts, limit) for limit in question.stores]
    return [
        CacheTuned(hits.limit, hits.starts, hits.touched, hits.missed, hits.ratio, hits.fetched)
        for hits in found
    ]
