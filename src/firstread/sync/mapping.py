# SPDX-License-Identifier: Apache-2.0
"""From the name of an image to the name of its conversion: ``mirror.example/lazy/*``. Pure.

Owns the rule: the ``*`` of the repository is the source's repository, and that of the tag, which is
``*`` if none is given, its tag. Invariant: one registry takes all conversions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from firstread.errors import UsageError
from firstread.oci.reference import Reference, parse_reference
from firstread.sync.pattern import parse_pattern

_HINT = "write it like mirror.example/lazy/*, or registry.example/*:*-lazy"


@dataclass(frozen=True, slots=True)
class Mapping:
    """The destination of many images.

    Args:
        host: registry.
        repository: with a ``*``.
        tag: likewise.
    """

    host: str
    repository: str
    tag: str

    def place_of(self, source: Reference) -> Reference:
        """Return the repository of the conversions of a repository.

        Raises:
            UsageError: its name would not be one.
        """
        return replace(self.of(replace(source, tag="a", digest=None)), tag=None)

    def of(self, source: Reference) -> Reference:
        """Return the name of the conversion of an image.

        Raises:
            UsageError: the image has no tag, or the name would not be one.
        """
        if source.tag is None:
            raise UsageError(
                "it is named by its digest alone, so there is no tag for its conversion",
                image=str(source),
                hint="name it by a tag, or use --attach",
            )
        repository = self.repository.replace("*", source.repository)
        tag = self.tag.replace("*", source.tag)
        try:
            return parse_reference(f"{self.host}/{repository}:{tag}")
        except UsageError as exc:
            raise exc.about(image=str(source)) from None

    def __str__(self) -> str:
        return f"{self.host}/{self.repository}:{self.tag}"


def parse_mapping(text: str) -> Mapping:
    """Return the destination that `text` stands for.

    Raises:
        UsageError: it is none.
    """
    whole = text if ":" in text.rpartition("/")[2] else f"{text}:*"
    try:
        found = parse_pattern(whole)
    except UsageError as exc:
        raise UsageError(f"{text!r} is no destination for many images", hint=_HINT) from exc
    parts = found.repository, found.tag
    if "?" in text or any(part.count("*") != 1 for part in parts):
        raise UsageError(
            f"{text!r} is no DEST for many images: it needs one * in the repository, and one in the"
            " tag if it has a tag",
            hint=_HINT,
        )
    return Mapping(found.host, *parts)
