# SPDX-License-Identifier: Apache-2.0
"""containerd's configuration with our snapshotter in it, and without it again. Pure.

Owns what is written into ``config.toml``; reads and writes no file. Invariants: ``removed`` gives
back the very text that ``added`` was given, whatever was in it; in between only the values change
that say so, since old and new document are compared key by key; ``added`` of its own result with
the same choice changes nothing.

All that is new stands in one block at the end, between two marker lines. Values that are replaced
(`Choice.default`) are replaced where they stand, and the block remembers them, so that no other
file is needed to undo it.

Facts about containerd's configuration:

* A file without ``version`` is of version 1 (containerd 1.x). Version 2 came with 1.3, version 3
  with 2.0, version 4 with 2.4; older ones are still taken. The CRI plugin has another name in each
  but the last two.
* containerd 2 forgets the snapshotter of an older file when it migrates it, unless that has a
  runtime too (`migrateConfig` in plugins/cri/images/plugin.go). A section of the newer name counts
  in an older file as well.
* Its transfer service, by which ``ctr images pull`` works, unpacks for snapshotters that it lists.
  A list in the file replaces the one that it has by default.
* It says of a snapshot which file system it is on by the ``root`` that its snapshotter exports, see
  `firstread.snapshotter.imagefs`. Versions that do not know ``exports`` pass over it.
* ``imports`` merge by whole sections: a file that is imported replaces the section of a plugin that
  it has in it, everything else in that section included. Proxy plugins are sections of their own.

Sources: containerd's docs/man/containerd-config.toml.5.md and docs/PLUGINS.md; `mergeConfig` in
services/server/config/config.go (1.6) and cmd/containerd/server/config/config.go (2.x).
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from firstread.errors import UsageError

NAME: Final = "firstread"
BEGIN: Final = (
    "# >>> firstread install containerd: do not edit this block, 'firstread uninstall' removes it"
)
END: Final = "# <<< firstread install containerd"
_WAS: Final = "# was: "
_WAS_NEWER: Final = "# was in the newer section: "
_NO_NEWLINE: Final = "# there was no newline at the end"

_WANTED: Final = {"snapshotter": f'"{NAME}"', "disable_snapshot_annotations": "false"}
_VALUE: Final = re.compile(r"""(=[ \t]*)("[^"\\\n]*"|'[^'\n]*'|[^\s#"'\[{]+)""")

CRI: Final[dict[int, tuple[str, ...]]] = {
    1: ("plugins", "cri", "containerd"),
    2: ("plugins", "io.containerd.grpc.v1.cri", "containerd"),
    3: ("plugins", "io.containerd.cri.v1.images"),
    4: ("plugins", "io.containerd.cri.v1.images"),
}
"""Where the CRI plugin has the choice of its snapshotter, by version of the file."""

CRI_PLUGIN: Final = {version: path[1] for version, path in CRI.items()}
NEWEST: Final = max(CRI)
TRANSFER: Final = ("plugins", "io.containerd.transfer.v1.local")
_UNPACK: Final = "unpack_config"
_OVERLAYFS: Final = {"platform": "linux", "snapshotter": "overlayfs", "differ": "walking"}
_OURS: Final = {"platform": "linux", "snapshotter": NAME, "differ": "walking"}


@dataclass(frozen=True)
class Choice:
    """What is to be written.

    Args:
        address: socket of the snapshotter.
        default: have the CRI plugin, and so Kubernetes, use it for every image.
        containerd2: the file is read by containerd 2, whichever version it has itself.
        transfer: its transfer service may be told too.
        root: directory of the snapshotter; empty for one that is not told.
    """

    address: str
    default: bool = False
    containerd2: bool = False
    transfer: bool = True
    root: str = ""


def version_of(text: str) -> int:
    """Return the version of a configuration.

    Raises:
        UsageError: it is not TOML, or of a version that is not known.
    """
    version = _parsed(text).get("version", 1)
    if version not in CRI:
        raise UsageError(
            f"the configuration is of version {version!r}",
            hint=f"versions 1 to {NEWEST} are known: add the section by hand (docs/kubernetes.md)",
        )
    return int(version)


def is_default(text: str) -> bool:
    """Return whether a configuration has the CRI plugin use the snapshotter for every image.

    Raises:
        UsageError: it is not TOML, or of a version that is not known.
    """
    return _table(_parsed(text), CRI[version_of(text)]).get("snapshotter") == NAME


def imports_of(text: str) -> list[str]:
    """Return the files that a configuration imports, as it names them.

    Raises:
        UsageError: it is not TOML.
    """
    imports = _parsed(text).get("imports", [])
    return [name for name in imports if isinstance(name, str)] if isinstance(imports, list) else []


def has_transfer(text: str) -> bool:
    """Return whether a configuration has a section of containerd's transfer service.

    Raises:
        UsageError: it is not TOML.
    """
    return bool(_table(_parsed(text), TRANSFER))


