# SPDX-License-Identifier: Apache-2.0
"""A picture of the table: ready time over bytes fetched, for each setting and link.

Owns nothing but the drawing, which matplotlib does; it is an optional extra (``firstread[plots]``).
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from firstread.errors import NodeError, UsageError, from_os_error
from firstread.tune.tuned import SettingTuned, Tuned
from firstread.units import MiB, format_size
from firstread.wholefile import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".svg", ".png")
LINES = ("plain", "chunks")  # layouts with one point for each size
APART = 0.05  # of an axis, between points that both have a name
LINE = 55  # letters of the title above one link
_NAMES = {"plain": "sectors", "hot": "hot sectors", "files": "whole files", "chunks": "chunks"}
_COLORS = {"plain": "tab:blue", "hot": "tab:red", "files": "tab:gray", "chunks": "tab:green"}


def check_plot(path: Path) -> None:
    """Check before a long run that `draw` will be able to write `path`.

    Raises:
        UsageError: it is neither an SVG nor a PNG.
        NodeError: there is no matplotlib.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{str(path)!r} is neither .svg nor .png")
    try:
        import matplotlib.figure  # noqa: F401, PLC0415 - half a second, and optional
    except ImportError as exc:
        raise NodeError(
            "matplotlib, which draws plots, is not installed",
            hint="pip install 'firstread[plots]', or leave out --plot",
        ) from exc


def draw(tuned: Tuned, path: Path) -> None:
    """Write the picture of a table to `path`.

    Raises:
        NodeError: it cannot be written.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415

    links = list(dict.fromkeys(row.link for row in tuned.settings))
    figure = Figure(figsize=(5.5 * len(links), 5), layout="constrained")
    title = f"{tuned.reference}: ready time by layout, simulated"
    figure.suptitle(textwrap.fill(title, LINE * len(links)))
    for number, link in enumerate(links):
        axes = figure.add_subplot(1, len(links), number + 1)
        rows = [row for row in tuned.settings if row.link == link]
        for kind in dict.fromkeys(row.layout for row in rows):
            own = [row for row in rows if row.layout == kind]
            ends = [row.bytes / MiB for row in own], [row.ready for row in own]
            style = "o-" if kind in LINES else "o"
            axes.plot(*ends, style, color=_COLORS[kind], label=_NAMES[kind])
        _name_points(axes, rows)
        axes.axhline(tuned.local, color="black", linestyle=":", label="all data local")
        axes.set(title=link, xlabel="MiB fetched until ready", xlim=(0, None), ylim=(0, None))
    figure.axes[0].set_ylabel("seconds until ready")
    figure.axes[0].legend()
    try:
        with whole_file(path) as out:
            figure.savefig(out, format=path.suffix.lower().removeprefix("."))
    except OSError as exc:
        raise from_os_error(exc, "cannot write the plot") from exc


def _name_points(axes: Axes, rows: Sequence[SettingTuned]) -> None:
    """Write the sizes of units beside their points, as far as there is room."""
    named: list[tuple[float, float]] = []
    width, height = (max(ends) for ends in (axes.get_xlim(), axes.get_ylim()))
    for row in rows:
        at = row.bytes / MiB / width, row.ready / height
        if row.unit_size and all(abs(a - at[0]) + abs(b - at[1]) > APART for a, b in named):
            named.append(at)
            axes.annotate(
                format_size(row.unit_size).replace(".0 ", " "),
                (row.bytes / MiB, row.ready),
                fontsize=7,
                xytext=(4, 4),
                textcoords="offset points",
            )
