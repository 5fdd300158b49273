# SPDX-License-Identifier: Apache-2.0
"""All checks of a node, in the order in which they are shown."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

from firstread.config import RegistryTable
from firstread.doctor.containerd import check_snapshotter
from firstread.doctor.disk import check_private, check_space
from firstread.doctor.engines import check_engines
from firstread.doctor.finding import Finding
from firstread.doctor.host import (
    check_clock,
    check_limits,
    check_read_ahead,
    check_scanners,
)
from firstread.doctor.ordinaryuser import check_user
from firstread.doctor.reach import check_image
from firstread.doctor.running import (
    Status,
    check_configuration,
    check_daemon,
    daemon_status,
    wanted_device,
)
from firstread.doctor.trials import Devices, check_devices
from firstread.oci.reference import Reference
from firstread.registry.options import AccessOptions


@dataclasses.dataclass(frozen=True)
class Preflight:
    """The findings.

    Args:
        devices: what their trials found.
        others: all other findings.
    """

    devices: Devices
    others: list[Finding]

    @property
    def findings(self) -> list[Finding]:
        """All of them, in order."""
        return [*self.devices.findings, *self.others]


def preflight(
    root: Path,
    run_dir: Path,
    config: Path | None = None,
    image: Reference | None = None,
    access: AccessOptions | None = None,
    *,
    own_hosts: bool = False,
) -> Preflight:
    """Look at a node, and at an image that it is to mount.

    Args:
        root: of the store.
        run_dir: of the control socket.
        config: file of the configuration; None for that of the daemon, or the default.
        image: its name, if there is one.
        access: how its registry is reached; the daemon's times and directories take precedence.
        own_hosts: the directories of hosts.toml in `access` are nevertheless those to use.
    """
    status = daemon_status(run_dir)
    user = check_user(run_dir)
    devices = Devices(None, user)
    if not os.geteuid():  # by now, if the user has a namespace
        tried = check_devices(root, wanted_device(config, status))
        devices = Devices(tried.works, [*user, *tried.findings])
    settings, configuration = check_configuration(config, status)
    others = [configuration, *check_node(root, run_dir, status), check_clock(), *check_engines()]
    if image is not None:
        as_given = access or AccessOptions()
        others += check_image(image, _as_the_daemon(as_given, settings, own_hosts=own_hosts))
    return Preflight(devices, others)


def check_node(root: Path, run_dir: Path, status: Status) -> Iterator[Finding]:
    """Yield what there is to say of a node beside its devices.

    Args:
        root: of the store.
        run_dir: of the control socket.
        status: of its daemon.
    """
    yield check_private("store directory", root)
    yield check_private("run directory", run_dir)
    yield check_space(root)
    yield from check_limits()
    yield check_scanners()
    yield check_read_ahead()
    yield from check_daemon(root, run_dir, status)
    yield from check_snapshotter(run_dir)


def _as_the_daemon(
    access: AccessOptions, settings: RegistryTable, *, own_hosts: bool
) -> AccessOptions:
    """Return how the daemon reaches registries, but for what the command line says."""
    directory = Path(settings.credentials_dir) if settings.credentials_dir else None
    return dataclasses.replace(
        access,
        hosts_dirs=access.hosts_dirs if own_hosts else tuple(map(Path, settings.hosts_dirs)),
        credentials_dir=access.credentials_dir or directory,
        connect_timeout=settings.connect_timeout_s,
        first_byte_timeout=settings.first_byte_timeout_s,
        read_timeout=settings.stall_timeout_s,
    )
