# SPDX-License-Identifier: Apache-2.0
"""A chart of the suite: ready times of all modes, a panel for each link and workload.

Needs matplotlib, which firstread itself does not. The file depends on the figures alone: no date,
no random ids.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.suite.modes import BY, OWN
from benchmarks.suite.peers import PEERS
from benchmarks.suite.runs import Cell, Cells

WIDTH, ROW = 5.0, 0.26  # inches: of a panel, and of one of its bars
SEED = "firstread"
OTHERS = "0.7"
_COLORS = {mode.name: "C0" for mode in OWN} | {mode.name: "C1" for mode in PEERS}


def missing() -> str | None:
    """Return why there can be no chart, or None."""
    found = importlib.util.find_spec("matplotlib")
    return None if found else "a chart needs matplotlib: pip install matplotlib"


def draw(found: Cells, path: Path) -> None:
    """Draw all cells into an SVG, PNG or PDF file, after its name."""
    matplotlib = importlib.import_module("matplotlib")
    figures = importlib.import_module("matplotlib.figure")
    links = list(dict.fromkeys(link for link, _, _ in found))
    workloads = list(dict.fromkeys(workload for _, workload, _ in found))
    modes = list(dict.fromkeys(mode for _, _, mode in found))
    height = len(workloads) * (len(modes) * ROW + 0.7) + 0.5
    figure = figures.Figure(figsize=(WIDTH * len(links), height), layout="constrained")
    panels = figure.subplots(len(workloads), len(links), squeeze=False, sharey=True)
    for row, workload in zip(panels, workloads, strict=True):
        for panel, link in zip(row, links, strict=True):
            _panel(panel, {mode: found.get((link, workload, mode)) for mode in modes})
            panel.set_title(f"{workload}, link: {link}", fontsize="small", loc="left")
    text = "seconds until ready: median, from the fastest run to the 95th percentile"
    figure.supxlabel(text, fontsize="small")
    with matplotlib.rc_context({"svg.hashsalt": SEED}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _panel(panel: Any, here: Mapping[str, Cell | None]) -> None:
    """Draw one bar for each mode that ran, the first on top."""
    for place, (mode, cell) in enumerate(here.items()):
        if cell:
            low, high = cell.spread
            spread = [[cell.ready_s - low], [high - cell.ready_s]]
            color = _COLORS.get(mode.partition(BY)[0], OTHERS)
            panel.barh(place, cell.ready_s, xerr=spread, color=color, ecolor="0.3")
            panel.annotate(f" {cell.ready_s:.2f}", (high, place), va="center", fontsize="x-small")
    panel.set_visible(any(here.values()))
    panel.set_yticks(range(len(here)), list(here))
    panel.set_ylim(len(here) - 0.5, -0.5)
    panel.margins(x=0.15)
    panel.tick_params(labelsize="x-small")
    panel.spines[["top", "right"]].set_visible(False)
