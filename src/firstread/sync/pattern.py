# SPDX-License-Identifier: Apache-2.0
"""Names of many images: ``registry.example/team/*:v*``. Pure.

Owns the grammar: ``*`` stands for any characters, a slash too, and ``?`` for one; the registry is
named exactly. Invariant: matching takes time in proportion to pattern and name (`fnmatch`).
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import TypeAlias

from firstread.convert import layertags
from firstread.errors import UsageError
from firstread.oci.reference import Reference, parse_reference
from firstread.oci.referrers import is_about_a_digest

WILDCARDS = frozenset("*?")
_HINT = "write it like registry.example/team/*:v* or registry.example/team/app:v1"


@dataclass(frozen=True, slots=True)
class Pattern:
    """The images of one registry whose names fit.

    Args:
        host: registry.
        repository: pattern.
        tag: pattern.
    """

    host: str
    repository: str
    tag: str

    @property
    def needs_catalogue(self) -> bool:
        """Whether only the registry knows which repositories fit."""
        return not WILDCARDS.isdisjoint(self.repository)

    def fits_repository(self, repository: str) -> bool:
        """Return whether images of a repository can fit."""
        return fnmatch.fnmatchcase(repository, self.repository)

    def fits_tag(self, tag: str) -> bool:
        """Return whether a tag fits; one of referrers, a signature or a packed layer never does."""
        names_no_image = is_about_a_digest(tag) or tag.startswith(layertags.PREFIX)
        return fnmatch.fnmatchcase(tag, self.tag) and not names_no_image

    def fits(self, reference: Reference) -> bool:
        """Return whether an image fits; one without a tag, if its repository does."""
        return (
            reference.host == self.host
            and self.fits_repository(reference.repository)
            and (reference.tag is None or self.fits_tag(reference.tag))
        )

    def __str__(self) -> str:
        return f"{self.host}/{self.repository}:{self.tag}"


Source: TypeAlias = Reference | Pattern


def parse_source(text: str) -> Source:
    """Return the image or the images in a registry that `text` names.

    Raises:
        UsageError: it names none.
    """
    if WILDCARDS.isdisjoint(text):
        return registry_image(text)
    return parse_pattern(text)


def registry_image(text: str) -> Reference:
    """As `parse_reference`, for an image in a registry. Raises: UsageError."""
    reference = parse_reference(text)
    if reference.transport != "docker":
        raise UsageError(f"{text!r} is not in a registry", hint=_HINT)
    return reference


def parse_pattern(text: str) -> Pattern:
    """Return the pattern `text`, which may also be the name of one image.

    Raises:
        UsageError: no name could fit it.
    """
    # A wildcard stands for what names may have there, so the rest is checked as a name is.
    plain = "".join("a" if letter in WILDCARDS else letter for letter in text)
    try:
        name = registry_image(plain)
    except UsageError as exc:
        raise UsageError(f"{text!r} is not a pattern of images", hint=_HINT) from exc
    first, _, path = text.removeprefix("docker://").partition("/")
    if plain.removeprefix("docker://").partition("/")[0] not in (name.host, "index.docker.io"):
        first, path = name.host, text.removeprefix("docker://")  # of Docker Hub, without its name
    repository, _, tag = path.partition(":")
    if not WILDCARDS.isdisjoint(first) or name.digest is not None:
        raise UsageError(f"{text!r}: only repository and tag can be a pattern", hint=_HINT)
    if WILDCARDS.isdisjoint(repository):
        repository = name.repository  # on Docker Hub with library/
    return Pattern(name.host, repository, tag or name.tag or "")
