# SPDX-License-Identifier: Apache-2.0
"""``docs/reliability.md``: results, each chapter written by the command that measures it.

Owns the page and its order, and the command line of these commands; measures nothing. Invariant:
writing one chapter leaves the others unchanged, and no chapter lacks the setting of its
measurement. A chapter that nobody has written says so.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.marks import marked, parts_of
from benchmarks.scratch import scratch_directory
from benchmarks.setting import describe

PAGE = Path(__file__).parents[1] / "docs/reliability.md"
HEAD = """\
# Reliability

This page shows by measurement what a fleet may rely on. The command at the top of each chapter
writes it; [node.md](node.md) says what the node does in each case, and why.
"""
TITLES = {
    "soak": "Faults and kills",
    "soak-fuse": "Faults and kills, by FUSE",
    "eviction": "A store that is too small",
    "flip": "A bit flipped on disk",
    "full": "The disk is full",
    "many": "500 mounts of 20 images",
    "kills": "The fetcher killed every two seconds, by device",
    "upgrade": "Upgrades during reads",
    "upgrade-fuse": "Upgrades during reads, by FUSE",
    "death": "Supervisor and fetcher killed at once",
    "death-fuse": "Supervisor and fetcher killed at once, by FUSE",
    "containers": "Containers while SIGKILL hits everything below them",
    "power": "Power cuts",
}
"""Chapters in their order."""


@dataclass(frozen=True)
class Chapter:
    """The result of one command.

    Args:
        name: of `TITLES`.
        command: measures it.
        setting: host and conditions, label to text.
        cells: of a table, its head first.
        summary: one line.
    """

    name: str
    command: str
    setting: Mapping[str, str]
    cells: Sequence[Sequence[str]]
    summary: str

    def text(self) -> str:
        """Return it as Markdown."""
        parts = [f"`{self.command}`", ""]
        parts += [f"- {label}: {text}" for label, text in self.setting.items()]
        head, *rows = ([_escaped(cell) for cell in row] for row in self.cells)
        rule = ["---", *("--:" for _ in head[1:-1]), "---"]
        parts += ["", *(f"| {' | '.join(row)} |" for row in (head, rule, *rows))]
        return "\n".join([*parts, "", f"**{self.summary}**"]) + "\n"


Judged = tuple[Chapter, bool]
"""A chapter, and whether all is as it should be."""


def run(
    name: str,
    doc: str | None,
    work: Callable[..., Judged],
    **options: float | str,
) -> int:
    """Measure, print and keep what the command line asks for; return the exit code.

    Args:
        name: of `TITLES`, and of the command.
        doc: what it does.
        work: measures; takes an empty directory, the setting and the options.
        options: texts, and numbers of 1 at least, by name, with the default of each.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=doc)
    for option, default in options.items():
        metavar = "NAME" if isinstance(default, str) else "N"
        parser.add_argument(
            f"--{option}",
            type=type(default),
            default=default,
            metavar=metavar,
            help="[%(default)s]",
        )
    parser.add_argument("--docs", action="store_true", help=f"write it to docs/{PAGE.name}")
    chosen = vars(parser.parse_args())
    in_docs = chosen.pop("docs")
    if os.geteuid():
        parser.error("it mounts: run it as root")
    if not all(isinstance(value, str) or value >= 1 for value in chosen.values()):
        parser.error("every number must be 1 at least")
    with scratch_directory() as scratch:
        chapter, is_good = work(scratch, describe(scratch), **chosen)
    print("".join(f"{label}: {text}\n" for label, text in chapter.setting.items()))
    print(columns(chapter.cells))
    print(chapter.summary)
    if in_docs:
        write(chapter)
    return 0 if is_good else 1


def name_of(chapter: str, device: str) -> str:
    """Return the name of a chapter about one device; the usual ones are of fanotify."""
    return chapter if device == "fanotify" else f"{chapter}-{device}"


def write(chapter: Chapter, path: Path = PAGE) -> None:
    """Put a chapter into the page; the others stay."""
    found = parts_of(path)
    found[chapter.name] = chapter.text()
    path.write_text(page(found))


def page(chapters: Mapping[str, str]) -> str:
    """Return the page with the text of each chapter by its name."""
    parts = [HEAD]
    for name, title in TITLES.items():
        text = chapters.get(name, "Not measured yet.\n")
        parts.append(f"\n## {title}\n\n{marked(name, text)}")
    return "".join(parts)


def columns(cells: Sequence[Sequence[str]]) -> str:
    """Return a table for a terminal."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        first, *others = row
        words = [first.ljust(widths[0])]
        words += [cell.rjust(width) for cell, width in zip(others[:-1], widths[1:-1], strict=True)]
        lines.append("  ".join([*words, others[-1]]).rstrip())
    return "\n".join(lines) + "\n"


def _escaped(cell: str) -> str:
    return cell.replace("|", r"\|")
