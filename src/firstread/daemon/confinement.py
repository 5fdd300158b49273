# SPDX-License-Identifier: Apache-2.0
"""Gives up, for ever, what the processes of a daemon do not need.

Owns the list of capabilities that are kept and the filter of system calls; knows nothing of what
the processes do. Invariant: what is given up is gone from all that this process executes or forks,
so supervisor, fetcher, the fetcher that takes the supervisor's place and credential helpers have
the same. `confined` says what is in force, of any process; ``firstread doctor`` prints it.

Facts about confinement (Linux 6.18; tests/privileged/test_node_confine.py shows them):

* A process that is root gets on execve(2) every capability of its *bounding set* back. So that is
  what has to shrink; taking one out needs CAP_SETPCAP, which goes last.
* Marking an inode (fanotify_mark) needs no capability, making the group does: CAP_SYS_ADMIN.
* A seccomp filter survives execve(2), and a second one is added to the first.
* The kernel knows of each system call whether a filter that looks at its number alone lets it
  through, and then does not run the filter: the calls of a read cost nothing more.
* Landlock refuses a restricted thread, and all that it starts, to change mounts, whatever its rules
  allow: it cannot be had for a process that mounts (ADR 19).

Source: capabilities(7), prctl(2), seccomp(2), include/uapi/linux/{bpf_common,seccomp,audit}.h.
"""

from __future__ import annotations

import errno
import platform
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from firstread.device import syscalls

KEPT: Final = {
    "CAP_DAC_OVERRIDE": 1,  # mount points and credentials of others; sector files without `w`
    "CAP_SYS_ADMIN": 21,  # mounts, the fanotify group
    "CAP_SYS_PTRACE": 19,  # the names of those who keep a mount busy
    "CAP_SYSLOG": 34,  # what the kernel says of a mount that it refuses
}
_SETPCAP: Final = 8
_LAST_CAPABILITY: Final = Path("/proc/sys/kernel/cap_last_cap")

_PR_CAPBSET_READ = 23
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION = 0x20080522
_SECCOMP_SET_MODE_FILTER = 1
_SECCOMP_FILTER_FLAG_SPEC_ALLOW = 4  # no mitigation that slows all of the process

# Number of each refused call: x86_64, aarch64 (None: it has no such call). What they have in
# common: the daemon has no use for it, and a bug or a capability behind it gives the kernel or
# other processes away. Source: arch/x86/entry/syscalls/syscall_64.tbl, scripts/syscall.tbl.
REFUSED: Final[dict[str, tuple[int | None, int | None]]] = {
    # Other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    # The kernel itself
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "modify_ldt": (154, None),
    "iopl": (172, None),
    "ioperm": (173, None),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # The machine
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    # Views of the file system that nobody else has; mounts are made with fsopen(2) and its family
    "mount": (165, 40),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "open_by_handle_at": (304, 265),
    "personality": (135, 92),
}
_ARCHITECTURES: Final = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # AUDIT_ARCH_*

# struct sock_filter: code, jump if true, jump if false, operand
_INSTRUCTION = struct.Struct("=HBBI")
_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JUMP_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_JUMP_AT_LEAST = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_RETURN = 0x06  # BPF_RET | BPF_K
_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_NUMBER_AT, _ARCHITECTURE_AT = 0, 4  # in struct seccomp_data
_X32_BIT = 0x40000000  # x86_64: the calls of another ABI, by other numbers


@dataclass(frozen=True, slots=True)
class Confinement:
    """What a process has given up.

    Args:
        capabilities: it has, or could get by executing something; names, or numbers of others.
        no_new_privs: a setuid program gives it nothing.
        filtered: a filter of system calls is in force.
    """

    capabilities: list[str]
    no_new_privs: bool
    filtered: bool

    @property
    def complete(self) -> bool:
        """Whether it is what `confine` leaves, or less."""
        return self.no_new_privs and self.filtered and set(self.capabilities) <= set(KEPT)


def confine() -> list[str]:
    """Give up what the daemon does not need; call it before there are threads.

    Returns:
        what could not be given up and why, one line each: a daemon without it is better than none.
    """
    failed = []
    for step in (_drop_capabilities, _set_no_new_privs, _filter_calls):
        try:
            step()
        except OSError as exc:
            failed.append(f"cannot {step.__name__.strip('_').replace('_', ' ')}: {exc.strerror}")
    return failed


def confined(pid: int | str = "self") -> Confinement:
    """Return what process `pid` has given up.

    Raises:
        OSError: there is no such process.
    """
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    mask = int(fields["CapPrm"], 16) | int(fields["CapBnd"], 16)
    names = {number: name for name, number in KEPT.items()}
    held = [names.get(bit, str(bit)) for bit in range(64) if mask >> bit & 1]
    return Confinement(held, fields["NoNewPrivs"] == "1", fields["Seccomp"] == "2")


def _drop_capabilities() -> None:
    last = int(_LAST_CAPABILITY.read_text())
    others = [bit for bit in range(last + 1) if bit not in KEPT.values() and bit != _SETPCAP]
    try:
        for bit in (*others, _SETPCAP):
            if syscalls.prctl(_PR_CAPBSET_READ, bit):
                syscalls.prctl(_PR_CAPBSET_DROP, bit)
    finally:
        kept = sum(1 << bit for bit in KEPT.values()) & _permitted()
        low, high = kept & 0xFFFFFFFF, kept >> 32
        header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
        syscalls.capset(header, struct.pack("=6I", low, low, 0, high, high, 0))


def _permitted() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("CapPrm:")).split()[1], 16)


def _set_no_new_privs() -> None:
    syscalls.prctl(_PR_SET_NO_NEW_PRIVS, 1)


def _filter_calls() -> None:
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        raise OSError(errno.EOPNOTSUPP, f"there is no filter for {machine}")
    program = filter_program(machine)
    syscalls.seccomp(_SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_SPEC_ALLOW, program)


def filter_program(machine: str) -> bytes:
    """Return the filter as classic BPF: `REFUSED` gives EPERM, and so do all calls of another ABI.

    Args:
        machine: ``x86_64`` or ``aarch64``.
    """
    column, architecture = _ARCHITECTURES[machine]
    numbers = [row[column] for row in REFUSED.values()]
    wanted: Iterable[int] = [number for number in numbers if number is not None]
    tests = [(_JUMP_EQUAL, number) for number in wanted] + [(_JUMP_AT_LEAST, _X32_BIT)]
    lines = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_JUMP_EQUAL, 0, len(tests) + 2, architecture),  # another one: to the refusal
        (_LOAD, 0, 0, _NUMBER_AT),
    ]
    for index, (code, operand) in enumerate(tests):
        lines.append((code, len(tests) - index, 0, operand))
    lines += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERRNO | errno.EPERM)]
    return b"".join(_INSTRUCTION.pack(*line) for line in lines)
