# SPDX-License-Identifier: Apache-2.0
"""A picture of the table: ready time over bytes fetched, for each setting and link.

Owns nothing but the drawing, which matplotlib does; it is an optional extra (``firstread[plots]``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from firstread.errors import NodeError, UsageError, from_os_error
from firstread.tune.settings import Setting
from firstread.tune.tuned import Tuned
from firstread.units import MiB, format_size

SUFFIXES = (".svg", ".png")
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


def draw(tuned: Tuned, settings: Sequence[Setting], links: Sequence[str], path: Path) -> None:
    """Write the picture of a table to `path`.

    Raises:
        NodeError: it cannot be written.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(5.5 * len(links), 5), layout="constrained")
    figure.suptitle(f"{tuned.reference}: ready time by layout, simulated")
    for number, (link, axes) in enumerate(
        zip(links, figure.subplots(1, len(links), squeeze=False)[0], strict=True)
    ):
        rows = tuned.settings[number :: len(links)]
        for kind in dict.fromkeys(setting.kind for setting in settings):
            own = [row for row in rows if row.layout == kind]
            sizes = [row.bytes / MiB for row in own]
            axes.plot(
                sizes,
                [row.ready for row in own],
                "o-" if kind in ("plain", "chunks") else "o",
                color=_COLORS[kind],
                label=_NAMES[kind],
            )
            for row, size in zip(own, sizes, strict=True):
                if row.unit_size:
                    label = format_size(row.unit_size).replace(".0 ", " ")
                    axes.annotate(
                        label,
                        (size, row.ready),
                        fontsize=7,
                        xytext=(4, 4),
                        textcoords="offset points",
                    )
        axes.axhline(tuned.local, color="black", linestyle=":", label="all data local")
        axes.set(title=link, xlabel="MiB fetched until ready", ylim=(0, None))
        axes.set_xscale("log")
    figure.axes[0].set_ylabel("seconds until ready")
    figure.axes[0].legend()
    try:
        figure.savefig(path)
    except OSError as exc:
        raise from_os_error(exc, "cannot write the plot") from exc
