# SPDX-License-Identifier: Apache-2.0
"""Untrusted JSON as values of our types, or an error for people who have not read these types.

Owns the types of single fields and the words of errors; `gojson` owns how JSON is read. Invariant:
a document is a value of its type, or an `ImageError` that calls it by the name it was given.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Final, TypeVar

import msgspec

from firstread.errors import ImageError, LimitError
from firstread.oci import gojson
from firstread.structs import completed

MAX_INDEX_ENTRIES: Final = 40_000  # in 4 MiB: an entry has at least 110 bytes

_DIGEST: Final = r"^(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})\Z"
_ANY_DIGEST: Final = (  # descriptor.md, "Digests"
    r"^(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}"
    r"|(?!sha256:|sha512:)[a-z0-9]+([+._-][a-z0-9]+)*:[A-Za-z0-9=_-]+)\Z"
)
_MEDIA_TYPE: Final = (  # RFC 6838, section 4.2
    r"^[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}\Z"
)
_WORDS: Final = {
    _DIGEST: "a digest such as sha256:<64 digits, in lower case>",
    _ANY_DIGEST: "a digest such as sha256:<64 digits, in lower case>",
    _MEDIA_TYPE: "a media type without parameters, such as text/plain",
}
"""What an error says instead of a pattern."""
_MISSING: Final = re.compile(r"Object missing required field `(\w+)`(?: - at `\$\.?([^`]*)`)?")

Digest = Annotated[str, msgspec.Meta(pattern=_DIGEST)]
Size = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
AnyDigest = Annotated[str, msgspec.Meta(pattern=_ANY_DIGEST)]
MediaType = Annotated[str, msgspec.Meta(pattern=_MEDIA_TYPE)]

T = TypeVar("T")


def decode(data: bytes, kind: type[T], what: str) -> T:
    """Return untrusted JSON as a value of the type `kind`; messages call it `what`.

    Raises:
        ImageError: it is not such a value.
    """
    with _valid(what):
        return gojson.decode(data, kind)


def written(data: bytes, kind: type, what: str) -> dict[str, Any]:
    """Return an untrusted JSON object with all its fields, keys spelt as in the type `kind`.

    Raises:
        ImageError: it is not a JSON object.
    """
    with _valid(what):
        document = gojson.normal(gojson.load(data), kind)
    if not isinstance(document, dict):
        raise ImageError(f"{what} is not valid: it is not an object")
    return document


def decode_each(entries: list[Any], kind: type[T], what: str, path: str = "$") -> list[T]:
    """Return the `entries` of a list that are values of the type `kind`.

    A bad entry does not hide the others.

    Args:
        entries: as `load` gives them.
        kind: type of each.
        what: names the document in messages.
        path: of the list in the document.

    Raises:
        ImageError: all entries are bad; the message describes the first.
        LimitError: there are too many.
    """
    if len(entries) > MAX_INDEX_ENTRIES:
        raise LimitError(f"{what} has {len(entries)} entries, more than {MAX_INDEX_ENTRIES}")
    found: list[T] = []
    fault = ""
    for number, entry in enumerate(gojson.normal(entries, list[kind])):  # type: ignore[valid-type]
        try:
            found.append(msgspec.convert(entry, completed(kind)))
        except msgspec.ValidationError as exc:
            text, _, place = str(exc).partition(" - at `$")
            fault = fault or f"{text} - at `{path}[{number}]{place.rstrip('`')}`"
    if fault and not found:
        raise ImageError(f"{what} is not valid: {_in_words(fault)}")
    return found


def load(data: bytes, what: str) -> Any:
    """Return an untrusted document as dicts, lists and scalars.

    Raises:
        ImageError: it is not JSON.
    """
    with _valid(what):
        return gojson.load(data)


def convert(document: Any, kind: type[T], what: str) -> T:
    """Return a result of `load` as a value of the type `kind`.

    Raises:
        ImageError: it is not such a value.
    """
    with _valid(what):
        return gojson.convert(document, kind)


@contextmanager
def _valid(what: str) -> Iterator[None]:
    try:
        yield
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        fault = "it is nested too deeply" if isinstance(exc, RecursionError) else str(exc)
        raise ImageError(f"{what} is not valid: {_in_words(fault)}") from exc


def _in_words(fault: str) -> str:
    """Return what msgspec says of a document, for people who have not read its types."""
    if missing := _MISSING.fullmatch(fault):
        field, place = missing.groups()
        return f"{place or 'it'} has no {field}, which the specification requires"
    for pattern, words in _WORDS.items():
        fault = fault.replace(f"`str` matching regex {pattern!r}", words)
    return fault