def cri_section(text: str, version: int) -> str | None:
    """Return which section of the CRI plugin a file has that one of `version` imports.

    Without a version of its own any name can count.

    Raises:
        UsageError: it is not TOML, or of a version that is not known.
    """
    document = _parsed(text)
    numbers = {version, version_of(text)} if "version" in document else set(CRI)
    plugins = _table(document, ("plugins",))
    return next((CRI_PLUGIN[n] for n in sorted(numbers) if CRI_PLUGIN[n] in plugins), None)


def added(text: str, choice: Choice) -> str:
    """Return the configuration `text` with the snapshotter in it.

    Raises:
        UsageError: it is not TOML, somebody else has a plugin of our name in it, or the sections
            are written in a way that does not let them be completed.
    """
    before = removed(text)
    version = version_of(before)
    if NAME in _table(_parsed(before), ("proxy_plugins",)):
        raise UsageError(
            f"it has a section proxy_plugins.{NAME} that 'firstread install' did not write",
            hint="remove that section, or go on with it as it is",
        )
    body = before if before.endswith("\n") or not before else f"{before}\n"
    block = [BEGIN, *([] if body == before else [_NO_NEWLINE])]
    tables: list[str] = []
    for path, was in _sections(version, choice):
        body, lines, replaced = _choose(body, path, _WANTED)
        block += [was + json.dumps(replaced)] if replaced else []
        tables += lines
    block += [
        f"[proxy_plugins.{NAME}]",
        '  type = "snapshot"',
        f"  address = {json.dumps(choice.address)}",
    ]
    if exports := _exports(version, choice):
        block.append(f"  [proxy_plugins.{NAME}.exports]")
        block += [f"    {key} = {json.dumps(value)}" for key, value in exports.items()]
    if _is_for_2(version, choice) and choice.transfer:
        tables += _unpack_lines(before)
    after = body + "".join(f"{line}\n" for line in [*block, *tables, END])
    _compare(before, after, choice)
    return after


def _is_for_2(version: int, choice: Choice) -> bool:
    return version >= 3 or choice.containerd2


def _exports(version: int, choice: Choice) -> dict[str, str]:
    """Return what the snapshotter is said to be like."""
    exports = {"root": choice.root} if choice.root else {}
    if _is_for_2(version, choice):
        # Or clients that pull by the transfer service name no image.
        exports["enable_remote_snapshot_annotations"] = "true"
    return exports


def _sections(version: int, choice: Choice) -> list[tuple[tuple[str, ...], str]]:
    """Return the sections that choose the snapshotter, and how the block records each."""
    if not choice.default:
        return []
    newer = [(CRI[3], _WAS_NEWER)] if version < 3 and choice.containerd2 else []
    return [(CRI[version], _WAS), *newer]


def _unpack_entries(text: str) -> list[dict[str, str]]:
    """Return what is to be added to the list of the transfer service."""
    present = _table(_parsed(text), TRANSFER).get(_UNPACK)
    if present is None:
        return [_OVERLAYFS, _OURS]
    known = isinstance(present, list) and any(
        isinstance(entry, dict) and entry.get("snapshotter") == NAME for entry in present
    )
    lines = _lines(text)
    is_table = any(
        line.lstrip().startswith("[[")
        and _path_of(line.replace("[[", "[").replace("]]", "]")) == (*TRANSFER, _UNPACK)
        and _begins(lines, number)
        for number, line in enumerate(lines)
    )
    return [_OURS] if is_table and not known else []  # a list in brackets cannot be gone on with


def _unpack_lines(text: str) -> list[str]:
    name = ".".join(json.dumps(key) if "." in key else key for key in (*TRANSFER, _UNPACK))
    lines = []
    for entry in _unpack_entries(text):
        lines += [f"[[{name}]]", *(f'  {key} = "{value}"' for key, value in entry.items())]
    return lines


def removed(text: str) -> str:
    """Return the configuration `text` without what `added` put into it.

    What others changed since stays, also a value of ours that they replaced.

    Raises:
        UsageError: it is not TOML, or the markers of the block are damaged.
    """
    _parsed(text)
    lines = _lines(text)
    marks = [n for n, line in enumerate(lines) if line.strip() in (BEGIN, END)]
    if not marks:
        return text
    if [lines[n].strip() for n in marks] != [BEGIN, END]:
        raise UsageError(
            "the marker lines of the block that 'firstread install' wrote are damaged",
            hint="the backup beside the file has it as it was before",
        )
    begin, end = marks
    block = [line.strip() for line in lines[begin:end]]
    body, rest = "".join(lines[:begin]), "".join(lines[end + 1 :])
    body += rest
    for line in block:
        if line.startswith(_WAS):
            body = _restore(body, CRI[version_of(body)], _recorded(line, _WAS))
        elif line.startswith(_WAS_NEWER):
            body = _restore(body, CRI[3], _recorded(line, _WAS_NEWER))
    if _NO_NEWLINE in block and not rest:
        body = body.removesuffix("\n")
    _parsed(body)
    return body


def _recorded(line: str, prefix: str) -> dict[str, list[str | None]]:
    """Return what a line of the block says that was replaced."""
    try:
        document = json.loads(line.removeprefix(prefix))
        return {str(key): [new, old] for key, (new, old) in document.items()}
    except (ValueError, TypeError, AttributeError) as exc:
        raise UsageError(
            "the record in the block that 'firstread install' wrote is damaged",
            hint="the backup beside the file has it as it was before",
        ) from exc


