# SPDX-License-Identifier: Apache-2.0
"""From a reference to the repository that it names: the only module that knows every kind of one.

Owns the choice, the composition of a registry's parts (`open_endpoints`), and the meaning of a
colon in a path where only the disk can tell (see `firstread.oci.reference`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from firstread.errors import UsageError
from firstread.layouts.archive import OciArchive, OciArchiveWriter
from firstread.layouts.dockerarchive import DockerArchive
from firstread.layouts.layoutreader import LayoutDirectory
from firstread.layouts.layoutwriter import LayoutDestination
from firstread.oci.reference import Reference
from firstread.oci.repository import Destination, Repository
from firstread.registry.api import RepositoryApi
from firstread.registry.attempts import Attempts
from firstread.registry.backoff import Backoff, Budget
from firstread.registry.candidate import Candidate
from firstread.registry.endpoint import endpoints_of
from firstread.registry.health import KnownEndpoints
from firstread.registry.hosts import CAPABILITIES, PUSH, Endpoint
from firstread.registry.options import AccessOptions
from firstread.registry.remote import RemoteDestination, RemoteRepository
from firstread.registry.transport import Transport

RETRY_SHARE: Final = 0.1  # of a retry that an ordinary request pays for
RETRY_MOST: Final = 10.0
HEDGE_MOST: Final = 10.0


def open_source(
    reference: Reference,
    options: AccessOptions | None = None,
    known: KnownEndpoints | None = None,
) -> Repository:
    """Open the repository of `reference` for reading. Nothing crosses a network yet.

    Args:
        reference: which.
        options: how registries are reached.
        known: what is known of their endpoints, shared by all who read from them.

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
        return open_endpoints(reference, endpoints, options, known or KnownEndpoints())
    reference = _locate(reference)
    if reference.transport == "oci-archive":
        return OciArchive(reference)
    if reference.transport == "docker-archive":
        return DockerArchive(reference)
    return LayoutDirectory(reference)


def open_endpoints(
    reference: Reference,
    endpoints: Sequence[Endpoint],
    options: AccessOptions,
    known: KnownEndpoints,
) -> RemoteRepository:
    """Open a repository of a registry for reading.

    Args:
        reference: host, repository and image.
        endpoints: in the order of asking; the last is the registry itself.
        options: how to reach them.
        known: what is known of endpoints.

    Raises:
        UsageError: none may be asked; certificates cannot be read.
    """
    backoff = Backoff(options, Budget(RETRY_SHARE, RETRY_MOST, start=RETRY_MOST))
    attempts = _compose(reference, endpoints, options, known, backoff, "pull")
    return RemoteRepository(reference, attempts)


def _compose(
    reference: Reference,
    endpoints: Sequence[Endpoint],
    options: AccessOptions,
    known: KnownEndpoints,
    backoff: Backoff,
    actions: str,
) -> Attempts:
    """Put the layers of a registry together: transport, API and health below the attempts."""
    candidates = [
        Candidate(
            RepositoryApi(Transport(reference, actions, options, endpoint), known.declined),
            known.of(endpoint),
        )
        for endpoint in endpoints
        if endpoint.capabilities - {PUSH}
    ]
    hedges = Budget(options.hedge_share, HEDGE_MOST)
    return Attempts(reference, candidates, endpoints[-1], backoff, hedges)


def open_destination(reference: Reference, options: AccessOptions | None = None) -> Destination:
    """Open the repository of `reference` for writing, and make it if it is a path.

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
        return _open_server(reference, options or AccessOptions())
    if reference.transport == "docker-archive":
        raise UsageError(
            "docker-archive: can only be read",
            image=str(reference),
            hint="write to docker://, oci: or oci-archive:",
        )
    reference = _locate(reference, create=True)
    if reference.transport == "oci-archive":
        return OciArchiveWriter(reference)
    return LayoutDestination(reference)


def _open_server(reference: Reference, options: AccessOptions) -> RemoteDestination:
    server = endpoints_of(reference.host, options)[-1]
    if PUSH not in server.capabilities:
        raise UsageError(
            f"{server.name} may not be written to",
            image=str(reference),
            hint='"push" is missing in the capabilities of its hosts.toml',
        )
    # A writer looks at what is there before it writes, whatever the file says of readers.
    server = replace(server, capabilities=CAPABILITIES)
    backoff = Backoff(options)  # of a push nobody gives up because others failed before
    attempts = _compose(reference, [server], options, KnownEndpoints(), backoff, "pull,push")
    return RemoteDestination(reference, attempts)


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
