# SPDX-License-Identifier: Apache-2.0
"""Imports between rooms are those of one list; they point down it, and never in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import firstread

TOP = Path(firstread.__file__).parent

ROOMS: dict[str, str] = {
    "__main__": "cli",
    "cli": (
        "tune doctor report sync snapshotter run daemon export control mounts fetch cache engines "
        "convert traces sectors erofs registry oci config documents memory printable private "
        "redact signals wholefile units userdirs idmaps errors __init__"
    ),
    "tune": "fetch cache convert traces sectors erofs oci config documents wholefile units errors",
    "doctor": (
        "snapshotter run daemon control mounts device sectors registry oci config private "
        "units userdirs idmaps errors"
    ),
    "report": (
        "mounts fetch device traces sectors erofs documents printable wholefile units errors"
    ),
    "sync": (
        "control convert sectors registry oci documents redact structs threads wholefile units "
        "errors"
    ),
    "snapshotter": (
        "daemon control mounts cache sectors registry oci private signals threads trees units "
        "errors"
    ),
    "run": (
        "device traces sectors oci mountinfo printable private readable signals trees wholefile "
        "units idmaps errors"
    ),
    "daemon": (
        "control mounts fetch cache device traces sectors config documents memory "
        "mountinfo opener private readable redact wholefile units userdirs idmaps errors __init__"
    ),
    "export": "fetch device sectors erofs oci private signals wholefile units errors",
    "control": (
        "mounts fetch device registry oci documents idmaps nesting private redact structs "
        "wholefile units errors"
    ),
    "mounts": (
        "fetch cache device sectors registry oci config documents mountinfo nesting structs "
        "wholefile units errors"
    ),
    "fetch": "cache device traces sectors registry oci config documents opener units errors",
    "cache": (
        "device sectors erofs layouts oci config documents opener threads wholefile units errors"
    ),
    "device": "sectors erofs mountinfo wholefile idmaps errors",
    "engines": "convert redact errors",
    "convert": (
        "starts traces sectors erofs registry layouts oci documents memory printable redact "
        "structs units errors __init__"
    ),
    "starts": "traces sectors erofs units",
    "traces": "sectors erofs oci wholefile units errors",
    "sectors": "erofs registry oci mountinfo readable units errors",
    "erofs": "errors",
    "registry": "layouts oci redact structs wholefile units errors __init__",
    "layouts": "oci units errors",
    "oci": "nesting structs units errors",
    "config": "wholefile units userdirs errors",
    "documents": "structs errors",
    "memory": "units",
    "mountinfo": "",
    "nesting": "",
    "opener": "errors",
    "printable": "",
    "private": "idmaps errors",
    "readable": "",
    "redact": "",
    "signals": "",
    "structs": "",
    "trees": "errors",
    "wholefile": "units errors",
    "threads": "",
    "units": "errors",
    "userdirs": "idmaps errors",
    "idmaps": "",
    "errors": "",
    "__init__": "",
}
"""Each part of the package and the parts that it imports, from the top down: no more, no less."""


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


def imported_parts() -> dict[str, set[str]]:
    """Return for each part of the package the other parts that it imports."""
    found: dict[str, set[str]] = {}
    for module, path in modules().items():
        part = part_of(module)
        found.setdefault(part, set()).update(part_of(name) for name in imports(path))
        found[part].discard(part)
    return found


def test_the_list_of_rooms_is_exact() -> None:
    stated = {part: set(names.split()) for part, names in ROOMS.items()}
    assert imported_parts() == stated, "python tests/unit/test_imports.py prints ROOMS"


def test_imports_point_down() -> None:
    ranks = {part: rank for rank, part in enumerate(ROOMS)}
    upward = [
        f"{part} imports {name}"
        for part, names in ROOMS.items()
        for name in names.split()
        if ranks[name] <= ranks[part]
    ]
    assert upward == []


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


if __name__ == "__main__":  # prints ROOMS as it has to be, in the order that it has
    used = imported_parts()
    order = [*ROOMS, *sorted(used.keys() - ROOMS.keys())]
    for part in filter(used.__contains__, order):
        print(f"    {part!r}: {' '.join(sorted(used[part], key=order.index))!r},")  # noqa: T201
