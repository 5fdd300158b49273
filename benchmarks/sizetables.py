# SPDX-License-Identifier: Apache-2.0
"""The two sections of the page that `benchmarks.tune` makes: sector sizes, and predictions.

Owns how figures are summed up. Measures nothing, but runs the simulator.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from benchmarks.measure import median
from benchmarks.places import LAZY, reference, storage
from benchmarks.predicted import predict
from benchmarks.recordings import traced
from benchmarks.report import Goal, Section
from benchmarks.sizes import LOCAL, Footprint, Kept, traces
from benchmarks.suite.runs import Cell, Cells, Run, cells
from benchmarks.suite.workloads import Workload
from firstread.cli.opening import opened_image
from firstread.oci.reference import parse_reference
from firstread.registry.options import AccessOptions
from firstread.testing.registry import DockerRegistry
from firstread.traces.tracefile import read_trace
from firstread.tune.layercontent import read_content, read_frames
from firstread.tune.link import LOOPBACK, parse_link
from firstread.tune.settings import Layouts, Setting
from firstread.tune.workload import fit
from firstread.units import KiB, format_size

SIZES, PREDICTIONS = "sectors", "tune"
GOAL = 0.15  # of the real ready time
FRAME_SIZE, GRANULE = 256 * KiB, 4 * KiB
MB = 1_000_000
ACCESS = AccessOptions(plain_http=True)


def shown(run: Run) -> str:
    """Return a start as a line."""
    sent = f"{run.bytes_to_ready / MB:.1f} MB, {run.requests} requests"
    return f"{run.ready_s:.2f} s, {sent}, {run.present} of {run.sectors} sectors"


def sizes_section(kept: Kept, setting: dict[str, str], runs: int) -> Section:
    """Return which sector size starts soonest, and what each costs."""
    section = Section(SIZES, "Sector sizes", dict(setting))
    section.setting["runs"] = f"medians of {runs} cold starts by turns, by `firstread run`"
    section.setting["`plain`, `hot`"] = "sectors on demand; hot sectors by a trace of the workload"
    section.start()
    found = {key: cell for key, cell in cells(kept.runs).items() if key[0] != LOCAL}
    for (link, kind), rows in _grouped(found).items():
        sizes = {size for row in rows.values() for size in row}
        whole = [row for row in rows.values() if set(row) == sizes]
        for size, ratio in _ratios(whole).items():
            section.add(
                f"{kind}, {link}, {_size(size)}: ready, of the best size",
                ratio,
                "x",
                detail=f"geometric mean of {len(whole)} workloads",
            )
    section.table = [*_starts(found), *_footprints(kept.footprints)]
    print("\n".join(section.table))
    return section


_Rows = dict[str, dict[int, Cell]]
"""Workload to the cells of each sector size."""


def _grouped(found: Cells) -> dict[tuple[str, str], _Rows]:
    grouped: dict[tuple[str, str], _Rows] = {}
    for (link, workload, mode), cell in found.items():
        kind, _, size = mode.partition("-")
        rows = grouped.setdefault((link, kind), {})
        rows.setdefault(workload, {})[int(size.removesuffix("k")) * KiB] = cell
    return {
        key: {n: dict(sorted(r.items())) for n, r in rows.items()} for key, rows in grouped.items()
    }


def _ratios(rows: Sequence[dict[int, Cell]]) -> dict[int, float]:
    """Return for each size the geometric mean of ready times, of the best one of each workload."""
    logs: dict[int, list[float]] = {}
    for row in rows:
        best = min(cell.ready_s for cell in row.values())
        for size, cell in row.items():
            logs.setdefault(size, []).append(math.log(cell.ready_s / best))
    return {size: math.exp(sum(logs[size]) / len(logs[size])) for size in logs}


def _starts(found: Cells) -> Iterator[str]:
    for (link, kind), rows in _grouped(found).items():
        sizes = sorted({size for row in rows.values() for size in row})
        yield from (f"**{kind}, {link}**: seconds until ready, MB, requests", "")
        yield "| workload | " + " | ".join(map(_size, sizes)) + " |"
        yield "|---|" + "--:|" * len(sizes)
        for workload, row in rows.items():
            texts = [_cell(row[size]) if size in row else "" for size in sizes]
            yield f"| {workload} | " + " | ".join(texts) + " |"
        yield ""


def _cell(cell: Cell) -> str:
    run = cell.middle
    return f"**{cell.ready_s:.2f}**, {run.bytes_to_ready / MB:.1f}, {run.requests}"


def _footprints(found: Iterable[Footprint]) -> Iterator[str]:
    names: tuple[str, ...] = (
        "image",
        "sector",
        "sectors",
        "image MB",
        "metadata MB",
        "mount ms",
        "unmount ms",
    )
    names += ("kernel MB", "daemon MB", "all of it s", "warm MB/s")
    yield from ("**What no link changes**", "", "| " + " | ".join(names) + " |")
    yield "|---" + "|--:" * (len(names) - 1) + "|"
    for one in sorted(found, key=lambda one: (one.image, one.size)):
        read = f"{one.content_bytes / MB / one.warm_s:,.0f}" if one.warm_s else ""
        fields = (
            *(one.image if one.size else "made up", _size(one.size) if one.size else "4 KiB"),
            *(f"{one.sectors:,}", f"{one.bytes / MB:.1f}", f"{one.metadata_bytes / MB:.2f}"),
            *(f"{one.mount_s * 1000:.0f}", f"{one.unmount_s * 1000:.0f}"),
            *(f"{one.slab_bytes / MB:.1f}", f"{one.daemon_bytes / MB:.0f}"),
            *(f"{one.fetch_s:.1f}" if one.fetch_s else "", read),
        )
        yield "| " + " | ".join(fields) + " |"
    yield ""


def _size(size: int) -> str:
    return format_size(size).replace(".0 ", " ")


def predictions_section(
    kept: Kept, setting: dict[str, str], workloads: Sequence[Workload]
) -> Section:
    """Return how far the simulator is off, for each cell with a start whose data was local."""
    section = Section(PREDICTIONS, "The simulator beside real starts", dict(setting))
    section.setting["prediction"] = (
        "made from the image with the usual sectors and one trace; a start with local data is the"
        " workload's own time, on both sides"
    )
    section.start()
    found = cells(kept.runs)
    errors: dict[tuple[str, str], list[float]] = {}
    for workload in workloads:
        for link, mode, text, error in _compared(workload, found):
            errors.setdefault((mode.partition("-")[0], link), []).append(abs(error))
            section.table.append(text)
    for (kind, link), values in errors.items():
        section.add(
            f"{kind}, {link}: prediction off by, median",
            median(values) * 100,
            "%",
            Goal("<=", GOAL * 100),
            f"worst {max(values):.0%} of {len(values)} cells",
        )
    head = (
        "| workload | layout | link | predicted s | real s | off by | requests | MB | local s |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|",
    )
    section.table = [*head, *section.table, ""]
    print("\n".join(section.table))
    return section


def _compared(workload: Workload, found: Cells) -> Iterator[tuple[str, str, str, float]]:
    """Yield (link, mode, row of the table, relative error) for each cell of a workload."""
    mine = {key: cell for key, cell in found.items() if key[1] == workload.name}
    local = {mode: cell.ready_s for (link, _, mode), cell in mine.items() if link == LOCAL}
    with DockerRegistry(storage=storage()) as registry:
        image = parse_reference(reference(registry, workload.image, LAZY))
        with opened_image(image, ACCESS) as (repository, resolved, opened):
            content = read_content(repository, resolved, opened)
            with traced(traces(), workload.name).open("rb") as file:
                trace = read_trace(file)
            fitted = fit(content, trace)
            keys = frozenset(read.key for read in fitted.reads)
            read_frames(repository, content, keys)
    layouts = Layouts(content, [trace], keys)
    for (link, _, mode), cell in mine.items():
        if link == LOCAL or mode not in local:
            continue
        setting = _setting(mode)
        layout, run = layouts.get(setting), cell.middle
        speed = parse_link(LOOPBACK if link == "none" else link)
        predicted, how = predict(layout, speed, fitted, setting, local[mode])
        error = predicted / cell.ready_s - 1
        text = (
            f"| {workload.name} | {setting} | {link} | {predicted:.2f} | {cell.ready_s:.2f}"
            f" | {error:+.0%} | {how.requests} of {run.requests}"
            f" | {how.bytes / MB:.1f} of {run.bytes_to_ready / MB:.1f} | {local[mode]:.2f} |"
        )
        yield link, mode, text, error


def _setting(mode: str) -> Setting:
    kind, _, size = mode.partition("-")
    unit = int(size.removesuffix("k")) * KiB
    frame = min(unit, FRAME_SIZE)
    return (
        Setting(kind, unit, frame, GRANULE, "hot") if kind == "hot" else Setting(kind, unit, frame)
    )
