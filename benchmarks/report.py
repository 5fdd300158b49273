# SPDX-License-Identifier: Apache-2.0
"""Results of benchmarks: figures with their goals, printed, as JSON, and as a page of docs.

Owns the shape and the look of results; measures nothing. Invariant: a figure never appears without
the setting of its measurement.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.marks import marked, parts_of

NAME_WIDTH = 56
MARKS = {True: "yes", False: "NO", None: ""}


@dataclass(frozen=True)
class Goal:
    """A limit: at most or at least `value`, in the unit of the figure."""

    relation: Literal["<=", ">="]
    value: float

    def met_by(self, value: float) -> bool:
        return value <= self.value if self.relation == "<=" else value >= self.value

    def __str__(self) -> str:
        return f"{self.relation} {self.value:g}"


@dataclass(frozen=True)
class Figure:
    """One number.

    Args:
        name: of the measurement.
        value: the result.
        unit: of value and goal; ``x`` for a ratio.
        goal: its limit.
        detail: parts of the value, such as both sides of a ratio.
    """

    name: str
    value: float
    unit: str
    goal: Goal | None = None
    detail: str = ""

    @property
    def met(self) -> bool | None:
        return None if self.goal is None else self.goal.met_by(self.value)

    def line(self) -> str:
        """Return the figure as one line of text."""
        amount = f"{number(self.value)} {self.unit}"
        goal = f"goal {self.goal}: {MARKS[self.met]}" if self.goal else ""
        return f"{self.name:{NAME_WIDTH}} {amount:>14}  {goal:18} {self.detail}".rstrip()


@dataclass
class Section:
    """The figures of one benchmark.

    Args:
        name: of the benchmark, as on the command line.
        title: its subject.
        setting: host and conditions, label to text.
        figures: with their goals, as they are found.
        table: lines of Markdown for the page, where figures in rows say too little.
    """

    name: str
    title: str
    setting: dict[str, str]
    figures: list[Figure] = field(default_factory=list)
    table: list[str] = field(default_factory=list)

    def start(self) -> None:
        """Print the title and the setting."""
        print(f"\n{self.title}\n{'-' * len(self.title)}")
        for label, text in self.setting.items():
            print(f"  {label}: {text}")

    def note(self, label: str, text: str) -> None:
        """Add a later finding to the setting."""
        self.setting[label] = text
        print(f"  {label}: {text}", flush=True)

    def add(
        self, name: str, value: float, unit: str, goal: Goal | None = None, detail: str = ""
    ) -> None:
        """Record a figure, and print it."""
        self.take(Figure(name, value, unit, goal, detail))

    def take(self, figure: Figure) -> None:
        """Record a figure that somebody else has made, and print it."""
        self.figures.append(figure)
        print("  " + figure.line(), flush=True)

    def to_dict(self) -> dict[str, Any]:
        figures = [
            {**dataclasses.asdict(figure), "goal": str(figure.goal or ""), "met": figure.met}
            for figure in self.figures
        ]
        return {
            "title": self.title,
            "setting": self.setting,
            "figures": figures,
            "table": self.table,
        }


def number(value: float) -> str:
    """Return `value` with three significant digits, and thousands separated."""
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def save(section: Section, path: Path, *, docs: bool = False) -> None:
    """Keep results in a JSON file, beside those of other benchmarks.

    Args:
        section: the results.
        path: of the file.
        docs: put them into the page of docs, too.
    """
    kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    kept[section.name] = section.to_dict()
    path.write_text(json.dumps(kept, indent=1) + "\n")
    if docs:
        write(section)


DOCS = Path(__file__).parents[1] / "docs/benchmarks.md"
ORDER = ("convert", "node", "devices", "suite", "sectors", "tune", "burst", "cluster")
"""Benchmarks on the page; ``NAME-SOMETHING`` follows ``NAME``, others come last."""
PAGE = """\
# Benchmarks

`python -m benchmarks` and `python -m benchmarks.suite` write this page with `--docs`;
[benchmarks/](../benchmarks/README.md) describes the images and how to run it. Compare figures
within one run on one machine; absolute ones say little elsewhere. The column *met* shows missed
goals.
"""


def write(section: Section, page: Path = DOCS) -> None:
    """Put results into the page of docs, in place of older ones of this name; the others stay."""
    found = parts_of(page)
    found[section.name] = "\n".join(_lines(section)) + "\n"
    parts = [marked(name, found[name]) for name in sorted(found, key=_rank)]
    page.write_text("\n".join([PAGE, *parts]))


def _lines(section: Section) -> Iterator[str]:
    yield from (f"## {section.title}", "")
    yield from (f"- {label}: {text}" for label, text in section.setting.items())
    yield from ("", *section.table)
    yield from ("| measured | value | goal | met | made of |", "|---|--:|--:|---|---|")
    for figure in section.figures:
        amount, goal = f"{number(figure.value)} {figure.unit}", str(figure.goal or "")
        cells = (figure.name, amount, goal, MARKS[figure.met], figure.detail)
        yield "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _rank(name: str) -> tuple[int, str]:
    kind = name.partition("-")[0]
    return ORDER.index(kind) if kind in ORDER else len(ORDER), name
