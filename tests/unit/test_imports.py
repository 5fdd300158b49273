# SPDX-License-Identifier: Apache-2.0
"""Imports point down the layout's list, and never in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import firstread

TOP = Path(firstread.__file__).parent

LAYERS = [
    ["__main__"],
    ["cli"],
    ["snapshotter"],
    ["run"],
    ["node"],
    ["device"],
    ["convert"],
    ["sectors"],
    ["erofs"],
    ["oci"],
    [
        "config",
        "metrics",
        "memory",
        "mountinfo",
        "printable",
        "private",
        "readable",
        "redact",
        "signals",
        "trees",
    ],
    ["units"],
    ["errors"],
    ["__init__"],
]
"""The parts of the package from the top down: each imports from parts below it, and from itself."""

RANKS = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}


@cache
def modules() -> dict[str, Path]:
    """Return every module that is part of the product, by its dotted name."""
    found = {}
    for path in TOP.rglob("*.py"):
        parts = path.relative_to(TOP).with_suffix("").parts
        if parts[0] != "testing":
            found[".".join(("firstread", *parts)).removesuffix(".__init__")] = path
    return found


def imports(path: Path, *, when_run: bool = False) -> Iterator[str]:
    """Yield the firstread modules that a module imports.

    Args:
        path: of the module.
        when_run: only what happens when the module is loaded: not inside functions, and not for
            type checkers.
    """
    pending: list[ast.AST] = [ast.parse(path.read_bytes())]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("firstread"))
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            base = node.module or ""
            if base.split(".")[0] == "firstread":
                for alias in node.names:
                    full = f"{base}.{alias.name}"
                    yield full if full in modules() else base
        elif when_run and (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        ):
            continue
        pending.extend(ast.iter_child_nodes(node))


def part_of(module: str) -> str:
    return [*module.split("."), "__init__"][1]


def test_every_part_has_its_place() -> None:
    assert {part_of(module) for module in modules()} <= RANKS.keys()


def test_imports_point_down() -> None:
    wrong = [
        f"{module} imports {imported}"
        for module, path in modules().items()
        for imported in imports(path)
        if part_of(imported) != part_of(module)
        and RANKS.get(part_of(imported), -1) <= RANKS[part_of(module)]
    ]
    assert wrong == []


def test_nothing_imports_what_tests_need() -> None:
    for module, path in modules().items():
        assert not [name for name in imports(path) if name.startswith("firstread.testing")], module


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {module: set(imports(path, when_run=True)) for module, path in modules().items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_the_lowest_parts_load_nothing_heavy() -> None:
    for part in ("errors", "units", "printable", "redact"):
        names = set(imports(TOP / f"{part}.py"))
        assert names <= {"firstread.errors"}, part
