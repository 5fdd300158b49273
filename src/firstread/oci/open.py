# SPDX-License-Identifier: Apache-2.0
"""From a reference to the place that it names: the only module that knows every kind of place.

Owns the choice, and the meaning of a colon in a path where only the disk can tell (see
`firstread.oci.reference`).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from firstread.errors import UsageError
from firstread.oci.archive import OciArchive, OciArchiveWriter
from firstread.oci.dockerarchive import DockerArchive
from firstread.oci.endpoint import endpoints_of
from firstread.oci.hosts import PUSH
from firstread.oci.layout import LayoutDirectory
from firstread.oci.mirror import MirroredRepository
from firstread.oci.options import AccessOptions
from firstread.oci.reference import Reference
from firstread.oci.registry import RegistryRepository
from firstread.oci.repository import Repository
from firstread.oci.standing import Standings

__all__ = ["AccessOptions", "open_destination", "open_source"]


def open_source(
    reference: Reference,
    options: AccessOptions | None = None,
    standings: Standings | None = None,
) -> Repository:
    """Open the place of `reference` for reading. Nothing crosses a network yet.

    Args:
        reference: which.
        options: how registries are reached.
        standings: what is known of their endpoints, shared by all who read from them.

    Raises:
        UsageError: the settings of the registry are not valid.
        NotFoundError: there is no such file.
        ImageError: the archive is damaged or of a kind that is not handled.
    """
    if reference.transport == "docker":
        options = options or AccessOptions()
        endpoints = endpoints_of(reference.host, options)
        if not options.mirrors:
            endpoints = endpoints[-1:]
        return MirroredRepository(reference, endpoints, options, standings or Standings())
    reference = _locate(reference)
    if reference.transport == "oci-archive":
        return OciArchive(reference)
    if reference.transport == "docker-archive":
        return DockerArchive(reference)
    return LayoutDirectory(reference)


def open_destination(reference: Reference, options: AccessOptions | None = None) -> Repository:
    """Open the place of `reference` for writing, and make it if it is a path.

    To a registry only its server is written, never a mirror.

    Raises:
        UsageError: nothing can be written there, or the settings of the registry are not valid.
        NodeError: the disk refuses.
    """
    if reference.digest is not None:
        raise UsageError(
            "a destination cannot be named by a digest",
            image=str(reference),
            hint="give it a tag, or no name at all",
        )
    if reference.transport == "docker":
        options = options or AccessOptions()
        server = endpoints_of(reference.host, options)[-1]
        if PUSH not in server.capabilities:
            raise UsageError(
                f"{server.name} may not be written to",
                image=str(reference),
                hint='"push" is missing in the capabilities of its hosts.toml',
            )
        return RegistryRepository(reference, options, server, push=True)
    if reference.transport == "docker-archive":
        raise UsageError(
            "docker-archive: can only be read",
            image=str(reference),
            hint="write to docker://, oci: or oci-archive:",
        )
    reference = _locate(reference, create=True)
    if reference.transport == "oci-archive":
        return OciArchiveWriter(reference)
    return LayoutDirectory(reference, create=True)


def _locate(reference: Reference, *, create: bool = False) -> Reference:
    """Split at the first colon, as skopeo does, if the disk has only that path.

    Args:
        reference: to a path.
        create: the path may be new; then at most its last part is taken to have a colon.
    """
    path = Path(reference.path)
    head, colon, tail = reference.path.partition(":")
    if not colon or not head or path.exists():
        return reference
    if not Path(head).exists() and (path.parent.exists() or not create):
        return reference
    tag = tail if reference.tag is None else f"{tail}:{reference.tag}"
    return replace(reference, path=head, tag=tag or None)
