# SPDX-License-Identifier: Apache-2.0
"""The units of systemd against the code: neither may promise, or need, what the other does not.

There is no systemd here to ask; what it would do with these files is in systemd.service(5) and
systemd.exec(5), and what of it matters is pinned.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from firstread.cli.daemon import command as daemon_command
from firstread.cli.enter import command as enter_command
from firstread.cli.main import VERBS
from firstread.cli.snapshotter import command as snapshotter_command
from firstread.control import client
from firstread.daemon.confinement import KEPT, REFUSED
from firstread.daemon.handover import FIXED
from firstread.daemon.supervisor import GRACE_S
from firstread.doctor.host import OPEN_FILES

PACKAGING = Path(__file__).parents[3] / "packaging"
FUSE_MOUNTS = 2000  # docs/node.md, "systemd"
UNITS = ("firstread.service", "firstread-snapshotter.service")
USERS = ("user/firstread.service", "user/firstread-namespace.service")

# A mount that is made in a mount namespace of the service's own is seen by nobody else, and those
# of others that come later may not be seen by the service. Source: systemd.exec(5).
NAMESPACED = re.compile(
    r"(Private(Tmp|Devices|Mounts|Users|Network|IPC)"
    r"|Protect(System|Home|Hostname|KernelTunables|KernelModules|KernelLogs|ControlGroups|Proc)"
    r"|ReadWritePaths|ReadOnlyPaths|InaccessiblePaths|ExecPaths|NoExecPaths|TemporaryFileSystem"
    r"|Bind(ReadOnly)?Paths|Root(Directory|Image|Ephemeral)|MountAPIVFS|MountFlags|ProcSubset"
    r"|DynamicUser|(Mount|Extension)Images)"
)

# Groups of calls that systemd refuses for the daemon, and what of them is in the daemon's own
# filter. Source: `systemd-analyze syscall-filter`, version 252.
GROUPS = {
    "@clock": {"adjtimex", "clock_adjtime", "clock_settime", "settimeofday"},
    "@cpu-emulation": {"modify_ldt"},
    "@debug": {"ptrace", "perf_event_open"},  # and pidfd_getfd
    "@module": {"init_module", "finit_module", "delete_module"},
    "@raw-io": {"iopl", "ioperm"},
    "@reboot": {"reboot", "kexec_load", "kexec_file_load"},
    "@swap": {"swapon", "swapoff"},
    "@obsolete": set(),
}


def read(name: str) -> dict[str, dict[str, list[str]]]:
    """Parse a unit: sections of keys, each with its values in order."""
    unit: dict[str, dict[str, list[str]]] = {}
    for line in (PACKAGING / name).read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        if section := re.fullmatch(r"\[(\w+)\]", line):
            values: dict[str, list[str]] = unit.setdefault(section[1], {})
            continue
        key, equals, value = line.partition("=")
        assert equals, line
        assert re.fullmatch(r"[A-Za-z]+", key), line
        values.setdefault(key, []).append(value)
    return unit


def service(name: str) -> dict[str, str]:
    """Return the section of the service; no key is given twice, or the last would not win."""
    values = read(name)["Service"]
    assert [key for key, given in values.items() if len(given) != 1] == []
    return {key: given[0] for key, given in values.items()}


@pytest.mark.parametrize("name", UNITS + USERS)
def test_no_unit_has_a_mount_namespace_of_its_own(name: str) -> None:
    assert [key for key in service(name) if NAMESPACED.fullmatch(key)] == []


@pytest.mark.parametrize("name", UNITS + USERS)
def test_commands_are_those_of_firstread(name: str) -> None:
    known = {
        "daemon": daemon_command,
        "snapshotter": snapshotter_command,
        "enter": enter_command,
    }
    lines = [value for key, value in service(name).items() if key.startswith("Exec")]
    assert lines
    for line in lines:
        program, verb, *options = line.split()
        assert program == "/usr/bin/firstread"
        assert verb in VERBS
        names = {option.partition("=")[0] for option in options}
        known_names = {name for each in known[verb].params for name in each.opts}
        assert verb == "enter" or names <= known_names


@pytest.mark.parametrize("name", UNITS)
def test_directories_are_the_defaults_and_private(name: str) -> None:
    unit = service(name)
    options: dict[str | None, Any] = {p.name: p.default for p in daemon_command.params}
    assert str(options["root"]()) == f"/var/lib/{unit['StateDirectory']}"
    assert str(options["run_dir"]()) == f"/run/{unit['RuntimeDirectory']}"
    assert unit["StateDirectoryMode"] == unit["RuntimeDirectoryMode"] == "0700"
    assert unit["UMask"] == "0077"
    # Both use it; the end of one must not take the sockets of the other away.
    assert unit["RuntimeDirectoryPreserve"] == "yes"
    assert unit["NoNewPrivileges"] == "yes"


def test_the_daemon_is_given_what_it_keeps() -> None:
    """No CAP_SETPCAP: it drops from the bounding set what is there, and nothing is left to drop."""
    unit = service("firstread.service")
    assert set(unit["CapabilityBoundingSet"].split()) == set(KEPT)
    assert "AmbientCapabilities" not in unit
    assert "User" not in unit


def test_systemd_refuses_no_call_that_the_daemon_makes() -> None:
    deny, *groups = service("firstread.service")["SystemCallFilter"].replace("~", "~ ").split()
    assert deny == "~"
    assert set(groups) == set(GROUPS)
    assert set().union(*GROUPS.values()) <= set(REFUSED)
    rooms = ("daemon", "control", "mounts", "fetch", "cache")
    top = PACKAGING.parent / "src/firstread"
    sources = [path.read_text() for room in rooms for path in (top / room).glob("*.py")]
    assert len(sources) > 20
    # @debug has pidfd_getfd, which takes a group from a process. A service has no anchor to take it
    # from, and a daemon that may not take what an anchor holds starts without.
    assert not [text for text in sources if "pidfd_getfd(" in text or "Group.adopt(" in text]
    assert "unshare" in REFUSED  # RestrictNamespaces=
    assert "setns" in REFUSED


def test_what_an_upgrade_needs() -> None:
    """docs/node.md, "Upgrades": the fetcher may become the supervisor, descriptors are kept."""
    unit = service("firstread.service")
    assert unit["Type"] == "notify"
    assert unit["NotifyAccess"] == "all"
    assert unit["ExitType"] == "cgroup"
    assert unit["KillMode"] == "mixed"
    assert unit["Restart"] == "always"
    assert unit["ExecReload"].split()[1:] == ["daemon", "--reload"]
    assert int(unit["FileDescriptorStoreMax"]) >= len(FIXED) + 2 * FUSE_MOUNTS
    assert int(unit["TimeoutStopSec"]) > GRACE_S
    assert read("firstread.service")["Unit"]["StartLimitIntervalSec"] == ["0"]
    assert int(unit["LimitNOFILE"]) >= OPEN_FILES


def test_the_snapshotter_mounts_nothing() -> None:
    """The client makes the mounts that it is told of, and the daemon those of images."""
    unit = service("firstread-snapshotter.service")
    kept = set(unit["CapabilityBoundingSet"].split())
    assert kept == {"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID"}
    # A daemon that it starts would have no more, and be in the way of the real one.
    assert unit["Environment"] == "FIRSTREAD_START_DAEMON=0"
    assert "FIRSTREAD_START_DAEMON" in inspect.getsource(client)
    sources = [path.read_text() for path in PACKAGING.parent.glob("src/firstread/snapshotter/*.py")]
    assert len(sources) > 10
    kernel = re.compile(r"import .*(syscalls|erofsmount)|from firstread\.device|import subprocess")
    assert not [text for text in sources if kernel.search(text)]


def test_the_order_of_a_start() -> None:
    daemon, snapshotter = (read(name)["Unit"] for name in UNITS)
    assert "containerd.service" in daemon["Before"][0].split()
    assert "containerd.service" in snapshotter["Before"][0].split()
    assert "firstread.service" in snapshotter["After"][0].split()
    # Wants and not Requires: ordinary images work without the daemon.
    assert snapshotter["Wants"] == ["firstread.service"]
    assert "Requires" not in snapshotter


def test_a_users_service_is_that_of_the_machine_without_its_rights() -> None:
    daemon, namespace = (service(name) for name in USERS)
    machines = service("firstread.service")
    assert {key for key, value in daemon.items() if machines.get(key) != value} == set()
    assert not {"CapabilityBoundingSet", "OOMScoreAdjust", "SystemCallFilter"} & daemon.keys()
    # With the keeper in the daemon's control group, the service would never end, and its end would
    # be that of all mounts.
    assert read(USERS[0])["Unit"]["Requires"] == ["firstread-namespace.service"]
    assert read(USERS[0])["Unit"]["After"] == ["firstread-namespace.service"]
    assert (namespace["Type"], namespace["RemainAfterExit"]) == ("oneshot", "yes")
    assert namespace["ExecStart"].split()[1:] == ["enter", "true"]
    assert "NoNewPrivileges" not in namespace  # newuidmap
