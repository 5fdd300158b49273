# SPDX-License-Identifier: Apache-2.0
"""The system calls that a container may not make.

Owns the filter, as data. Pure. Invariant: every rule refuses; the default action allows.

Docker's default is a list of what is allowed, some 400 names that age with every kernel. This is
the other way round: what docker's list leaves out and a container has no business with, each call
refused unless the capability that governs it was granted. It is 100 lines instead of 800 and needs
no change when a kernel gains harmless calls; the price is that a *new* dangerous call is open until
it is added here (capabilities, namespaces and the device cgroup still stand before it).

Two calls are refused by argument: clone(2) with a flag that makes a namespace, and socket(2) of
AF_VSOCK, which is not confined by network namespaces. clone3(2) hides its flags in memory, where a
filter cannot look, so it answers ENOSYS and the C library falls back to clone(2).

Source: seccomp(2), OCI runtime specification 1.0.2, config-linux.md, "Seccomp".
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Set
from typing import Any

_ARCHITECTURES = {
    # All that the processor can run: with only its own, 32-bit calls would go around the filter.
    "x86_64": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
    "aarch64": ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
}

_NEVER = (
    # Keyrings, io_uring and the old interfaces are not confined by namespaces.
    "add_key keyctl request_key "
    "io_uring_setup io_uring_enter io_uring_register "
    "userfaultfd uselib ustat sysfs _sysctl vm86 vm86old "
    "create_module get_kernel_syms query_module nfsservctl"
)

_GOVERNED = {
    "CAP_BPF": "bpf",
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_PERFMON": "perf_event_open",
    "CAP_SYS_ADMIN": (
        "mount umount umount2 pivot_root mount_setattr move_mount open_tree open_tree_attr "
        "fsopen fsconfig fsmount fspick setns unshare sethostname setdomainname swapon swapoff "
        "quotactl quotactl_fd lookup_dcookie fanotify_init"
    ),
    "CAP_SYS_BOOT": "reboot kexec_load kexec_file_load",
    "CAP_SYS_MODULE": "init_module finit_module delete_module",
    "CAP_SYS_NICE": (
        "get_mempolicy set_mempolicy set_mempolicy_home_node mbind migrate_pages move_pages"
    ),
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": "kcmp pidfd_getfd process_madvise",
    "CAP_SYS_RAWIO": "iopl ioperm",
    "CAP_SYS_TIME": "settimeofday stime clock_settime clock_settime64",
    "CAP_SYS_TTY_CONFIG": "vhangup",
    "CAP_SYSLOG": "syslog",
}
_WIDER = {"CAP_BPF": "CAP_SYS_ADMIN", "CAP_PERFMON": "CAP_SYS_ADMIN", "CAP_SYSLOG": "CAP_SYS_ADMIN"}
"""Capabilities that were split off from a wider one, which still stands for them."""

_NAMESPACE_FLAGS = (
    0x00020000,  # CLONE_NEWNS
    0x02000000,  # CLONE_NEWCGROUP
    0x04000000,  # CLONE_NEWUTS
    0x08000000,  # CLONE_NEWIPC
    0x10000000,  # CLONE_NEWUSER
    0x20000000,  # CLONE_NEWPID
    0x40000000,  # CLONE_NEWNET
)
_AF_VSOCK = 40


def profile(capabilities: Iterable[str], machine: str) -> dict[str, Any]:
    """Return the ``linux.seccomp`` object of the runtime specification.

    Args:
        capabilities: what the container was granted.
        machine: of the host, as uname(2) names it.
    """
    granted = frozenset(capabilities)
    rules = [_refuse(_NEVER.split())]
    for capability, names in _GOVERNED.items():
        if not granted & {capability, _WIDER.get(capability, capability)}:
            rules.append(_refuse(names.split()))
    rules += _namespace_rules(granted)
    vsock = {"index": 0, "value": _AF_VSOCK, "op": "SCMP_CMP_EQ"}
    rules.append(_refuse(["socket"], args=[vsock]))
    filter_: dict[str, Any] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}
    if machine in _ARCHITECTURES:
        filter_["architectures"] = _ARCHITECTURES[machine]
    return filter_


def _namespace_rules(granted: Set[str]) -> list[dict[str, Any]]:
    if "CAP_SYS_ADMIN" in granted:
        return []
    bits = [
        {"index": 0, "value": flag, "valueTwo": flag, "op": "SCMP_CMP_MASKED_EQ"}
        for flag in _NAMESPACE_FLAGS
    ]
    rules = [_refuse(["clone"], args=[bit]) for bit in bits]
    return [*rules, _refuse(["clone3"], number=errno.ENOSYS)]


def _refuse(names: list[str], *, number: int = errno.EPERM, **more: Any) -> dict[str, Any]:
    return {"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": number, **more}
