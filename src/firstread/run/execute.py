# SPDX-License-Identifier: Apache-2.0
"""One more process in a running container.

Owns docker's rules for what such a process takes from its container, and what from its own options.
Invariant: it has no more rights than the container's first process would have as the same user; its
end leaves nothing of ours.

Source: docker's exec reference; OCI runtime specification 1.0.2, "Process".
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from firstread.errors import NodeError, UsageError, from_os_error
from firstread.run.attend import adopting_orphans, forwarding_signals, wait_exit_code
from firstread.run.cgroups import read_cgroups
from firstread.run.containers import ContainerStore, Record
from firstread.run.document import to_json
from firstread.run.execroom import check_room
from firstread.run.lifecycle import RUNTIME_STATE
from firstread.run.processes import is_alive
from firstread.run.runtime import Runtime, find_runtime
from firstread.run.streams import caller_streams, check_terminal
from firstread.run.users import resolve_user
from firstread.wholefile import replace_file

_PROCESS = "process.json"  # where `Runtime.exec` expects it


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecOptions:
    """The user's wishes for a process.

    Args:
        command: program and arguments.
        env: name to value; None removes a variable that the container has.
        user: ``user[:group]``, names or numbers; None for the container's.
        workdir: absolute; None for the container's.
    """

    command: tuple[str, ...]
    interactive: bool = False
    tty: bool = False
    env: Mapping[str, str | None] = field(default_factory=lambda: MappingProxyType({}))
    user: str | None = None
    workdir: str | None = None


def exec_in_container(store: ContainerStore, record: Record, options: ExecOptions) -> int:
    """Run a process in a container to its end; return its exit code.

    Args:
        store: of the container.
        record: from this store.
        options: of the user.

    Raises:
        UsageError: the container does not run.
        CommandError: the command cannot be found (127) or invoked (126).
        NodeError: the process cannot start for another reason.
    """
    check_terminal(interactive=options.interactive, tty=options.tty)
    if not (record.process and is_alive(record.process)):
        raise UsageError(f"container {record.short_id} is not running", hint="see ps -a")
    bundle = store.directory(record)
    process = exec_process(_first_process(bundle), options, bundle / "rootfs")
    content = to_json(process)
    check_room(process)
    runtime = find_runtime(record.runtime or None, store.state_dir / RUNTIME_STATE, read_cgroups())
    with _scratch(bundle, content) as directory:
        return _attend(runtime, record, options, directory)


def exec_process(first: Mapping[str, Any], options: ExecOptions, rootfs: Path) -> dict[str, Any]:
    """Return the process for the runtime.

    Args:
        first: the container's first process, from its bundle.
        options: of the user.
        rootfs: the container's root, for names of users.

    Raises:
        UsageError: there is no such user.
        NodeError: a file of the container cannot be read.
    """
    variables = dict(setting.partition("=")[::2] for setting in first["env"])
    process = {
        **first,
        "terminal": options.tty,
        "args": list(options.command),
        "cwd": options.workdir or first["cwd"],
    }
    if options.user:
        before = resolve_user(str(first["user"]["uid"]), rootfs)
        user = resolve_user(options.user, rootfs)
        groups = list(user.groups)
        process["user"] = {"uid": user.uid, "gid": user.gid, "additionalGids": groups}
        if variables.get("HOME") == before.home:  # neither the image nor the user chose it
            variables["HOME"] = user.home
        bounding = first["capabilities"]["bounding"]
        sets = ("bounding", "effective", "permitted") if user.uid == 0 else ("bounding",)
        process["capabilities"] = dict.fromkeys(sets, bounding)
    if options.tty:
        variables["TERM"] = "xterm"
    for name, value in options.env.items():
        if value is None:
            variables.pop(name, None)
        else:
            variables[name] = value
    process["env"] = [f"{name}={value}" for name, value in variables.items()]
    return process


@contextlib.contextmanager
def _scratch(bundle: Path, process: bytes) -> Iterator[Path]:
    """Create a directory with the process for the runtime; it can contain secrets."""
    directory = bundle / f"exec-{os.urandom(8).hex()}"
    try:
        directory.mkdir(mode=0o700)
        replace_file(directory / _PROCESS, process)
        yield directory
    except FileNotFoundError as exc:
        raise UsageError("the container was removed meanwhile") from exc
    except OSError as exc:
        raise from_os_error(exc, "cannot prepare the process") from exc
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _first_process(bundle: Path) -> dict[str, Any]:
    try:
        process: dict[str, Any] = msgspec.json.decode((bundle / "config.json").read_bytes())[
            "process"
        ]
    except OSError as exc:
        raise from_os_error(exc, "cannot read the container's bundle") from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError) as exc:
        raise NodeError("the container's bundle is damaged") from exc
    return process


def _attend(runtime: Runtime, record: Record, options: ExecOptions, directory: Path) -> int:
    streams = caller_streams(directory, interactive=options.interactive, tty=options.tty)
    with adopting_orphans(), contextlib.closing(streams), contextlib.ExitStack() as attending:
        stdio, console = streams.for_runtime()
        pid = runtime.exec(record.id, directory, options.command[0], stdio, console)
        (directory / _PROCESS).unlink(missing_ok=True)  # secrets live no longer than needed
        pidfd = os.pidfd_open(pid)
        attending.callback(os.close, pidfd)
        attending.enter_context(forwarding_signals(pidfd, streams.resize, streams.give_up))
        streams.start()
        code = wait_exit_code(pidfd)
        lost = streams.finish()
    if lost:
        raise from_os_error(lost, "cannot write the output of the process") from lost
    return code
