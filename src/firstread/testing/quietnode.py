# SPDX-License-Identifier: Apache-2.0
"""A node in this process whose device marks no sector: for rules that need no kernel."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from firstread.config import CacheTable, PolicyTable, RegistryTable
from firstread.device.fanotify import Group
from firstread.device.fanotifydevice import FanotifyDevice
from firstread.fetch.fetcher import Fetcher
from firstread.fetch.stats import Feed
from firstread.mounts.network import Network
from firstread.mounts.node import Node
from firstread.mounts.secrets import SecretMemory, secret_memory
from firstread.sectors.sectorstore import SectorStore


class _Unmarked(FanotifyDevice):
    """A device whose sectors nobody reads."""

    def watch(self, ids: Iterable[bytes]) -> None:
        pass

    unwatch = watch

    def is_watching(self) -> bool:
        return True


@contextlib.contextmanager
def quiet_node(root: Path, run_dir: Path) -> Iterator[Node]:
    """Give a node.

    Args:
        root: of its store.
        run_dir: its run directory.
    """
    policy, secrets = PolicyTable(), secret_memory()
    with (
        (root.parent / "kernel").open("wb") as kernel,
        SectorStore(root, filesystems=None) as store,
    ):
        fetcher = Fetcher(
            store,
            _Unmarked(store, Group(kernel.fileno())),
            lambda _: None,
            workers=1,
            policy=policy,
            limits=CacheTable(),
        )
        network = Network(RegistryTable(), SecretMemory(secrets), Feed())
        yield Node(root, run_dir, store, fetcher, policy, network, verify="never", prefetch="none")
    os.close(secrets)
