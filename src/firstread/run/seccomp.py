# SPDX-License-Identifier: Apache-2.0
"""The system calls that a container may make: docker's default, as data.

Owns the filter. Pure. Invariant: what no rule names is refused, so a call that a new kernel brings
is closed until somebody lists it here.

* A call that the tables name is allowed, or refused with EPERM until the container has the
  capability that governs it.
* Any other call fails with ENOSYS, as on a kernel that lacks it: the C library then takes an older
  call. A runtime whose libseccomp does not know a name leaves its rule out, with the same result.
* clone(2) makes no namespace without CAP_SYS_ADMIN. clone3(2) hides its flags in memory, where a
  filter cannot look; it fails with ENOSYS, and the C library takes clone(2).
* socket(2) and personality(2) take the first arguments that docker's list has; with any other they
  fail with ENOSYS: rules of EPERM for the rest would cost a start of a container 15 ms more.
* io_uring(7) stays closed: it makes calls that no filter sees.

docker's condition on Linux 4.8 (ptrace) is left out: no such kernel runs firstread.

Source: seccomp(2); OCI runtime specification, config-linux.md, "Seccomp"; the facts of moby's
profiles/seccomp/default.json (2026) and of containers/common's pkg/seccomp/seccomp.json.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Set
from typing import Any

_ARCHITECTURES = {
    # With only that of the host, 32-bit programs would not start. x32 is left out: hardly a kernel
    # runs it, and each further one costs every container some milliseconds.
    "x86_64": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
    "aarch64": ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
}

ALLOWED = (
    # files
    "access chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 "
    "faccessat faccessat2 fadvise64 fadvise64_64 fallocate fchdir fchmod fchmodat fchmodat2 "
    "fchown fchown32 fchownat fcntl fcntl64 fdatasync flock fstat fstat64 fstatat64 fstatfs "
    "fstatfs64 fsync ftruncate ftruncate64 futimesat getcwd getdents getdents64 ioctl lchown "
    "lchown32 link linkat listmount _llseek lseek lstat lstat64 mkdir mkdirat mknod mknodat "
    "name_to_handle_at newfstatat open openat openat2 pread64 preadv preadv2 pwrite64 pwritev "
    "pwritev2 read readahead readlink readlinkat readv rename renameat renameat2 rmdir sendfile "
    "sendfile64 stat stat64 statfs statfs64 statmount statx symlink symlinkat sync "
    "sync_file_range syncfs truncate truncate64 unlink unlinkat utime utimensat utimensat_time64 "
    "utimes write writev "
    # extended attributes
    "fgetxattr flistxattr fremovexattr fsetxattr getxattr getxattrat lgetxattr listxattr "
    "listxattrat llistxattr lremovexattr lsetxattr removexattr removexattrat setxattr setxattrat "
    # memory
    "brk cachestat madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock "
    "mlock2 mlockall mmap mmap2 mprotect mremap mseal msync munlock munlockall munmap pkey_alloc "
    "pkey_free pkey_mprotect remap_file_pages "
    # sockets
    "accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg "
    "recvmmsg_time64 recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketcall "
    "socketpair "
    # time
    "adjtimex alarm clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime "
    "clock_gettime64 clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday nanosleep "
    "setitimer time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 "
    "timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 "
    "timerfd_settime timerfd_settime64 "
    # signals
    "kill pause restart_syscall rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo "
    "rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo "
    "sigaltstack signalfd signalfd4 sigprocmask sigreturn tgkill tkill "
    # between processes
    "futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake get_robust_list ipc "
    "mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend "
    "mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop "
    "semtimedop_time64 set_robust_list shmat shmctl shmdt shmget "
    # waiting
    "epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait "
    "epoll_wait_old eventfd eventfd2 fanotify_mark inotify_add_watch inotify_init inotify_init1 "
    "inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 "
    "io_setup io_submit ioprio_get ioprio_set _newselect pipe pipe2 poll ppoll ppoll_time64 "
    "pselect6 pselect6_time64 select splice tee vmsplice "
    # processes
    "capget capset execve execveat exit exit_group fork get_thread_area getcpu getegid getegid32 "
    "geteuid geteuid32 getgid getgid32 getgroups getgroups32 getpgid getpgrp getpid getppid "
    "getpriority getrandom getresgid getresgid32 getresuid getresuid32 getrlimit getrusage getsid "
    "gettid getuid getuid32 landlock_add_rule landlock_create_ruleset landlock_restrict_self "
    "pidfd_open pidfd_send_signal prctl prlimit64 process_mrelease process_vm_readv "
    "process_vm_writev ptrace rseq sched_get_priority_max sched_get_priority_min "
    "sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval "
    "sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam "
    "sched_setscheduler sched_yield seccomp set_thread_area set_tid_address setfsgid setfsgid32 "
    "setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setpgid setpriority setregid "
    "setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid "
    "setuid setuid32 sysinfo times ugetrlimit umask uname uretprobe vfork wait4 waitid waitpid "
    # one architecture only; no other knows the name
    "arch_prctl arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush modify_ldt "
    "riscv_flush_icache riscv_hwprobe set_tls sync_file_range2 "
)
"""What every container may call, whatever the arguments."""

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
        "quotactl quotactl_fd lookup_dcookie fanotify_init "
        "lsm_get_self_attr lsm_list_modules lsm_set_self_attr"
    ),
    "CAP_SYS_BOOT": "reboot kexec_load kexec_file_load",
    "CAP_SYS_CHROOT": "chroot",
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
_FAMILIES = (*range(12), *range(13, 19), 21, 22, 24, *range(26, 34), 35, 36, 39, *range(41, 46))
"""Of sockets. Not DECnet, ATM, IrDA and others that nobody needs; AF_ALG (38); and AF_VSOCK (40),
which leads to the host of a virtual machine and which no network namespace confines."""

_PERSONALITIES = (
    0x0,  # PER_LINUX
    0x8,  # PER_LINUX32
    0x20000,  # UNAME26
    0x20008,  # both
    0xFFFFFFFF,  # asks for the present one
)


def profile(capabilities: Iterable[str], machine: str) -> dict[str, Any]:
    """Return the ``linux.seccomp`` object of the runtime specification.

    Args:
        capabilities: what the container was granted.
        machine: of the host, as uname(2) names it.
    """
    granted = frozenset(capabilities)
    rules = [_allow(ALLOWED), _refuse(_NEVER)]
    for capability, names in _GOVERNED.items():
        open_ = granted & {capability, _WIDER.get(capability, capability)}
        rules.append(_allow(names) if open_ else _refuse(names))
    rules += _clone_rules(granted)
    rules += [_allow("socket", _argument("EQ", family)) for family in _FAMILIES]
    rules += [_allow("personality", _argument("EQ", value)) for value in _PERSONALITIES]
    filter_: dict[str, Any] = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.ENOSYS,
        "syscalls": rules,
    }
    if machine in _ARCHITECTURES:
        filter_["architectures"] = _ARCHITECTURES[machine]
    return filter_


def _clone_rules(granted: Set[str]) -> list[dict[str, Any]]:
    if "CAP_SYS_ADMIN" in granted:
        return [_allow("clone clone3")]
    return [
        _allow("clone", _argument("MASKED_EQ", sum(_NAMESPACE_FLAGS), 0)),
        *(_refuse("clone", _argument("MASKED_EQ", flag, flag)) for flag in _NAMESPACE_FLAGS),
    ]


def _argument(comparison: str, value: int, second: int = 0) -> dict[str, Any]:
    """Return a condition on the first argument of a call."""
    return {"index": 0, "value": value, "valueTwo": second, "op": f"SCMP_CMP_{comparison}"}


def _allow(names: str, *arguments: dict[str, Any]) -> dict[str, Any]:
    return {"names": names.split(), "action": "SCMP_ACT_ALLOW", **_with(arguments)}


def _refuse(names: str, *arguments: dict[str, Any]) -> dict[str, Any]:
    refusal = {"action": "SCMP_ACT_ERRNO", "errnoRet": errno.EPERM}
    return {"names": names.split(), **refusal, **_with(arguments)}


def _with(arguments: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    return {"args": list(arguments)} if arguments else {}
