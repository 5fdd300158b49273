# SPDX-License-Identifier: Apache-2.0
"""Makes docs/json.md of the structs whose instances are printed: ``python tools/jsonpage.py``.

Owns the order of the page and the words between its tables; names, types and units of fields come
from the structs, their meanings from the docstrings (`firstread.documents`). A test fails when the
page is not what this makes.
"""

from __future__ import annotations

import inspect
import re
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Union

import msgspec

from firstread.cache.report import Listing, Pruned, Verified
from firstread.cli.shown import (
    ContainersShown,
    ImageExported,
    ImageExtracted,
    ImageShown,
    ImageVerified,
    NodeChecked,
    Versions,
)
from firstread.control.daemonstatus import Status
from firstread.convert.outcome import Attachments, Conversion, Conversions, Optimization
from firstread.documents import Described, ErrorDocument, Unit
from firstread.fetch.happening import KINDS
from firstread.fetch.tracelog import SeenReads
from firstread.mounts.nodestatus import Mounted
from firstread.report.startrecord import StartRecord
from firstread.sync.synced import Synced
from firstread.tune.tuned import Tuned

PAGE: Final = Path(__file__).parents[1] / "docs" / "json.md"

_HEAD: Final = """\
# `--json`

<!-- Made by tools/jsonpage.py of the structs themselves: change those, and run it again. -->

Each command that takes it prints one object on one line of stdout and nothing on stderr. Fields are
only ever added. Bytes and seconds are numbers; a digest is `sha256:` and 64 hexadecimal digits; a
name that is not UTF-8 has `\\xNN` for the bytes that are not. The daemon answers the same objects
on its control socket.
"""

_SYNC: Final = "With `--watch` an object for each run.\n"
_FETCH: Final = "One of `mounts` of [status](#status), when all of its sectors are here.\n"
_WATCH: Final = """\
Counters of `mounts` and `totals` begin with the fetcher, and a sector that several images share is
counted for the one that was mounted first. With `--watch` an object a second. `status --metrics`
prints the same as Prometheus [metrics](metrics.md); `daemon --metrics HOST:PORT` serves them.
"""
_SOUND: Final = "An image that is not as it should be is an error of code 3.\n"
_VERIFIED: Final = (
    "The exit code is 0 if nothing is left that is damaged or could not be read, else 5.\n"
)
_CHECKED: Final = "The exit code is 0 if nothing fails, else 5.\n"
_REPORT: Final = "What a mount's start has done and read; also the file of `run --record`.\n"
_SEEN: Final = "No command prints it: `trace --from` asks the daemon's control socket for it.\n"
_EVENTS: Final = "An object a line, as it happens; `event` says which.\n"

SECTIONS: Final[dict[str, tuple[str, type | None, str]]] = {
    "convert": ("", Conversion, ""),
    "convert --platform all": ("", Conversions, ""),
    "convert --attach": ("A name can have an image for each platform.\n", Attachments, ""),
    "sync": (_SYNC, Synced, ""),
    "optimize": ("", Optimization, ""),
    "inspect": ("", ImageShown, ""),
    "verify": ("", ImageVerified, _SOUND),
    "extract": ("", ImageExtracted, ""),
    "export": ("With `--nbd`, once clients can connect.\n", ImageExported, ""),
    "ps": ("", ContainersShown, ""),
    "mount": ("", Mounted, ""),
    "status": ("", Status, _WATCH),
    "cache ls": ("", Listing, ""),
    "cache prune": ("", Pruned, ""),
    "cache verify": ("", Verified, _VERIFIED),
    "fetch": (_FETCH, None, ""),
    "report": (_REPORT, StartRecord, ""),
    "POST /seen": (_SEEN, SeenReads, ""),
    "events": (_EVENTS, None, ""),
    "tune": ("", Tuned, ""),
    "doctor": ("", NodeChecked, _CHECKED),
    "errors": ("", ErrorDocument, ""),
    "version": ("", Versions, ""),
}
"""By title: what stands before the table, the document, what stands behind it."""

_PLAIN: Final[dict[Any, str]] = {
    str: "string",
    bytes: "base64",
    bool: "boolean",
    int: "number",
    float: "number",
    Any: "any",
}


def page() -> str:
    """Return the page."""
    parts = [_HEAD]
    for title, (before, document, after) in SECTIONS.items():
        table = [_table(document)] if document is not None else []
        parts += [f"## {title}\n", *filter(None, [before, *table, after])]
        if title == "events":
            parts += [f"`{kind}`:\n\n{_table(document)}" for kind, document in KINDS.items()]
    return "\n".join(parts)


