# SPDX-License-Identifier: Apache-2.0
"""Shows the progress of a conversion on a terminal; silent when stderr is none."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Self

from firstread.units import format_size

if TYPE_CHECKING:
    from rich.progress import Progress, Task, TaskID

_BAR_WIDTH = 20  # columns


class LayerProgress:
    """A line for each layer: bytes read, rate, time left.

    Args:
        quiet: show nothing, whatever stderr is.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._show = sys.stderr.isatty() and not quiet
        self._display: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        if self._show:
            self._display = _display()
            self._display.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._display is not None:
            self._display.stop()

    def layers(self, layers: list[tuple[str, int]]) -> None:
        if self._display is not None:
            for digest, size in layers:
                name = digest.removeprefix("sha256:")[:12]
                self._tasks[digest] = self._display.add_task(name, total=size, how="")

    def advance(self, layer: str, count: int) -> None:
        if self._display is not None:
            self._display.advance(self._tasks[layer], count)

    def sent(self, layer: str, total: int) -> None:
        if self._display is not None:
            self._display.update(self._tasks[layer], how=f"{format_size(total)} sent")

    def done(self, layer: str, how: str) -> None:
        if self._display is not None:
            task = self._tasks[layer]
            total = self._display.tasks[task].total
            self._display.update(
                task, completed=total, how="packed before" if how == "known" else "packed"
            )


def _display() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
    from rich.text import Text

    class Figures(ProgressColumn):
        """Bytes, then rate and time left, or what became of the layer."""

        def render(self, task: Task) -> Text:
            return Text(_figures(task))

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=_BAR_WIDTH),
        Figures(),
        console=Console(stderr=True),
    )


def _figures(task: Task) -> str:
    done = f"{format_size(task.completed)} of {format_size(task.total or 0)}"
    if how := task.fields["how"]:
        return f"{done}  {how}"
    if task.speed is None or task.time_remaining is None:
        return done
    left = int(task.time_remaining)
    return f"{done}  {format_size(task.speed)}/s  {left // 60}:{left % 60:02} left"
