# SPDX-License-Identifier: Apache-2.0
"""What a container may do, against docker's defaults as a list of facts.

Facts about docker 28, from its documentation ("Seccomp security profiles for Docker", "Runtime
privilege and Linux capabilities") and from moby's ``oci/defaults.go`` and
``profiles/seccomp/default.json``. Where firstread differs, the difference is in a table of its own
and in SECURITY.md.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from firstread.run import capabilities
from firstread.run.bundle import Site, runtime_spec
from firstread.run.image import ImageConfig
from firstread.run.options import RunOptions
from firstread.run.users import User

CAPABILITIES = (
    "AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD NET_BIND_SERVICE NET_RAW SETFCAP "
    "SETGID SETPCAP SETUID SYS_CHROOT"
)
MASKED = (
    "/proc/acpi /proc/asound /proc/interrupts /proc/kcore /proc/keys /proc/latency_stats "
    "/proc/sched_debug /proc/scsi /proc/timer_list /proc/timer_stats "
    "/sys/devices/virtual/powercap /sys/firmware"
)
READ_ONLY = "/proc/bus /proc/fs /proc/irq /proc/sys /proc/sysrq-trigger"
# Of docker and of what runc adds to it, whatever it is told.
DEVICES = {
    ("c", None, None, "m"),
    ("b", None, None, "m"),
    *(("c", 1, minor, "rwm") for minor in (3, 5, 7, 8, 9)),
    *(("c", 5, minor, "rwm") for minor in (0, 1, 2)),
    ("c", 136, None, "rwm"),
}

# Refused to every container without the capability behind them, or always.
REFUSED = (
    "acct add_key bpf clock_settime create_module delete_module finit_module fsconfig fsmount "
    "fsopen fspick get_kernel_syms get_mempolicy init_module io_uring_enter io_uring_register "
    "io_uring_setup ioperm iopl kcmp kexec_file_load kexec_load keyctl lookup_dcookie mbind "
    "migrate_pages mount mount_setattr move_mount move_pages nfsservctl open_by_handle_at "
    "open_tree perf_event_open pidfd_getfd pivot_root process_madvise query_module quotactl "
    "quotactl_fd reboot request_key set_mempolicy set_mempolicy_home_node setdomainname "
    "sethostname setns settimeofday stime swapoff swapon syslog sysfs _sysctl umount umount2 "
    "unshare uselib userfaultfd ustat vhangup vm86 vm86old fanotify_init"
)
# Refused by docker and not here: it allows some arguments, and no rule here can say "any other".
NOT_REFUSED = {"personality"}
# Not refused by docker, and needed by ordinary programs.
ALLOWED = (
    "ptrace process_vm_readv process_vm_writev clone read openat execve futex rseq statx mmap "
    "memfd_create pidfd_open chroot mknod name_to_handle_at adjtimex faccessat2 "
    "landlock_restrict_self seccomp"
)
GOVERNED = {
    "CAP_BPF": "bpf",
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_PERFMON": "perf_event_open",
    "CAP_SYS_ADMIN": (
        "mount umount2 unshare setns clone3 fsopen bpf perf_event_open syslog quotactl"
    ),
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_MODULE": "init_module finit_module delete_module",
    "CAP_SYS_NICE": "get_mempolicy set_mempolicy mbind",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": "kcmp pidfd_getfd process_madvise",
    "CAP_SYS_RAWIO": "iopl ioperm",
    "CAP_SYS_TIME": "settimeofday clock_settime",
    "CAP_SYS_TTY_CONFIG": "vhangup",
    "CAP_SYSLOG": "syslog",
}
CLONE_FLAGS = 0x7E020000  # all that make a namespace, as docker's mask has it
AF_VSOCK = 40


def spec(*extra: str) -> dict[str, Any]:
    user = User(0, 0, (0,), "/root")
    granted = capabilities.granted(
        extra, (), privileged=False, available=frozenset(capabilities.NAMES)
    )
    site = Site("c" * 64, "/rootfs", user, "host", granted)
    return runtime_spec(ImageConfig(), RunOptions(image="a", command=("true",)), site)


def rules(*extra: str) -> list[dict[str, Any]]:
    seccomp = spec(*extra)["linux"]["seccomp"]
    assert seccomp["defaultAction"] == "SCMP_ACT_ALLOW"
    found: list[dict[str, Any]] = seccomp["syscalls"]
    assert {rule["action"] for rule in found} == {"SCMP_ACT_ERRNO"}
    return found


def refused(*extra: str) -> set[str]:
    return {name for rule in rules(*extra) if "args" not in rule for name in rule["names"]}


def test_capabilities() -> None:
    granted = spec()["process"]["capabilities"]
    expected = {f"CAP_{name}" for name in CAPABILITIES.split()}
    assert set(granted["bounding"]) == set(granted["effective"]) == expected
    # Else they would survive the change to another user: CVE-2022-24769.
    assert "inheritable" not in granted
    assert "ambient" not in granted


def test_paths() -> None:
    linux = spec()["linux"]
    assert set(linux["maskedPaths"]) == set(MASKED.split())
    assert set(linux["readonlyPaths"]) == set(READ_ONLY.split())
    mounts = {mount["destination"]: mount["options"] for mount in spec()["mounts"]}
    assert {"ro", "nosuid", "noexec", "nodev"} <= set(mounts["/sys"])
    assert {"ro", "nosuid", "noexec", "nodev"} <= set(mounts["/sys/fs/cgroup"])
    assert {"nosuid", "noexec", "nodev"} <= set(mounts["/proc"])


def test_devices() -> None:
    first, *others = spec()["linux"]["resources"]["devices"]
    assert first == {"allow": False, "access": "rwm"}
    assert all(rule["allow"] for rule in others)
    found = {(r["type"], r.get("major"), r.get("minor"), r["access"]) for r in others}
    assert found == DEVICES
    assert len(others) == len(DEVICES)


def test_calls_that_are_refused() -> None:
    assert set(REFUSED.split()) <= refused()
    assert not set(ALLOWED.split()) & refused()
    assert not NOT_REFUSED & refused()


@pytest.mark.parametrize("capability", GOVERNED)
def test_a_capability_opens_what_it_governs_and_nothing_else(capability: str) -> None:
    opened = refused() - refused(capability)
    assert set(GOVERNED[capability].split()) <= opened
    others = {name for other, names in GOVERNED.items() for name in names.split()}
    wide = capability == "CAP_SYS_ADMIN"
    assert opened & others == set(GOVERNED[capability].split()) & others or wide


def test_calls_that_are_refused_for_an_argument() -> None:
    by_argument = [rule for rule in rules() if "args" in rule]
    masks = [rule["args"][0]["value"] for rule in by_argument if rule["names"] == ["clone"]]
    assert sum(masks) == CLONE_FLAGS
    assert len(set(masks)) == len(masks) == 7
    sockets = [rule["args"] for rule in by_argument if rule["names"] == ["socket"]]
    assert sockets == [[{"index": 0, "value": AF_VSOCK, "op": "SCMP_CMP_EQ"}]]
    clone3 = [rule for rule in rules() if rule["names"] == ["clone3"]]
    assert [rule["errnoRet"] for rule in clone3] == [38]  # ENOSYS: use clone(2)


def test_differences_are_told() -> None:
    text = (Path(__file__).parents[3] / "SECURITY.md").read_text()
    assert "user" not in {entry["type"] for entry in spec()["linux"]["namespaces"]}
    assert re.search(r"user namespaces? (is|are) not used", text)
    assert all(f"`{name}`" in text for name in NOT_REFUSED)
