# SPDX-License-Identifier: Apache-2.0
"""Changes values in the text of a TOML file, and leaves every other byte as it is. Pure.

Owns where a table and its values stand in a text. Invariant: `restore` undoes `set_values`. A
table that a text spells in an unusual way may not be found, so callers compare the documents.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from firstread.errors import UsageError

_VALUE: Final = re.compile(r"""(=[ \t]*)("[^"\\\n]*"|'[^'\n]*'|[^\s#"'\[{]+)""")


def set_values(
    text: str, path: tuple[str, ...], wanted: Mapping[str, str]
) -> tuple[str, list[str], dict[str, list[str | None]]]:
    """Set the values of the table at `path` to `wanted`, given as TOML.

    Returns:
        The changed text; the lines of a new table, if the text has no such table; and by key the
        new line with the one that it replaces, None for an added line.
    """
    lines = lines_of(text)
    header, _ = _find(lines, path, "")
    if header is None:
        return (
            text,
            [f"[{header_name(path)}]", *(f"  {key} = {value}" for key, value in wanted.items())],
            {},
        )
    replaced: dict[str, list[str | None]] = {}
    for key, value in wanted.items():
        _, number = _find(lines, path, key)
        if number is None:
            indent = lines[header][: -len(lines[header].lstrip())]
            new = f"{indent}  {key} = {value}\n"
            lines.insert(header + 1, new)
            replaced[key] = [new, None]
        else:
            old = lines[number]
            lines[number] = _VALUE.sub(lambda match, value=value: match[1] + value, old, count=1)  # type: ignore[misc]
            if lines[number] != old:
                replaced[key] = [lines[number], old]
    return "".join(lines), [], replaced


def restore(text: str, path: tuple[str, ...], replaced: Mapping[str, Sequence[str | None]]) -> str:
    """Undo `set_values`, except for lines that somebody has changed since."""
    lines = lines_of(text)
    for key, (new, old) in replaced.items():
        _, number = _find(lines, path, key)
        if number is not None and lines[number] == new:
            lines[number] = old or ""
    return "".join(lines)


def header_name(path: tuple[str, ...]) -> str:
    """Return the name of a table as its header spells it."""
    return ".".join(json.dumps(key) if "." in key else key for key in path)


def _find(lines: list[str], path: tuple[str, ...], key: str) -> tuple[int | None, int | None]:
    """Return the line numbers of the header of the table at `path`, and of the value of `key`."""
    header = next(
        (n for n, line in enumerate(lines) if path_of(line) == path and begins_statement(lines, n)),
        None,
    )
    for n in range(header + 1 if header is not None else len(lines), len(lines)):
        text = lines[n].lstrip()
        if text.startswith("[") and begins_statement(lines, n):
            break
        if text.partition("=")[0].strip().strip("'\"") == key and begins_statement(lines, n):
            return header, n
    return header, None


def path_of(line: str) -> tuple[str, ...] | None:
    """Return the path of the table whose header a line looks like."""
    if not line.lstrip().startswith("[") or line.lstrip().startswith("[["):
        return None
    try:
        table = tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return None
    path = []
    while table:
        ((key, table),) = table.items()
        path.append(key)
    return tuple(path)


def begins_statement(lines: list[str], number: int) -> bool:
    """Return whether a line begins a statement, rather than continue a string or an array."""
    try:
        tomllib.loads("".join(lines[:number]))
    except tomllib.TOMLDecodeError:
        return False
    return True


def lines_of(text: str) -> list[str]:
    """Return the lines as TOML counts them, with their ends."""
    return [line for line in re.split(r"(?<=\n)", text) if line]


def table_at(document: Mapping[str, Any], path: tuple[str, ...]) -> Mapping[str, Any]:
    """Return the table at `path`; an empty one if there is none."""
    table: Any = document
    for key in path:
        table = table.get(key, {}) if isinstance(table, Mapping) else {}
    return table if isinstance(table, Mapping) else {}


def parsed(text: str) -> dict[str, Any]:
    """Return the document.

    Raises:
        UsageError: the text is not TOML.
    """
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as exc:
        raise UsageError(f"it is not valid TOML: {exc}", hint="repair it first") from exc


def made_table(document: Any, path: tuple[str, ...]) -> Any:
    """Return the table at `path`, made if missing."""
    for key in path:
        document = document.setdefault(key, {})
    return document
