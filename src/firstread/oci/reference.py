# SPDX-License-Identifier: Apache-2.0
"""Names of images, as skopeo and docker write them.

Owns parsing and the canonical text; touches neither network nor disk. Invariant:
``parse_reference(str(ref)) == ref`` for every `Reference` that `parse_reference` returns.

Where a colon is ambiguous:

* ``localhost/x`` and ``host:5000/x`` name a host, because the first component is ``localhost`` or
  contains a dot or a colon; ``localhost:5000`` without a slash is an image and its tag (docker's
  rule). An IPv6 host is written in brackets.
* ``oci:DIR:TAG``: the text after the *last* colon is the tag, if it is a valid one; a path can
  contain colons. A path whose last part looks like ``a:b`` needs a colon at its end
  (``oci:/x/a:b:``), which means "no tag". skopeo splits at the first colon, so a whole image name
  can be its tag; `firstread.registry.open` tries that if neither the path nor its parent exists.
"""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Literal

from firstread.errors import UsageError

Transport = Literal["docker", "oci", "oci-archive", "docker-archive"]

DEFAULT_HOST = "docker.io"
DEFAULT_TAG = "latest"

_PATH_TRANSPORTS: tuple[Transport, ...] = ("oci", "oci-archive", "docker-archive")
_FOREIGN = re.compile(r"(containers-storage|dir|docker-daemon|ostree|sif|tarball):|https?://")

# github.com/distribution/reference, grammar at the top of reference.go
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_HOST = re.compile(
    rf"(?:{_LABEL}(?:\.{_LABEL})*|\[(?P<v6>[0-9A-Fa-f:.]+)\])(?::(?P<port>[0-9]{{1,5}}))?"
)
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_MAX_NAME = 255  # characters of host and repository together

_HINT = (
    "write it like docker://host:5000/repository:tag, oci:DIR:TAG, oci-archive:FILE "
    "or docker-archive:FILE"
)


@dataclass(frozen=True, slots=True)
class Reference:
    """The name of an image: where it is, or will be.

    Args:
        transport: the kind of place.
        host: registry, with its port if it has one; empty for a path.
        repository: name within the registry; empty for a path.
        path: directory or file; empty for a registry.
        tag: None if the place has only one image, or if `digest` suffices.
        digest: of the manifest.
    """

    transport: Transport
    host: str
    repository: str
    path: str
    tag: str | None = None
    digest: str | None = None

    def absolute(self) -> Reference:
        """Return the same place with an absolute path, for processes in other directories."""
        return dataclasses.replace(self, path=os.path.abspath(self.path)) if self.path else self

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag is not None else ""
        digest = f"@{self.digest}" if self.digest else ""
        if self.transport == "docker":
            return f"docker://{self.host}/{self.repository}{tag}{digest}"
        if self.tag is None and _split_path(self.path) != (self.path, None, None):
            tag = ":"  # or the end of the path would pass for a tag
        return f"{self.transport}:{self.path}{tag}{digest}"


def is_digest(text: str) -> bool:
    """Return whether `text` is a full digest of an algorithm that firstread can verify."""
    return _DIGEST.fullmatch(text) is not None


def parse_reference(text: str) -> Reference:
    """Return the reference that `text` names; without a transport, an image in a registry.

    Raises:
        UsageError: it is not the name of an image.
    """
    for transport in _PATH_TRANSPORTS:
        prefix = f"{transport}:"
        if text.startswith(prefix):
            path, tag, digest = _split_path(text[len(prefix) :])
            if not path or "\0" in path:
                raise UsageError(f"{text!r} names no path", hint=_HINT)
            return Reference(transport, "", "", path, tag, digest)
    if _FOREIGN.match(text):
        raise UsageError(f"{text!r}: this transport is not supported", hint=_HINT)
    return _parse_name(text.removeprefix("docker://"), text)


def _split_path(text: str) -> tuple[str, str | None, str | None]:
    """Return (path, tag, digest) of the text after ``oci:`` and the like."""
    digest = None
    head, at, tail = text.rpartition("@")
    if at and head and is_digest(tail):
        text, digest = head, tail
    path, colon, tag = text.rpartition(":")
    if not colon or not path:
        return text, None, digest
    if not tag:
        return path, None, digest
    return (path, tag, digest) if _TAG.fullmatch(tag) else (text, None, digest)


def _parse_name(name: str, text: str) -> Reference:
    """Return the registry image `name`; `text` is what the user typed, for messages."""
    rest, _, digest = name.partition("@")
    if digest and not is_digest(digest):
        raise UsageError(f"{text!r}: {digest!r} is not a digest", hint="write @sha256:<64 digits>")
    host, rest = _split_host(rest)
    repository, colon, tag = rest.partition(":")
    if host == DEFAULT_HOST and "/" not in repository:
        repository = f"library/{repository}"
    match = _HOST.fullmatch(host)
    if match is None or not _is_address(match["v6"]) or int(match["port"] or 0) > 65535:
        raise UsageError(f"{text!r}: {host!r} is not a host", hint=_HINT)
    if not _REPOSITORY.fullmatch(repository) or name.endswith(("@", ":")):
        upper = repository != repository.lower()
        hint = "a repository is written in lower case" if upper else _HINT
        raise UsageError(f"{text!r} is not the name of an image", hint=hint)
    if len(host) + len(repository) > _MAX_NAME:
        raise UsageError(f"{text!r}: name is longer than {_MAX_NAME} characters")
    if colon and not _TAG.fullmatch(tag):
        raise UsageError(f"{text!r}: {tag!r} is not a tag", hint=_HINT)
    chosen = tag or (None if digest else DEFAULT_TAG)
    return Reference("docker", host, repository, "", chosen, digest or None)


def _split_host(name: str) -> tuple[str, str]:
    """Return (host, rest of the name)."""
    first, slash, rest = name.partition("/")
    if not slash or not (first == "localhost" or "." in first or ":" in first):
        return DEFAULT_HOST, name
    return (DEFAULT_HOST if first == "index.docker.io" else first), rest


def _is_address(v6: str | None) -> bool:
    """Return whether the text in brackets, if any, is an IPv6 address."""
    try:
        return v6 is None or bool(IPv6Address(v6).packed)
    except ValueError:
        return False
