# SPDX-License-Identifier: Apache-2.0
"""What a container may do, against docker's defaults as a list of facts.

Facts about docker 29, from its documentation ("Seccomp security profiles for Docker", "Runtime
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
from firstread.run.options import RunOptions
from firstread.run.rundefaults import ImageConfig
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
# Not refused by docker, and needed by ordinary programs.
ALLOWED = (
    "ptrace process_vm_readv process_vm_writev clone read openat execve futex rseq statx mmap "
    "memfd_create pidfd_open chroot mknod name_to_handle_at adjtimex faccessat2 "
    "landlock_restrict_self seccomp"
)
# Never there on x86-64: the kernel answers ENOSYS, as the filter does.
NOT_LISTED = "afs_syscall getpmsg putpmsg security tuxcall vserver"
HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
GOVERNED = {
    "CAP_BPF": "bpf",
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_PERFMON": "perf_event_open",
    "CAP_SYS_ADMIN": ("mount umount2 unshare setns fsopen bpf perf_event_open syslog quotactl"),
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
REFUSED_FAMILIES = {12, 19, 20, 23, 25, 34, 37, 38, 40}  # AF_ALG is 38, AF_VSOCK 40


def spec(*extra: str) -> dict[str, Any]:
    user = User(0, 0, (0,), "/root")
    granted = capabilities.granted(
        extra, (), privileged=False, available=frozenset(capabilities.NAMES)
    )
    site = Site("c" * 64, "/rootfs", user, "host", granted)
    return runtime_spec(ImageConfig(), RunOptions(image="a", command=("true",)), site)


def rules(*extra: str) -> list[dict[str, Any]]:
    seccomp = spec(*extra)["linux"]["seccomp"]
    assert (seccomp["defaultAction"], seccomp["defaultErrnoRet"]) == ("SCMP_ACT_ERRNO", 38)
    found: list[dict[str, Any]] = seccomp["syscalls"]
    assert {rule["action"] for rule in found} == {"SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"}
    return found


def named(action: str, *extra: str) -> set[str]:
    """Return the calls that have this action whatever their arguments; each has one only."""
    names = [
        (name, rule["action"])
        for rule in rules(*extra)
        if "args" not in rule
        for name in rule["names"]
    ]
    assert len({name for name, _ in names}) == len(names)
    return {name for name, done in names if done == f"SCMP_ACT_{action}"}


def refused(*extra: str) -> set[str]:
    return named("ERRNO", *extra)


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
    assert set(ALLOWED.split()) - {"clone"} <= named("ALLOW")
    with_arguments = {name for rule in rules() if "args" in rule for name in rule["names"]}
    assert with_arguments == {"clone", "socket", "personality"}
    assert not with_arguments & (refused() | named("ALLOW"))


@pytest.mark.skipif(not HEADER.exists(), reason="no header with the calls of x86-64")
def test_what_no_list_names() -> None:
    """Before raising the number, read the calls that Linux has added: list or refuse them."""
    found = re.findall(r"#define __NR_(\w+)\s+(\d+)", HEADER.read_text())
    calls = {name for name, number in found if int(number) <= 467}  # Linux 6.15
    listed = {name for rule in rules("CAP_SYS_ADMIN") for name in rule["names"]}
    assert calls - listed == set(NOT_LISTED.split())


@pytest.mark.parametrize("capability", GOVERNED)
def test_a_capability_opens_what_it_governs_and_nothing_else(capability: str) -> None:
    opened = refused() - refused(capability)
    assert set(GOVERNED[capability].split()) <= opened
    others = {name for other, names in GOVERNED.items() for name in names.split()}
    wide = capability == "CAP_SYS_ADMIN"
    assert opened & others == set(GOVERNED[capability].split()) & others or wide


def by_argument(name: str) -> list[tuple[str, str, int, int]]:
    """Return action, comparison and values of the rules for one call."""
    found = []
    for rule in rules():
        if rule["names"] == [name]:
            (argument,) = rule["args"]
            assert argument["index"] == 0
            op = argument["op"].removeprefix("SCMP_CMP_")
            action = rule["action"].removeprefix("SCMP_ACT_")
            found.append((action, op, argument["value"], argument["valueTwo"]))
            assert rule.get("errnoRet", 1) == 1
    return found


def test_calls_that_are_refused_for_an_argument() -> None:
    allow, *refuse = by_argument("clone")
    assert allow == ("ALLOW", "MASKED_EQ", CLONE_FLAGS, 0)
    assert {(action, op) for action, op, _, _ in refuse} == {("ERRNO", "MASKED_EQ")}
    assert all(value == second for *_, value, second in refuse)
    masks = [value for *_, value, _ in refuse]
    assert sum(masks) == CLONE_FLAGS
    assert len(set(masks)) == len(masks) == 7
    sockets = by_argument("socket")
    assert {(action, op) for action, op, _, _ in sockets} == {("ALLOW", "EQ")}
    assert {value for *_, value, _ in sockets} == set(range(46)) - REFUSED_FAMILIES
    assert by_argument("personality") == [
        ("ALLOW", "EQ", value, 0) for value in (0, 8, 0x20000, 0x20008, 0xFFFFFFFF)
    ]
    # It is not named, so it fails with ENOSYS: the C library takes clone(2).
    assert not [rule for rule in rules() if "clone3" in rule["names"]]


def test_differences_are_told() -> None:
    text = (Path(__file__).parents[3] / "SECURITY.md").read_text()
    assert "user" not in {entry["type"] for entry in spec()["linux"]["namespaces"]}
    assert re.search(r"user namespaces? (is|are) not used", text)
    assert "ENOSYS" in text
