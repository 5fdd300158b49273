# SPDX-License-Identifier: Apache-2.0
"""The document of ``firstread status``: a node and the processes that serve it (docs/json.md)."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, UnsetType

from firstread.control.devicestatus import DeviceStatus
from firstread.documents import Document, Seconds
from firstread.mounts.nodestatus import NodeStatus


class SupervisorStatus(Document):
    """The process that holds what the kernel knows.

    pid: its number
    version: of firstread that it is
    upgrades: times that a daemon took over from the one before, without a failed read
    """

    pid: int
    version: str | UnsetType = UNSET  # unless it is old
    upgrades: int | UnsetType = UNSET


class FetcherStatus(Document, kw_only=True):
    """The process that answers.

    pid: its number
    version: of firstread that it is
    restarts: since the daemon was started; an upgrade is none
    healthy: it has answered
    waiting_reads: reads that wait now
    """

    pid: int
    version: str | UnsetType = UNSET
    restarts: int
    healthy: bool
    waiting_reads: int


class ConfigurationStatus(Document):
    """What the daemon was told.

    file: that was read; null: there was none
    registry: `[registry]` as it holds, command line included
    waits_s: how long reads wait for another daemon when this one is stopped; 0: they fail
    """

    file: str | None
    registry: dict[str, Any]
    waits_s: Seconds | UnsetType = UNSET  # unless it is old


class Status(NodeStatus):
    """A daemon.

    device: how the kernel asks
    namespace: the daemon's mount namespace, such as `mnt:[4026531841]`
    """

    supervisor: SupervisorStatus
    fetcher: FetcherStatus
    namespace: str
    configuration: ConfigurationStatus
    device: DeviceStatus | UnsetType = UNSET  # unless it is old
