# SPDX-License-Identifier: Apache-2.0
"""The pictures of docs/tune.md: granularity, and the size of a store.

Needs matplotlib (``firstread[plots]``). A white card with dark text reads in light and in dark
pages. The files depend on the figures alone: no date, no random ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from firstread.tune.hits import Hits
from firstread.tune.replay import Replayed
from firstread.tune.settings import Setting
from firstread.units import GiB

MB = 1_000_000
SEED = "firstread"
COLUMNS = 4
STYLES = {
    "files": ("whole files", "s", "tab:gray"),
    "chunks": ("chunks of files", "o-", "tab:green"),
    "plain": ("sectors", "o-", "tab:blue"),
    "hot": ("hot sectors, by granule", "o-", "tab:red"),
}


def draw_units(starts: Mapping[Setting, Mapping[str, Replayed]], path: Path) -> None:
    """Draw ready time over bytes for each unit of fetching, a panel for each workload."""
    names = list(next(iter(starts.values())))
    rows = -(-len(names) // COLUMNS)
    figure, panels = _figure((2.7 * COLUMNS, 2.5 * rows + 0.5), rows, COLUMNS)
    for number, panel in enumerate(panels):
        panel.set_visible(number < len(names))
    for panel, name in zip(panels, names, strict=False):
        for kind, (label, style, color) in STYLES.items():
            own = {s: row[name] for s, row in starts.items() if s.kind == kind}
            ends = [r.bytes / MB for r in own.values()], [r.ready_s for r in own.values()]
            panel.plot(*ends, style, color=color, label=label, markersize=3.5, linewidth=1)
        panel.set_title(name, fontsize="small", loc="left")
        panel.set_xlim(0, None)
        panel.set_ylim(0, None)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    figure.supxlabel("MB fetched until ready", fontsize="small")
    figure.supylabel("seconds until ready", fontsize="small")
    _save(figure, path)


def draw_stores(held_in: Mapping[Setting, Sequence[Hits]], path: Path) -> None:
    """Draw hit ratio over the size of a store."""
    figure, (panel,) = _figure((7, 3.6), 1, 1)
    for setting, hits in held_in.items():
        ends = [each.limit / GiB for each in hits], [each.ratio * 100 for each in hits]
        panel.plot(*ends, "o-", label=str(setting), markersize=3.5)
    panel.set_xlabel("GiB of the store", fontsize="small")
    panel.set_ylabel("% of needed sectors present", fontsize="small")
    panel.set_xlim(0, None)
    panel.set_ylim(0, 100)
    panel.legend(fontsize="small", loc="lower right")
    _save(figure, path)


def _figure(inches: tuple[float, float], rows: int, columns: int) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, layout="constrained", facecolor="white")
    panels = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for panel in panels:
        panel.grid(color="0.9")
        panel.tick_params(labelsize="x-small")
        panel.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _save(figure: Any, path: Path) -> None:
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": SEED, "svg.fonttype": "path"}):
        figure.savefig(path, metadata={"Date": None})