def address_of(text: str) -> str | None:
    """Return the socket that `text` has for our snapshotter; None if it has none."""
    section = _table(_parsed(text), ("proxy_plugins", NAME))
    return section.get("address") if BEGIN in text else None


def _choose(
    text: str, path: tuple[str, ...], wanted: Mapping[str, str]
) -> tuple[str, list[str], dict[str, list[str | None]]]:
    """Set values of the table at `path`, given as TOML.

    Returns:
        The text with those that could be set where the table is, lines for the block if there is
        no such table, and by key the new line and the line that it replaces, if it does.
    """
    lines = _lines(text)
    header, _ = _find(lines, path, "")
    if header is None:
        name = ".".join(json.dumps(key) if "." in key else key for key in path)
        return text, [f"[{name}]", *(f"  {key} = {value}" for key, value in wanted.items())], {}
    replaced: dict[str, list[str | None]] = {}
    for key, value in wanted.items():
        _, place = _find(lines, path, key)
        if place is None:
            indent = lines[header][: -len(lines[header].lstrip())]
            new = f"{indent}  {key} = {value}\n"
            lines.insert(header + 1, new)
            replaced[key] = [new, None]
        else:
            old = lines[place]
            lines[place] = _VALUE.sub(lambda match, value=value: match[1] + value, old, count=1)  # type: ignore[misc]
            if lines[place] != old:
                replaced[key] = [lines[place], old]
    return "".join(lines), [], replaced


def _restore(text: str, path: tuple[str, ...], replaced: Mapping[str, Sequence[str | None]]) -> str:
    """Give values back their lines, unless somebody has changed them since."""
    lines = _lines(text)
    for key, (new, old) in replaced.items():
        _, place = _find(lines, path, key)
        if place is not None and lines[place] == new:
            lines[place] = old or ""
    return "".join(lines)


def _find(lines: list[str], path: tuple[str, ...], key: str) -> tuple[int | None, int | None]:
    """Return the numbers of the header of the table at `path` and of the line that sets `key`."""
    header = next(
        (n for n, line in enumerate(lines) if _path_of(line) == path and _begins(lines, n)), None
    )
    for n in range(header + 1 if header is not None else len(lines), len(lines)):
        text = lines[n].lstrip()
        if text.startswith("[") and _begins(lines, n):
            break
        if text.partition("=")[0].strip().strip("'\"") == key and _begins(lines, n):
            return header, n
    return header, None


def _path_of(line: str) -> tuple[str, ...] | None:
    """Return the table that a line begins, if it looks like a header."""
    if not line.lstrip().startswith("[") or line.lstrip().startswith("[["):
        return None
    try:
        place = tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return None
    path = []
    while place:
        ((key, place),) = place.items()
        path.append(key)
    return tuple(path)


def _begins(lines: list[str], number: int) -> bool:
    """Return whether a line begins a statement, and is not inside of a string or an array."""
    try:
        tomllib.loads("".join(lines[:number]))
    except tomllib.TOMLDecodeError:
        return False
    return True


def _lines(text: str) -> list[str]:
    """Return the lines as TOML knows them, with their ends."""
    return [line for line in re.split(r"(?<=\n)", text) if line]


def _table(document: Mapping[str, Any], path: tuple[str, ...]) -> Mapping[str, Any]:
    place: Any = document
    for key in path:
        place = place.get(key, {}) if isinstance(place, Mapping) else {}
    return place if isinstance(place, Mapping) else {}


def _compare(before: str, after: str, choice: Choice) -> None:
    """Check that `after` says what is wanted, and else what `before` says.

    Raises:
        UsageError: it does not.
    """
    expected: Any = tomllib.loads(before)
    version = version_of(before)
    try:
        plugin: dict[str, Any] = {"type": "snapshot", "address": choice.address}
        if exports := _exports(version, choice):
            plugin["exports"] = exports
        if _is_for_2(version, choice):
            entries = _unpack_entries(before) if choice.transfer else []
            if entries:
                _place(expected, TRANSFER).setdefault(_UNPACK, []).extend(entries)
        _place(expected, ("proxy_plugins",))[NAME] = plugin
        for path, _ in _sections(version, choice):
            _place(expected, path).update(snapshotter=NAME, disable_snapshot_annotations=False)
        fits = tomllib.loads(after) == expected
    except (tomllib.TOMLDecodeError, AttributeError, TypeError):
        fits = False
    if not fits or removed(after) != before:
        raise UsageError(
            "its sections are written in a way that cannot be completed",
            hint="write proxy_plugins and the section of the CRI plugin as tables with a [header]",
        )


def _parsed(text: str) -> dict[str, Any]:
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as exc:
        raise UsageError(f"it is not valid TOML: {exc}", hint="repair it first") from exc
    return document


def _place(document: Any, path: tuple[str, ...]) -> Any:
    """Return the table at `path`, made if it is not there."""
    for key in path:
        document = document.setdefault(key, {})
    return document
