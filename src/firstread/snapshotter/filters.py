# SPDX-License-Identifier: Apache-2.0
"""containerd's filter expressions, such as ``kind==active,labels."a.b"~=^x``. Pure.

Owns the grammar. A filter consists of selectors joined by commas; all must hold. Of several filters
one must hold. A selector is a path of fields, followed after ``==``, ``!=`` and ``~=`` by a value,
plain or quoted; after ``~=`` also between slashes or bars. Source: pkg/filters of containerd.

Go matches any regular expression in linear time, Python does not. Expressions that could take long
are refused, since every other call would wait for them, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from firstread.errors import cut
from firstread.snapshotter.refusal import Refusal, RefusalError

MAX_TEXT = 4096  # characters that a pattern is searched in; containerd limits labels to this
MAX_SHOWN = 100  # characters before and behind the place of an error
MAX_FILTER = 8192  # characters of one filter; a label has 4096 at most
MAX_PATTERN = 256  # characters of a regular expression
MAX_REPEATS = 1  # parts of a pattern with a repeat
MAX_CHOICES = 3  # alternatives, if there is more than one group of them

Lookup = Callable[[tuple[str, ...]], str | None]
"""Returns the value of a field, None if there is none."""

_FIELD = re.compile(r"\s*([A-Za-z0-9_]+)")
_QUOTED = re.compile(r'\s*(?:"((?:[^"\\\n]|\\.)*)")')
_OPERATOR = re.compile(r"\s*(==|!=|~=)")
_PATTERN = re.compile(r"\s*(?:/((?:[^/\\\n]|\\.)*)/|\|((?:[^|\\\n]|\\.)*)\|)")
_VALUE = re.compile(r"\s*([^\s,\"/|=!~][^\s,]*|[/|][^\s,]*)")
_SPACE = re.compile(r"\s*")
_ATOM = re.compile(r"\\.|\[\^?\]?[^\]]*+\]", re.DOTALL)  # an escape or a class of a pattern
_REPEAT = re.compile(r"[*+?]|\{\d*+,?\d*+\}")
_REPEATED_GROUP = re.compile(r"\)(?:[*+?]|\{)")
_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_ESCAPE = re.compile(r"\\(x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|[0-7]{3}|.)")


@dataclass(frozen=True, slots=True)
class _Selector:
    path: tuple[str, ...]
    operator: str
    value: str

    def holds(self, lookup: Lookup) -> bool:
        found = lookup(self.path)
        if self.operator == "==":
            return found is not None and found == self.value
        if self.operator == "!=":
            return (found or "") != self.value
        if self.operator == "~=":
            return re.search(self.value, (found or "")[:MAX_TEXT]) is not None
        return found is not None


def parse_filters(expressions: Sequence[str]) -> Callable[[Lookup], bool]:
    """Return a function that tells whether one of the filters holds; no filters always hold.

    Raises:
        RefusalError: one is not a filter.
    """
    filters = [_Parser(expression).parse() for expression in expressions]

    def matches(lookup: Lookup) -> bool:
        return not filters or any(
            all(selector.holds(lookup) for selector in selectors) for selectors in filters
        )

    return matches


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0

    def parse(self) -> list[_Selector]:
        """Return the selectors; an empty filter has none, and so always holds."""
        if not self._text:
            return []
        if len(self._text) > MAX_FILTER:
            raise self._wrong(f"more than {MAX_FILTER} characters")
        selectors = [self._selector()]
        while self._skip(","):
            selectors.append(self._selector())
        if _SPACE.fullmatch(self._text, self._position) is None:
            raise self._wrong("unexpected input")
        return selectors

    def _selector(self) -> _Selector:
        path = [self._field()]
        while self._skip("."):
            path.append(self._field())
        operator = self._match(_OPERATOR)
        if operator is None:
            return _Selector(tuple(path), "", "")
        return _Selector(tuple(path), operator[1], self._value(operator[1]))

    def _field(self) -> str:
        if match := self._match(_FIELD):
            return match[1]
        if match := self._match(_QUOTED):
            return _unquote(match[1])
        raise self._wrong("expected a field")

    def _value(self, operator: str) -> str:
        if match := self._match(_QUOTED):
            value = _unquote(match[1])
        elif operator == "~=" and (match := self._match(_PATTERN)):
            value = re.sub(r"\\([/|])", r"\1", match[1] if match[1] is not None else match[2])
        elif match := self._match(_VALUE):
            value = match[1]
        else:
            raise self._wrong("expected a value")
        if operator == "~=":
            if _may_take_long(value):
                raise self._wrong("a regular expression that can take long")
            try:
                re.compile(value)
            except re.error as exc:
                raise self._wrong(f"not a regular expression: {exc}") from exc
        return value

    def _match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        match = pattern.match(self._text, self._position)
        if match is not None:
            self._position = match.end()
        return match

    def _skip(self, character: str) -> bool:
        start = _SPACE.match(self._text, self._position)
        end = start.end() if start else self._position
        if not self._text.startswith(character, end):
            return False
        self._position = end + 1
        return True

    def _wrong(self, why: str) -> RefusalError:
        before = self._text[max(0, self._position - MAX_SHOWN) : self._position]
        place = f"{before} >|{cut(self._text[self._position :], MAX_SHOWN)}|<"
        return RefusalError(Refusal.INVALID_ARGUMENT, f"filter {place}: {why}")


def _may_take_long(pattern: str) -> bool:
    """Return whether a pattern could have too many ways to match a text."""
    if len(pattern) > MAX_PATTERN:
        return True
    bare = _ATOM.sub("x", pattern)
    several = bare.count("(") > 1 and bare.count("|") > MAX_CHOICES
    repeats = len(_REPEAT.findall(bare.replace("(?", "(")))
    return several or repeats > MAX_REPEATS or _REPEATED_GROUP.search(bare) is not None


def _unquote(text: str) -> str:
    """Return the value of a Go string literal between double quotes."""

    def replace(match: re.Match[str]) -> str:
        code = match[1]
        if code[0] in "xuU" and len(code) > 1:
            return chr(int(code[1:], 16))
        if len(code) == 3:
            return chr(int(code, 8))
        return _ESCAPES.get(code, code)

    return _ESCAPE.sub(replace, text)
