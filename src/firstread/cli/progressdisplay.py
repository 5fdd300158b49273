# SPDX-License-Identifier: Apache-2.0
"""Shows the progress of a verb on stderr: a display on a terminal, else a line every few seconds.

Owns the time and form of the output; the worker provides the content. Invariant: without a
terminal, work of less than `INTERVAL_S` prints nothing.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from firstread.cli.output import complain
from firstread.units import format_size

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress, Task, TaskID

INTERVAL_S = 5.0
_BAR_WIDTH = 20  # columns
_WIDE = 80  # columns of a terminal with room for a bar


class PeriodicLines:
    """Prints a line now and then, from its own thread, while the context lasts.

    Args:
        line: describes the progress; called in that thread.
        show: False to print nothing.
        interval_s: between two lines, and before the first; `INTERVAL_S` if None.
        say: prints lines.
    """

    def __init__(
        self,
        line: Callable[[], str],
        *,
        show: bool = True,
        interval_s: float | None = None,
        say: Callable[[list[str]], None] = complain,
    ) -> None:
        self._interval_s = INTERVAL_S if interval_s is None else interval_s
        self._line, self._say = line, say
        self._ended = threading.Event()
        name = type(self).__name__
        self._thread = threading.Thread(target=self._run, name=name, daemon=True) if show else None

    def __enter__(self) -> Self:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self._interval_s):
            self._say([self._line()])


class LayerProgress:
    """Bytes read of each layer: a line for each on a terminal, else an occasional line for all.

    Args:
        quiet: show nothing, whatever stderr is.
        interval_s: as for `PeriodicLines`, without a terminal.
        say: prints lines, without a terminal.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        interval_s: float | None = None,
        say: Callable[[list[str]], None] = complain,
    ) -> None:
        self._on_terminal = sys.stderr.isatty() and not quiet
        self._lines = PeriodicLines(
            self._summary,
            show=not (quiet or self._on_terminal),
            interval_s=interval_s,
            say=say,
        )
        self._display: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._totals: dict[str, int] = {}
        self._read: dict[str, int] = {}
        self._finished: set[str] = set()
        self._begun = time.monotonic()

    def __enter__(self) -> Self:
        if self._on_terminal:
            self._display = _display()
            self._display.start()
        self._lines.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.__exit__()
        if self._display is not None:
            self._display.stop()

    def layers(self, layers: list[tuple[str, int]]) -> None:
        self._totals = dict(layers)
        self._read = dict.fromkeys(self._totals, 0)
        self._finished = set()
        if self._display is not None:
            for digest, size in layers:
                name = digest.removeprefix("sha256:")[:12]
                self._tasks[digest] = self._display.add_task(name, total=size, how="")

    def advance(self, layer: str, count: int) -> None:
        self._read[layer] += count
        if self._display is not None:
            self._display.advance(self._tasks[layer], count)

    def sent(self, layer: str, total: int) -> None:
        if self._display is not None:
            self._display.update(self._tasks[layer], how=f"{format_size(total)} sent")

    def done(self, layer: str, how: str) -> None:
        self._finished.add(layer)
        self._read[layer] = self._totals[layer]
        if self._display is not None:
            self._display.update(
                self._tasks[layer],
                completed=self._totals[layer],
                how="packed before" if how == "known" else "packed",
            )

    def _summary(self) -> str:
        seconds = int(time.monotonic() - self._begun)
        if not self._totals:
            return f"after {seconds} s: looking at the image"
        read, total = sum(self._read.values()), sum(self._totals.values())
        return (
            f"after {seconds} s: {len(self._finished)} of {len(self._totals)} layers packed,"
            f" {format_size(read)} of {format_size(total)} read"
        )


def _display() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn
    from rich.text import Text

    console = Console(stderr=True)

    class Bar(ProgressColumn):
        """A bar, if it fits."""

        _bar = BarColumn(bar_width=_BAR_WIDTH)

        def render(self, task: Task) -> RenderableType:
            return self._bar.render(task) if _is_wide(console) else ""

    class Words(ProgressColumn):
        """Words, cut rather than wrapped."""

        def __init__(self, of: Callable[[Task], str]) -> None:
            super().__init__()
            self._of = of

        def render(self, task: Task) -> RenderableType:
            return Text(self._of(task), no_wrap=True, overflow="ellipsis")

    def figures(task: Task) -> str:
        return _figures(task, wide=_is_wide(console))

    name = Words(lambda task: task.description if _is_wide(console) else task.description[:8])
    return Progress(name, Bar(), Words(figures), console=console)


def _is_wide(console: Console) -> bool:
    return console.width >= _WIDE


def _figures(task: Task, *, wide: bool) -> str:
    """Return bytes or, in a narrow terminal, per cent; then the result, or the time left."""
    done = f"{task.percentage:3.0f} %"
    if wide:
        done = f"{format_size(task.completed)} of {format_size(task.total or 0)}"
    if how := task.fields["how"]:
        return f"{done}  {how}"
    if task.speed is None or task.time_remaining is None:
        return done
    left = int(task.time_remaining)
    return f"{done}  {format_size(task.speed)}/s  {left // 60}:{left % 60:02} left"