def _table(document: type) -> str:
    lines = ["| field | type | meaning |", "|---|---|---|", *rows(document, "")]
    return "\n".join(lines) + "\n"


def rows(document: type, prefix: str) -> Iterator[str]:
    """Yield the rows of a table: the fields of a struct, and of those in it.

    Raises:
        ValueError: docstrings and fields do not fit.
    """
    hints = typing.get_type_hints(document, include_extras=True)
    meanings = _meanings(document)
    tag = document.__struct_config__.tag_field  # type: ignore[attr-defined]
    if tag:
        yield f"| `{prefix}{tag}` | string | `{document.__struct_config__.tag}` |"  # type: ignore[attr-defined]
    fields = list(document.__struct_fields__)  # type: ignore[attr-defined]
    while fields:
        names = next((names for names in meanings if fields[0] in names), (fields[0],))
        fields = [name for name in fields if name not in names]
        kinds = list(dict.fromkeys(_kind(hints[name]) for name in names))
        shown = ", ".join(f"`{prefix}{name}`" for name in names)
        inner, many = _inner(hints[names[0]])
        meaning = meanings.get(names) or (_summary(inner) if inner else "")
        if not meaning:
            raise ValueError(f"the docstring of {document.__name__} does not tell of {names}")
        yield f"| {shown} | {'; '.join(kinds)} | {meaning} |"
        for name in names:
            if inner is not None:
                yield from rows(inner, f"{prefix}{name}{'[]' if many else ''}.")


def _summary(document: type) -> str:
    line = inspect.cleandoc(document.__doc__ or "").partition("\n")[0].rstrip(".")
    return line[:1].lower() + line[1:]


def _meanings(document: type) -> dict[tuple[str, ...], str]:
    """Return what the docstrings of a struct, and of those below it, say of its fields.

    Raises:
        ValueError: they say something of a field that is not there.
    """
    found: dict[tuple[str, ...], str] = {}
    for owner in reversed(document.__mro__):
        if not issubclass(owner, msgspec.Struct) or not owner.__doc__ or owner is msgspec.Struct:
            continue
        body = inspect.cleandoc(owner.__doc__).partition("\n\n")[2]
        for line in re.sub(r"\n +", " ", body).splitlines():
            names, colon, meaning = line.partition(": ")
            key = tuple(names.split(", "))
            if not colon or not set(key) <= set(document.__struct_fields__):  # type: ignore[attr-defined]
                raise ValueError(f"the docstring of {owner.__name__} has no field for {line!r}")
            found[key] = meaning
    return found


def _parts(hint: Any) -> tuple[Any, list[Any], str]:
    """Return a type without what surrounds it, its annotations, and whether it may be missing."""
    notes: list[Any] = []
    suffix = ""
    while True:
        if typing.get_origin(hint) is Annotated:
            hint, *more = typing.get_args(hint)
            notes += more
        elif typing.get_origin(hint) in (Union, types.UnionType):
            others = set(typing.get_args(hint)) & {type(None), msgspec.UnsetType}
            suffix += " or null" if type(None) in others else ""
            suffix += ", can be absent" if msgspec.UnsetType in others else ""
            (hint,) = [each for each in typing.get_args(hint) if each not in others]
        else:
            return hint, notes, suffix


def _kind(hint: Any) -> str:
    hint, notes, suffix = _parts(hint)
    origin = typing.get_origin(hint)
    if origin is list:
        item = _kind(typing.get_args(hint)[0])
        text = "array of " + re.sub(r"^(\w+?)s?\b", r"\1s", item)
    elif origin is dict or _is_struct(hint):
        text = "object"
    else:
        text = "string" if origin is Literal else _PLAIN[hint]
    units = [note for note in notes if isinstance(note, Unit)]
    return (units[0] if units else text) + suffix


def _inner(hint: Any) -> tuple[type | None, bool]:
    """Return the struct whose fields are to be shown below a field, and whether there are many."""
    hint, notes, _ = _parts(hint)
    many = typing.get_origin(hint) is list
    if many:
        hint, more, _ = _parts(typing.get_args(hint)[0])
        notes += more
    if not _is_struct(hint) or any(isinstance(note, Described) for note in notes):
        return None, many
    return hint, many


def _is_struct(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, msgspec.Struct)


if __name__ == "__main__":
    PAGE.write_text(page())
    sys.stdout.write(f"{PAGE} is written\n")
