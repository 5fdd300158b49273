# SPDX-License-Identifier: Apache-2.0
"""The sizes and names that docs/contributing.md asks for."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path
from statistics import median

import firstread
from firstread.cli.main import VERBS

TOP = Path(firstread.__file__).parent
MODULES = sorted(path for path in TOP.rglob("*.py") if path.name != "__init__.py")

MAX_LINES = 400
MEDIAN_LINES = 140
P90_FUNCTION = 22  # lines, the docstring included

FREE_NAMES = {"__main__", "format", "options"}
"""Names that mean the same in every room: on-disk structs, and the settings of a thing."""

TOO_LONG: set[str] = set()


def test_no_module_is_long() -> None:
    lines = {str(path.relative_to(TOP)): _lines(path) for path in MODULES}
    long = {name for name, count in lines.items() if count > MAX_LINES}
    assert long <= TOO_LONG
    assert median(lines.values()) <= MEDIAN_LINES


def test_functions_are_short() -> None:
    lengths = sorted(
        (node.end_lineno or 0) - node.lineno + 1
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    assert lengths[len(lengths) * 9 // 10] <= P90_FUNCTION


def test_one_name_means_one_module() -> None:
    found: dict[str, list[str]] = defaultdict(list)
    for path in MODULES:
        room, *_ = path.relative_to(TOP).parts
        # A verb may call a module of its name, and a stand-in be named after what it stands in for.
        free = path.stem in FREE_NAMES | (VERBS.keys() if room == "cli" else set())
        if not free and room != "testing":
            found[path.stem].append(room)
    assert {name: rooms for name, rooms in found.items() if len(rooms) > 1} == {}


def _lines(path: Path) -> int:
    return len(path.read_bytes().splitlines())
