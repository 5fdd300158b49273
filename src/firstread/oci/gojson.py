# SPDX-License-Identifier: Apache-2.0
"""JSON as programs in Go read it: the one step between foreign documents and our types.

Nearly all programs that write and read images are in Go, so documents are what Go's encoding/json
accepts. Owns the match between a document's keys and a type's fields, and the meaning of null;
knows no document. Invariants: the result has each field once, under the type's name for it;
unknown keys stay; the work is linear in the text, and no deeper than the type.

* A key matches a field whatever its case; ſ and K (Kelvin) fold to s and k. An exact key wins,
  unless it is null, else the last one. The keys of maps are not fields and stay as they are.
* Invalid UTF-8, or half of a surrogate pair, becomes U+FFFD.
* null is the zero value of the expected type: a null in a map of strings is an empty string, a null
  list is empty. It stays where the type allows null, with the same meaning to our readers.

Go differs for a field that occurs twice: it takes the last spelling, whichever that is, and merges
objects (docs/adr/0050).

Source: encoding/json, decode.go (object, literalStore), fold.go.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

import msgspec
from msgspec import inspect

from firstread.nesting import MAX_DEPTH, is_deep
from firstread.structs import completed

MAX_VALUES: Final = 1 << 19  # of one document: an index of 4 MiB has 200,000; some 100 bytes each

# Group 1: the escape of an unpaired surrogate.
_ESCAPE: Final = re.compile(
    r"\\(?:u[dD][89abAB][\da-fA-F]{2}\\u[dD][c-fC-F][\da-fA-F]{2}"
    r"|(u[dD][89a-fA-F][\da-fA-F]{2})|.)",
    re.DOTALL,
)

T = TypeVar("T")


def decode(data: bytes | str, kind: type[T]) -> T:
    """Return a document as a value of the type `kind`.

    Raises:
        msgspec.DecodeError: it is not JSON, or not such a value (msgspec.ValidationError).
        UnicodeDecodeError, RecursionError: it is not JSON.
    """
    return convert(load(data), kind)


def convert(value: Any, kind: type[T]) -> T:
    """Return a result of `load` as a value of the type `kind`.

    Raises:
        msgspec.ValidationError: it is not such a value.
    """
    return msgspec.convert(normal(value, kind), completed(kind))


def load(data: bytes | str) -> Any:
    """Return a document as dicts, lists and scalars.

    Raises:
        As `decode`.
    """
    text = data.decode(errors="replace") if isinstance(data, bytes) else data
    if "\\ud" in text or "\\uD" in text:
        text = _ESCAPE.sub(lambda match: "\ufffd" if match[1] else match[0], text)
    if text.count(",") + text.count("[") + text.count("{") > MAX_VALUES:
        raise msgspec.ValidationError(f"it has more than {MAX_VALUES} values")
    if is_deep(text):
        raise msgspec.ValidationError(f"it is nested more than {MAX_DEPTH} deep")
    return msgspec.json.decode(text)


def normal(value: Any, kind: Any) -> Any:
    """Return a result of `load` with the keys and zero values of the type `kind`.

    Parts that do not fit stay, for `msgspec.convert` to report.
    """
    return _normal(value, _shape(kind))


@dataclass(frozen=True, slots=True)
class _Shape:
    """The properties of a type that matter here.

    Args:
        is_nullable: null can stay.
        zero: makes the value of null otherwise; None if there is none.
        fields: of an object, by folded name: name, shape, and whether it is optional.
        items: of each item of a list or value of a map.
    """

    is_nullable: bool = False
    zero: Callable[[], Any] | None = None
    fields: Mapping[str, tuple[str, _Shape, bool]] = field(default_factory=dict)
    items: _Shape | None = None


def _normal(value: Any, shape: _Shape) -> Any:
    if value is None and not shape.is_nullable and shape.zero is not None:
        value = shape.zero()
    if shape.items is not None:
        items = shape.items
        if isinstance(value, list):
            return [_normal(item, items) for item in value]
        if isinstance(value, dict):
            return {key: _normal(item, items) for key, item in value.items()}
    elif shape.fields and isinstance(value, dict):
        return _object(value, shape.fields)
    return value


def _object(
    value: dict[str, Any], fields: Mapping[str, tuple[str, _Shape, bool]]
) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, item in value.items():
        known = fields.get(_fold(key))
        if known is None:
            result[key] = item
            continue
        name, shape, is_optional = known
        if item is None and (name in result or (is_optional and not shape.is_nullable)):
            continue  # null overrides nothing, and the default is the zero value
        if key == name or value.get(name) is None:
            result[name] = _normal(item, shape)
    return result


def _fold(key: str) -> str:
    """Return the same text for all keys that are one to Go; lower() makes k of the Kelvin sign."""
    return key.lower().replace("\u017f", "s")


@functools.cache
def _shape(kind: Any) -> _Shape:
    return _of(inspect.type_info(completed(kind)))


def _of(info: inspect.Type) -> _Shape:
    match info:
        case inspect.UnionType(types=types):
            kinds = [kind for kind in types if not isinstance(kind, inspect.NoneType)]
            return replace(_of(kinds[0]), is_nullable=len(kinds) < len(types))
        case inspect.StructType(fields=found):
            fields = {
                _fold(one.encode_name): (one.encode_name, _of(one.type), not one.required)
                for one in found
            }
            return _Shape(zero=dict, fields=fields)
        case inspect.DictType(value_type=items):
            return _Shape(zero=dict, items=_of(items))
        case inspect.ListType(item_type=items) | inspect.VarTupleType(item_type=items):
            return _Shape(zero=list, items=_of(items))
        case inspect.AnyType():
            return _Shape(is_nullable=True)
        case _:
            return _Shape(zero=_ZEROS.get(type(info)))


_ZEROS: Final[dict[type[inspect.Type], Callable[[], Any]]] = {
    inspect.StrType: str,
    inspect.BytesType: str,
    inspect.IntType: int,
    inspect.FloatType: float,
    inspect.BoolType: bool,
}
