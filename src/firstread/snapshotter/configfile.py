# SPDX-License-Identifier: Apache-2.0
"""containerd's configuration with our snapshotter in it, and without it again. Pure.

Owns the content of ``config.toml``; reads and writes no file. Invariants: `removed` gives back the
very text that `added` was given, whatever it was; only the intended values differ in between, since
`added` compares both documents key by key; `added` of its own result with the same choice changes
nothing.

New lines stand in one block at the end, between two marker lines. Replaced values
(`Choice.default`) change where they stand, and the block remembers them, so undoing needs no other
file.

Facts about containerd's configuration:

* A file without ``version`` has version 1 (containerd 1.x). Version 2 came with 1.3, version 3 with
  2.0, version 4 with 2.4; containerd still reads older ones. Each has another name for the CRI
  plugin, except the last two.
* When containerd 2 migrates an older file, it forgets the snapshotter, unless the file names a
  runtime too (`migrateConfig` in plugins/cri/images/plugin.go). A section of the newer name counts
  in an older file as well.
* The transfer service, which ``ctr images pull`` uses, unpacks for the snapshotters that it lists.
  A list in the file replaces the default one.
* containerd reports the file system of a snapshot by the ``root`` that its snapshotter exports, see
  `firstread.snapshotter.imagefs`. Versions that do not know ``exports`` ignore it.
* ``imports`` merge by whole sections: an imported file replaces a plugin's section with its own,
  everything else in that section included. Proxy plugins are sections of their own.

Sources: containerd's docs/man/containerd-config.toml.5.md and docs/PLUGINS.md; `mergeConfig` in
services/server/config/config.go (1.6) and cmd/containerd/server/config/config.go (2.x).
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from typing import Any, Final

from firstread.errors import UsageError
from firstread.snapshotter.tomltext import (
    begins_statement,
    header_name,
    lines_of,
    made_table,
    parsed,
    path_of,
    restore,
    set_values,
    table_at,
)

NAME: Final = "firstread"
BEGIN: Final = (
    "# >>> firstread install containerd: do not edit this block, 'firstread uninstall' removes it"
)
END: Final = "# <<< firstread install containerd"
_WAS: Final = "# was: "
_WAS_NEWER: Final = "# was in the newer section: "
_NO_NEWLINE: Final = "# there was no newline at the end"

_WANTED: Final = {"snapshotter": f'"{NAME}"', "disable_snapshot_annotations": "false"}

CRI: Final[dict[int, tuple[str, ...]]] = {
    1: ("plugins", "cri", "containerd"),
    2: ("plugins", "io.containerd.grpc.v1.cri", "containerd"),
    3: ("plugins", "io.containerd.cri.v1.images"),
    4: ("plugins", "io.containerd.cri.v1.images"),
}
"""The section in which the CRI plugin chooses its snapshotter, by version of the file."""

CRI_PLUGIN: Final = {version: path[1] for version, path in CRI.items()}
NEWEST: Final = max(CRI)
TRANSFER: Final = ("plugins", "io.containerd.transfer.v1.local")
_UNPACK: Final = "unpack_config"
_OVERLAYFS: Final = {"platform": "linux", "snapshotter": "overlayfs", "differ": "walking"}
_OURS: Final = {"platform": "linux", "snapshotter": NAME, "differ": "walking"}


@dataclass(frozen=True)
class Choice:
    """What to write.

    Args:
        address: socket of the snapshotter.
        default: have the CRI plugin, and so Kubernetes, use the snapshotter for every image.
        containerd2: containerd 2 reads the file, whatever version the file has.
        transfer: enter the snapshotter into the transfer service, too.
        root: directory of the snapshotter; empty to export none.
    """

    address: str
    default: bool = False
    containerd2: bool = False
    transfer: bool = True
    root: str = ""


def version_of(text: str) -> int:
    """Return the version of a configuration.

    Raises:
        UsageError: it is not TOML, or of an unknown version.
    """
    version = parsed(text).get("version", 1)
    if version not in CRI:
        raise UsageError(
            f"the configuration is of version {version!r}",
            hint=f"versions 1 to {NEWEST} are known: add the section by hand (docs/kubernetes.md)",
        )
    return int(version)


def is_default(text: str) -> bool:
    """Return whether the CRI plugin uses the snapshotter for every image.

    Raises:
        UsageError: it is not TOML, or of an unknown version.
    """
    return table_at(parsed(text), CRI[version_of(text)]).get("snapshotter") == NAME


def imports_of(text: str) -> list[str]:
    """Return the names of imported files, as the configuration spells them.

    Raises:
        UsageError: it is not TOML.
    """
    imports = parsed(text).get("imports", [])
    return [name for name in imports if isinstance(name, str)] if isinstance(imports, list) else []


def has_transfer(text: str) -> bool:
    """Return whether a configuration has a section of containerd's transfer service.

    Raises:
        UsageError: it is not TOML.
    """
    return bool(table_at(parsed(text), TRANSFER))


def cri_section(text: str, version: int) -> str | None:
    """Return which section of the CRI plugin a file has.

    Args:
        text: of a file that another one imports.
        version: of the importing file. In a file without a version, any name can count.

    Raises:
        UsageError: it is not TOML, or of an unknown version.
    """
    document = parsed(text)
    numbers = {version, version_of(text)} if "version" in document else set(CRI)
    plugins = table_at(document, ("plugins",))
    return next((CRI_PLUGIN[n] for n in sorted(numbers) if CRI_PLUGIN[n] in plugins), None)


def added(text: str, choice: Choice) -> str:
    """Return the configuration `text` with the snapshotter in it.

    Raises:
        UsageError: it is not TOML, it has a foreign plugin of our name, or it spells the sections
            in a way that cannot be completed.
    """
    before = removed(text)
    version = version_of(before)
    if NAME in table_at(parsed(before), ("proxy_plugins",)):
        raise UsageError(
            f"it has a section proxy_plugins.{NAME} that 'firstread install' did not write",
            hint="remove that section, or keep it and do without 'firstread install'",
        )
    body = before if before.endswith("\n") or not before else f"{before}\n"
    block = [BEGIN, *([] if body == before else [_NO_NEWLINE])]
    tables: list[str] = []
    for path, was in _sections(version, choice):
        body, lines, replaced = set_values(body, path, _WANTED)
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
    """Return the properties that containerd learns of the snapshotter."""
    exports = {"root": choice.root} if choice.root else {}
    if _is_for_2(version, choice):
        # Without it, clients that pull through the transfer service name no image.
        exports["enable_remote_snapshot_annotations"] = "true"
    return exports


def _sections(version: int, choice: Choice) -> list[tuple[tuple[str, ...], str]]:
    """Return the sections that choose the snapshotter, each with its prefix in the block."""
    if not choice.default:
        return []
    newer = [(CRI[3], _WAS_NEWER)] if version < 3 and choice.containerd2 else []
    return [(CRI[version], _WAS), *newer]


def _unpack_entries(text: str) -> list[dict[str, str]]:
    """Return the new entries for the list of the transfer service."""
    present = table_at(parsed(text), TRANSFER).get(_UNPACK)
    if present is None:
        return [_OVERLAYFS, _OURS]
    known = isinstance(present, list) and any(
        isinstance(entry, dict) and entry.get("snapshotter") == NAME for entry in present
    )
    lines = lines_of(text)
    is_table = any(
        line.lstrip().startswith("[[")
        and path_of(line.replace("[[", "[").replace("]]", "]")) == (*TRANSFER, _UNPACK)
        and begins_statement(lines, number)
        for number, line in enumerate(lines)
    )
    return [_OURS] if is_table and not known else []  # nothing can follow a list in brackets


def _unpack_lines(text: str) -> list[str]:
    name = header_name((*TRANSFER, _UNPACK))
    lines = []
    for entry in _unpack_entries(text):
        lines += [f"[[{name}]]", *(f'  {key} = "{value}"' for key, value in entry.items())]
    return lines


def removed(text: str) -> str:
    """Return the configuration `text` without what `added` put into it.

    Later changes by others stay, even to values that were ours.

    Raises:
        UsageError: it is not TOML, or the markers of the block are damaged.
    """
    parsed(text)
    lines = lines_of(text)
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
            body = restore(body, CRI[version_of(body)], _recorded(line, _WAS))
        elif line.startswith(_WAS_NEWER):
            body = restore(body, CRI[3], _recorded(line, _WAS_NEWER))
    if _NO_NEWLINE in block and not rest:
        body = body.removesuffix("\n")
    parsed(body)
    return body


def _recorded(line: str, prefix: str) -> dict[str, list[str | None]]:
    """Return the replaced values that a line of the block records."""
    try:
        document = json.loads(line.removeprefix(prefix))
        return {str(key): [new, old] for key, (new, old) in document.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as exc:
        raise UsageError(
            "the record in the block that 'firstread install' wrote is damaged",
            hint="the backup beside the file has it as it was before",
        ) from exc


def _compare(before: str, after: str, choice: Choice) -> None:
    """Check that `after` has the wanted values, and is otherwise equal to `before`.

    Raises:
        UsageError: it is not.
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
                made_table(expected, TRANSFER).setdefault(_UNPACK, []).extend(entries)
        made_table(expected, ("proxy_plugins",))[NAME] = plugin
        for path, _ in _sections(version, choice):
            made_table(expected, path).update(snapshotter=NAME, disable_snapshot_annotations=False)
        fits = tomllib.loads(after) == expected
    except (tomllib.TOMLDecodeError, AttributeError, TypeError):
        fits = False
    if not fits or removed(after) != before:
        raise UsageError(
            "its sections are written in a way that cannot be completed",
            hint="write proxy_plugins and the section of the CRI plugin as tables with a [header]",
        )
