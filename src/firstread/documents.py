# SPDX-License-Identifier: Apache-2.0
"""What every JSON document is made of: what commands print with --json, what the daemon answers.

Owns the base class, the units of fields and the encoding. Each room has structs of its own, filled
where the facts are known; ``tools/jsonpage.py`` makes docs/json.md of them. The docstring of a
struct says what its fields mean, a line each: ``name, other: meaning``.
"""

from __future__ import annotations

import json
from typing import Annotated, Final, TypeVar

import msgspec

from firstread.errors import NodeError
from firstread.structs import completed

T = TypeVar("T")


class Unit(str):
    """What a number or a string in a document is."""

    __slots__ = ()


class Described:
    """Marks a field whose own fields another section describes."""


Bytes = Annotated[int, Unit("bytes")]
Seconds = Annotated[float, Unit("seconds")]
Moment = Annotated[float, Unit("seconds since 1970")]
Digest = Annotated[str, Unit("digest")]
SectorName = Annotated[str, Unit("64 hexadecimal digits")]

DESCRIBED: Final = Described()


class Document(msgspec.Struct):
    """A JSON object."""


class ErrorDocument(Document):
    """What `firstread.errors.FirstreadError.to_dict` gives.

    error: class, see [errors.md](errors.md)
    message: what happened
    hint: what may help
    image: reference of the image concerned
    layer: layer or sector blob concerned
    exit_code: of the command
    retryable: it may work later
    """

    error: str
    message: str
    hint: str | None
    image: str | None
    layer: Digest | None
    exit_code: int
    retryable: bool


def decode(document: object, kind: type[T]) -> T:
    """Return the document that a daemon answered.

    Raises:
        NodeError: it is not such a document.
    """
    try:
        return msgspec.convert(document, completed(kind))
    except msgspec.ValidationError as exc:
        raise NodeError(
            f"the daemon answers what this version does not understand: {exc}",
            hint="it has another version, see firstread version; firstread daemon --replace",
        ) from exc


def encode(document: object) -> str:
    """Return a document as one line of ASCII.

    Names that are not UTF-8, which Python holds with surrogates, come through.
    """
    return json.dumps(msgspec.to_builtins(document))
