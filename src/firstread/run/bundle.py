# SPDX-License-Identifier: Apache-2.0
"""The OCI runtime specification of a container: ``config.json`` of the bundle.

Owns docker's defaults and docker's rules for combining the image and the flags. Pure: a `Site` has
everything that was looked up or prepared on the host. Invariant: the result specifies a process
that can start; an image and flags without a command are refused here.

Source: OCI runtime specification 1.0.2; docker's run reference.
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from firstread.errors import UsageError
from firstread.run import seccomp
from firstread.run.cgroups import group_of
from firstread.run.devices import Device
from firstread.run.options import RunOptions
from firstread.run.parse import Mount
from firstread.run.rundefaults import ImageConfig
from firstread.run.users import User

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CPU_PERIOD_USEC = 100_000

_MASKED = (
    "/proc/acpi /proc/asound /proc/interrupts /proc/kcore /proc/keys /proc/latency_stats "
    "/proc/sched_debug /proc/scsi /proc/timer_list /proc/timer_stats "
    "/sys/devices/virtual/powercap /sys/firmware"
)
_READ_ONLY = "/proc/bus /proc/fs /proc/irq /proc/sys /proc/sysrq-trigger"

TERMINAL_GROUP = 5
_OF_GROUP = f"gid={TERMINAL_GROUP}"
_SAFE = ("nosuid", "noexec", "nodev")
_DEFAULT_MOUNTS = (
    Mount("/proc", "proc", "proc", _SAFE),
    Mount("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
    Mount(
        "/dev/pts",
        "devpts",
        "devpts",
        ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", _OF_GROUP),
    ),
    Mount("/dev/shm", "tmpfs", "shm", (*_SAFE, "mode=1777", "size=65536k")),  # noqa: S108
    Mount("/dev/mqueue", "mqueue", "mqueue", _SAFE),
)
_SYSTEM_MOUNTS = (
    Mount("/sys", "sysfs", "sysfs", _SAFE),
    Mount("/sys/fs/cgroup", "cgroup", "cgroup", _SAFE),
)

_ANY = (None, None)
_DEVICE_RULES: tuple[tuple[str, tuple[int | None, int | None], str], ...] = (
    ("c", _ANY, "m"),
    ("b", _ANY, "m"),
    ("c", (1, 3), "rwm"),  # null
    ("c", (1, 5), "rwm"),  # zero
    ("c", (1, 7), "rwm"),  # full
    ("c", (1, 8), "rwm"),  # random
    ("c", (1, 9), "rwm"),  # urandom
    ("c", (5, 0), "rwm"),  # tty
    ("c", (5, 1), "rwm"),  # console
    ("c", (5, 2), "rwm"),  # ptmx
    ("c", (136, None), "rwm"),  # pts/*
)
"""The device cgroup of every container: it may create any node, and use only these."""


@dataclass(frozen=True, slots=True)
class Site:
    """The preparations of the host for one container.

    Args:
        container_id: names the cgroup.
        rootfs: directory of the mounted overlay.
        user: resolved in the image.
        hostname: of the container.
        capabilities: granted, by full names.
        mounts: ``/etc/hosts`` and the like, and anonymous volumes; the user's own mounts win.
        devices: in addition to the default ones.
        machine: architecture of the host, as in uname(2).
        controllers: control groups that can limit something here.
        swap_limit: whether the host accounts swap.
        terminal_group: whether there is the group ``tty``, which terminals belong to.
        ordinary: of an ordinary user, for whom /sys is read only, and control groups may be.
    """

    container_id: str
    rootfs: str
    user: User
    hostname: str
    capabilities: Sequence[str]
    mounts: Sequence[Mount] = ()
    devices: Sequence[Device] = ()
    machine: str = "x86_64"
    controllers: Collection[str] = ("cpu", "memory", "pids")
    swap_limit: bool = True
    terminal_group: bool = True
    ordinary: bool = False


def runtime_spec(image: ImageConfig, options: RunOptions, site: Site) -> dict[str, Any]:
    """Return the ``config.json`` of the container.

    Raises:
        UsageError: neither the image nor the user names a command.
    """
    return {
        "ociVersion": "1.0.2",
        "hostname": site.hostname,
        "root": {"path": site.rootfs, "readonly": options.read_only},
        "process": _process(image, options, site),
        "mounts": [_mount(mount) for mount in _mounts(options, site)],
        "linux": _linux(options, site),
        "annotations": {"org.opencontainers.image.ref.name": options.image},
    }


def process_args(image: ImageConfig, options: RunOptions) -> list[str]:
    """Return the command line: ``--entrypoint`` clears the image's Cmd, arguments replace it.

    Raises:
        UsageError: there is none.
    """
    entrypoint, arguments = image.entrypoint or [], list(options.command) or image.cmd or []
    if options.entrypoint is not None:
        entrypoint, arguments = list(options.entrypoint), list(options.command)
    if not entrypoint and not arguments:
        raise UsageError("no command specified", hint="write a command after the image")
    return [*entrypoint, *arguments]


def environment(
    image: ImageConfig, options: RunOptions, *, hostname: str, home: str
) -> dict[str, str]:
    """Return the variables: the user's override the image's, which override the defaults."""
    variables = {"PATH": DEFAULT_PATH, "HOSTNAME": hostname}
    if options.tty:
        variables["TERM"] = "xterm"
    for setting in image.env or ():
        name, equals, value = setting.partition("=")
        if name and equals:
            variables[name] = value
    for name, given in options.env.items():
        if given is None:
            variables.pop(name, None)
        else:
            variables[name] = given
    variables.setdefault("HOME", home)
    return variables


def _process(image: ImageConfig, options: RunOptions, site: Site) -> dict[str, Any]:
    user = site.user
    variables = environment(image, options, hostname=site.hostname, home=user.home)
    granted = list(site.capabilities)
    sets = {"bounding": granted}
    if user.uid == 0:
        # execve(2) would clear these for other users, so docker does not set them either.
        sets |= {"effective": granted, "permitted": granted}
    return {
        "terminal": options.tty,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.groups)},
        "args": process_args(image, options),
        "env": [f"{name}={value}" for name, value in variables.items()],
        # Relative in some images; the runtime creates it if missing.
        "cwd": posixpath.join("/", options.workdir or image.working_dir or "/"),
        "capabilities": sets,
        "noNewPrivileges": options.no_new_privileges,
        "rlimits": [
            {"type": limit.name, "soft": limit.soft % 2**64, "hard": limit.hard % 2**64}
            for limit in options.rlimits
        ],
    }


def _mounts(options: RunOptions, site: Site) -> list[Mount]:
    """Return all mounts, parents first; a later mount replaces one with the same target."""
    access = "rw" if options.privileged and not site.ordinary else "ro"
    system = [
        Mount(mount.destination, mount.type, mount.source, (*mount.options, access))
        for mount in _SYSTEM_MOUNTS
    ]
    if site.ordinary and options.network == "host":  # sysfs belongs to the owner of the network
        system.append(Mount("/sys", "bind", "/sys", ("rbind", *_SAFE, access)))
    defaults = _DEFAULT_MOUNTS if site.terminal_group else map(_of_no_group, _DEFAULT_MOUNTS)
    chosen = {mount.target: mount for mount in (*defaults, *system, *site.mounts, *options.mounts)}
    return sorted(chosen.values(), key=lambda mount: mount.target.count("/"))


def _of_no_group(mount: Mount) -> Mount:
    return replace(mount, options=tuple(o for o in mount.options if o != _OF_GROUP))


def _mount(mount: Mount) -> dict[str, Any]:
    return {
        "destination": mount.target,
        "type": mount.type,
        "source": mount.source,
        "options": list(mount.options),
    }


def _linux(options: RunOptions, site: Site) -> dict[str, Any]:
    kinds = ["pid", "ipc", "uts", "mount", "cgroup"]
    if options.network == "none":
        kinds.append("network")  # new and empty; the runtime brings its loopback up
    linux: dict[str, Any] = {
        "namespaces": [{"type": kind} for kind in kinds],
        "devices": [device.node() for device in site.devices],
        "resources": _resources(options, site),
    }
    if site.controllers or not site.ordinary:  # runc insists on a group that has a name
        linux["cgroupsPath"] = group_of(site.container_id)
    if not options.privileged:
        linux |= {"maskedPaths": _MASKED.split(), "readonlyPaths": _READ_ONLY.split()}
        if options.seccomp:
            linux["seccomp"] = seccomp.profile(site.capabilities, site.machine)
    return linux


def _resources(options: RunOptions, site: Site) -> dict[str, Any]:
    resources: dict[str, Any] = {"devices": _device_rules(options, site.devices)}
    if options.memory_bytes is not None and "memory" in site.controllers:
        resources["memory"] = {"limit": options.memory_bytes}
        if site.swap_limit:
            # Of memory and swap together, as docker has it.
            resources["memory"]["swap"] = 2 * options.memory_bytes
    if options.cpus is not None and "cpu" in site.controllers:
        quota = round(options.cpus * _CPU_PERIOD_USEC)
        resources["cpu"] = {"period": _CPU_PERIOD_USEC, "quota": quota}
    if options.pids_limit is not None and "pids" in site.controllers:
        resources["pids"] = {"limit": options.pids_limit}
    return resources


def _device_rules(options: RunOptions, devices: Sequence[Device]) -> list[Mapping[str, Any]]:
    if options.privileged:
        return [{"allow": True, "access": "rwm"}]
    rules: list[Mapping[str, Any]] = [{"allow": False, "access": "rwm"}]
    for kind, (major, minor), access in _DEVICE_RULES:
        numbers = {"major": major, "minor": minor}
        known = {name: number for name, number in numbers.items() if number is not None}
        rules.append({"allow": True, "type": kind, "access": access, **known})
    return [*rules, *(device.rule() for device in devices)]
