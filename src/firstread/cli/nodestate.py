# SPDX-License-Identifier: Apache-2.0
"""Containers and mounts of a node, for several verbs, and the way to its daemon."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from firstread.cli.output import complain, report
from firstread.errors import FirstreadError

if TYPE_CHECKING:
    from firstread.control.client import Client
    from firstread.run.containers import ContainerStore, Record


def daemon_of(root: Path, run_dir: Path) -> Client:
    """Return a client of a node's daemon, which is started if none runs.

    An ordinary user's process joins the namespaces of its node, or makes them, before.

    Raises:
        NodeError: it does not start, or this host has no namespace for the user.
    """
    from firstread.control.client import connected

    if os.geteuid():
        from firstread.control.usernamespace import enter

        enter(root, run_dir)
    return connected(root, run_dir)


def container_store(root: Path) -> ContainerStore:
    """Return the containers of a node.

    Raises:
        NodeError: their directory cannot be created, or others can write to it.
    """
    from firstread.private import private_directory
    from firstread.run.containers import ContainerStore

    private_directory(root)
    return ContainerStore(root / "containers")


def recorded_mounts(root: Path) -> set[str]:
    """Return the mount points of a node, served or not."""
    from firstread.mounts.table import MountTable

    if not (root / "mounts").is_dir():
        return set()
    return {mount.mountpoint for mount in MountTable(root).load(tidy=False)}


def release_mount(root: Path, run_dir: Path, record: Record) -> None:
    """Release the mount that a container holds under its id.

    Raises:
        FirstreadError: no daemon runs, and none can be started.
    """
    daemon_of(root, run_dir).release(record.id)


def for_each(
    containers: Iterable[str], store: ContainerStore, action: Callable[[Record], None]
) -> None:
    """Apply an action to each container and print its name; a failure does not stop the others.

    Raises:
        FirstreadError: the last error; earlier ones are printed.
    """
    errors: list[FirstreadError] = []
    for container in containers:
        try:
            action(store.find(container))
            report([container])
        except FirstreadError as exc:
            errors.append(exc)
    for earlier in errors[:-1]:
        complain([f"firstread: {earlier}"])
    if errors:
        raise errors[-1]
