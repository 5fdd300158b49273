# SPDX-License-Identifier: Apache-2.0
"""The life of a container, from the mounted image to its end: the steps of ``run``, in order.

Owns the sequence, and the undoing after a failed step. Invariants: the record of a container comes
before everything else of it, and goes after it, so that ``rm`` finds the rest, whatever died; if
`run_container` raises, nothing remains of a container that has not started, and one that has
started loses nothing; `on_unused` runs before the record goes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from firstread.errors import FirstreadError, from_os_error
from firstread.idmaps import is_mapped, owner, read_map
from firstread.run import capabilities
from firstread.run.attend import adopting_orphans, forwarding_signals, wait_exit_code
from firstread.run.bundle import TERMINAL_GROUP, Site, process_args, runtime_spec
from firstread.run.cgroups import Cgroups, read_cgroups
from firstread.run.containerlog import LogWriter
from firstread.run.containers import ContainerStore, Record, now, reserve_container
from firstread.run.devices import find_devices, host_devices
from firstread.run.document import to_json
from firstread.run.early import check_early
from firstread.run.etc import write_etc
from firstread.run.execroom import check_room
from firstread.run.monitor import Report, run_detached
from firstread.run.options import RunOptions
from firstread.run.overlay import mount_overlay, unmount_below
from firstread.run.parse import Mount
from firstread.run.processes import identify
from firstread.run.rundefaults import ImageConfig, parse_image_config
from firstread.run.runtime import Runtime, find_runtime
from firstread.run.streams import (
    Look,
    PipeStreams,
    Sink,
    Streams,
    TerminalStreams,
    caller_streams,
)
from firstread.run.users import resolve_user
from firstread.run.volumes import make_volumes
from firstread.wholefile import replace_file

_log = logging.getLogger(__name__)

LOG_NAME = "log"
RUNTIME_STATE = "runtime"
"""Below the state directory: the state of crun or runc."""


@dataclass(frozen=True, slots=True)
class _Job:
    """One run, with everything looked up before anything is created."""

    lower: Path
    image: ImageConfig
    options: RunOptions
    store: ContainerStore
    runtime: Runtime
    cgroups: Cgroups
    record: Record
    on_unused: Callable[[], None]

    @property
    def directory(self) -> Path:
        return self.store.directory(self.record)


UNKNOWN_CODE: Final = 255  # of a container whose end nobody has seen


@dataclass(slots=True)
class _Seen:
    """The attendant's view of a container so far.

    Args:
        record: of the container.
        has_started: whoever waited for it to start knows that it has.
        code: its exit code.
        lost: why not all of its output could be written.
    """

    record: Record
    has_started: bool = False
    code: int = UNKNOWN_CODE
    lost: OSError | None = None


def _nothing(*_arguments: object) -> None:
    pass


def run_container(
    lower: Path,
    config: Mapping[str, object],
    options: RunOptions,
    state_dir: Path,
    *,
    record: Record | None = None,
    on_start: Callable[[Record], None] = _nothing,
    on_first_output: Callable[[], None] = _nothing,
    on_output: Look = _nothing,
    on_signal: Callable[[int], None] = _nothing,
    on_unused: Callable[[], None] = _nothing,
) -> int:
    """Run a container; return its exit code, or 0 after the start of a detached one.

    Args:
        lower: root of the mounted image; read only.
        config: the image's OCI configuration, decoded.
        options: of the user.
        state_dir: of all containers.
        record: from `reserve_container`; None to make one.
        on_start: called after the start of the container's process.
        on_first_output: called before the first byte of output, in another thread; never for a
            detached container.
        on_output: sees all output of a container that is not detached, in other threads.
        on_signal: called with each signal that a container that is not detached gets from us.
        on_unused: called when a container that ended or did not start no longer uses `lower`,
            perhaps twice. The monitor of a detached container calls it, without any of the
            caller's descriptors. If it raises, the record stays for ``rm``.

    Raises:
        CommandError: the command cannot be found (127) or invoked (126).
        FirstreadError: the container cannot start for another reason; `run_exit_code` gives the
            exit code.
    """
    store = ContainerStore(state_dir)
    record = record or reserve_container(options, store)
    try:
        job = _prepare(lower, config, options, store, record, on_unused)
    except BaseException:
        on_unused()
        store.delete(record)
        raise
    if options.detach:
        on_start(_run_in_monitor(job))
        return 0

    def connect(job: _Job) -> Streams:
        return caller_streams(
            job.directory,
            interactive=options.interactive,
            tty=options.tty,
            on_first_output=on_first_output,
            on_output=on_output,
        )

    return _run(job, connect, on_start, on_signal)


def _run_in_monitor(job: _Job) -> Record:
    def body(report: Report) -> None:
        _run(job, _log_streams, lambda record: report(msgspec.json.encode(record)))

    try:
        return msgspec.json.decode(run_detached(body), type=Record)
    except Exception:
        _discard(job)  # once more: the monitor itself may have died
        raise
    # A signal that ends the wait is no Exception: the monitor still works on the container, and
    # undoes its work when it finds nobody to report to.


def _prepare(
    lower: Path,
    config: Mapping[str, object],
    options: RunOptions,
    store: ContainerStore,
    record: Record,
    on_unused: Callable[[], None],
) -> _Job:
    image = parse_image_config(config)
    check_early(options, store.state_dir)
    cgroups = read_cgroups()
    runtime = find_runtime(options.runtime, store.state_dir / RUNTIME_STATE, cgroups)
    lower = lower.absolute()
    record = msgspec.structs.replace(
        record,
        command=tuple(process_args(image, options)),
        lower=str(lower),
        runtime=runtime.program,
        stop_signal=image.stop_signal_number,
        labels={**(image.labels or {}), **options.labels},
    )
    _warn(config, options, cgroups)
    return _Job(lower, image, options, store, runtime, cgroups, record, on_unused)


def _warn(config: Mapping[str, object], options: RunOptions, cgroups: Cgroups) -> None:
    """Warn of options that this host cannot fulfil, and of a foreign architecture."""
    wanted = {"memory": options.memory_bytes, "cpu": options.cpus, "pids": options.pids_limit}
    flags = {"memory": "--memory", "cpu": "--cpus", "pids": "--pids-limit"}
    asked = [name for name, value in wanted.items() if value is not None]
    lost = [flags[name] for name in asked if name not in cgroups.able]
    if lost:
        _log.warning("no limit is applied for %s: no control group for it here", ", ".join(lost))
    architecture = config.get("architecture")
    own = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine)
    if own and architecture and architecture != own:
        _log.warning("the image's architecture is %s, this host's is %s", architecture, own)


def _log_streams(job: _Job) -> Streams:
    """Connect the container to its log."""
    log = LogWriter(job.directory / LOG_NAME)

    def sink(name: str) -> Sink:
        return lambda content: log.write(name, content)

    if job.options.tty:
        return TerminalStreams(None, sink("stdout"), None, job.directory)
    return PipeStreams(None, sink("stdout"), sink("stderr"), keep_open=job.options.interactive)


def _run(
    job: _Job,
    connect: Callable[[_Job], Streams],
    on_start: Callable[[Record], None],
    on_signal: Callable[[int], None] = _nothing,
) -> int:
    """Start the container, attend it, and clean up after it."""
    # Signals belong to the container until the cleanup is done: none interrupts it.
    with adopting_orphans(), contextlib.ExitStack() as attending:
        seen = _Seen(job.record)
        try:
            _attend(job, connect, on_start, on_signal, attending, seen)
        except BaseException:
            if seen.has_started:  # what it has written is its user's
                _settle(job, seen.record, seen.code)
            else:
                _discard(job)
            raise
        _settle(job, seen.record, seen.code)
    if seen.lost:
        raise from_os_error(seen.lost, "cannot write the output of the container") from seen.lost
    return seen.code


def _attend(
    job: _Job,
    connect: Callable[[_Job], Streams],
    on_start: Callable[[Record], None],
    on_signal: Callable[[int], None],
    attending: contextlib.ExitStack,
    seen: _Seen,
) -> None:
    record = msgspec.structs.replace(job.record, attendant=identify(os.getpid()))
    job.store.save(record)
    _make_bundle(job)
    with contextlib.closing(connect(job)) as streams:
        stdio, console = streams.for_runtime()
        program = record.command[0]
        pid = job.runtime.create(record.id, job.directory, program, stdio, console)
        pidfd = os.pidfd_open(pid)
        attending.callback(os.close, pidfd)
        streams.start()
        # Before the start: a process that ends at once has no identity any more.
        record = msgspec.structs.replace(record, process=identify(pid), started=now())
        job.store.save(record)
        attending.enter_context(
            forwarding_signals(pidfd, streams.resize, streams.give_up, on_signal)
        )
        job.runtime.start(record.id, job.directory)
        on_start(record)
        seen.record, seen.has_started = record, True
        seen.code = wait_exit_code(pidfd)
        seen.lost = streams.finish()


def _make_bundle(job: _Job) -> None:
    """Mount the root, create the sources of its mounts, and write ``config.json``."""
    options, directory = job.options, job.directory
    rootfs = directory / "rootfs"
    try:
        rootfs.mkdir()
        mount_overlay(job.lower, directory, rootfs, volatile=options.remove)
        hostname = _hostname(options, job.record)
        etc = write_etc(
            directory, hostname=hostname, network=options.network, extra_hosts=options.extra_hosts
        )
        options = dataclasses.replace(options, mounts=tuple(map(_find_source, options.mounts)))
    except OSError as exc:
        raise from_os_error(exc, "cannot prepare the container") from exc
    available = capabilities.available()
    site = Site(
        container_id=job.record.id,
        rootfs=str(rootfs),
        user=resolve_user(options.user or job.image.user or "", job.lower),
        hostname=hostname,
        capabilities=capabilities.granted(
            options.cap_add, options.cap_drop, privileged=options.privileged, available=available
        ),
        mounts=[*etc, *_volumes(job)],
        devices=[
            *(host_devices() if options.privileged else ()),
            *(device for flag in options.devices for device in find_devices(flag)),
        ],
        machine=os.uname().machine,
        controllers=job.cgroups.able,
        swap_limit=job.cgroups.swap,
        terminal_group=is_mapped(read_map("gid"), TERMINAL_GROUP),
        ordinary=bool(owner()),
    )
    spec = runtime_spec(job.image, options, site)
    content = to_json(spec)
    check_room(spec["process"])
    try:
        replace_file(directory / "config.json", content)
    except OSError as exc:
        raise from_os_error(exc, "cannot write the container's bundle") from exc


def _find_source(mount: Mount) -> Mount:
    """Return a mount that fits its source; as docker, create a directory for a missing one."""
    if mount.type != "bind":
        return mount
    if not os.path.lexists(mount.source):
        os.makedirs(mount.source)
    if os.path.isdir(mount.source):
        return mount
    # Nothing can be mounted below a file, and crun opens the source of "rro" as a directory.
    access = tuple("ro" if option == "rro" else option for option in mount.options)
    return dataclasses.replace(mount, options=access)


def _hostname(options: RunOptions, record: Record) -> str:
    default = os.uname().nodename if options.network == "host" else record.short_id
    return options.hostname or default


def _volumes(job: _Job) -> list[Mount]:
    """Create the anonymous volumes that no mount of the user covers."""
    declared = {*(job.image.volumes or ()), *job.options.volumes}
    covered = {mount.target for mount in job.options.mounts}
    wanted = [path for path in declared if Mount(path, "bind", "").target not in covered]
    return make_volumes(job.lower, wanted, job.directory / "volumes", volatile=job.options.remove)


def _discard(job: _Job) -> None:
    """Undo everything of a container that did not start."""
    if not job.directory.exists():
        return  # the monitor has done this
    job.runtime.delete(job.record.id)
    unmount_below(job.directory)
    job.on_unused()
    job.store.delete(job.record)


def _settle(job: _Job, record: Record, code: int) -> None:
    """Clean up after a container that ended; ``rm`` retries what fails."""
    try:
        job.runtime.delete(record.id)
        unmount_below(job.directory)
        job.on_unused()
    except FirstreadError as exc:
        _log.warning("container %s is not cleared up: %s", record.short_id, exc)
    else:
        record = msgspec.structs.replace(record, lower="")
    try:
        if record.remove and not record.lower:
            job.store.delete(record)
        else:
            job.store.save(msgspec.structs.replace(record, exit_code=code, finished=now()))
    except FirstreadError as exc:
        _log.warning("the end of container %s is not written down: %s", record.short_id, exc)
