# SPDX-License-Identifier: Apache-2.0
"""What verbs share about what is on a node: containers and mounts, before a daemon is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from firstread.cli.output import complain, report
from firstread.errors import FirstreadError

if TYPE_CHECKING:
    from firstread.run.containers import ContainerStore, Record


def container_store(root: Path) -> ContainerStore:
    """Return the containers of a node.

    Raises:
        NodeError: their directory cannot be made, or is not ours alone.
    """
    from firstread.private import private_directory
    from firstread.run.containers import ContainerStore

    private_directory(root)
    return ContainerStore(root / "containers")


def recorded_mounts(root: Path) -> set[str]:
    """Return the mount points that a node has, whether a daemon serves them or not."""
    from firstread.node.mounts import MountTable

    if not (root / "mounts").is_dir():
        return set()
    return {mount.mountpoint for mount in MountTable(root).load(tidy=False)}


def release_mount(root: Path, run_dir: Path, record: Record) -> None:
    """Give the mount of a container back, which it holds under its id.

    Raises:
        FirstreadError: there is no daemon, and none can be started.
    """
    from firstread.node.client import connected

    connected(root, run_dir).release(record.id)


def for_each(
    containers: Iterable[str], store: ContainerStore, action: Callable[[Record], None]
) -> None:
    """Do something to each container, and print its name; one that fails does not stop the others.

    Raises:
        FirstreadError: the last error; the ones before it are printed.
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
