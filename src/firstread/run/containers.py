# SPDX-License-Identifier: Apache-2.0
"""The records of containers: one directory and one record each.

Owns names, ids, the records on disk and the state of containers. Starts, stops and removes nothing
but files. Invariants: writes replace a record atomically; a name belongs to one container; the
kernel says whether a container runs, never the record, so no crash, not even the host's, leaves a
record that lies.

::

    STATE/containers/.lock            held while a container gets its name
    STATE/containers/ID/record.json   this module
    STATE/containers/ID/config.json   bundle: see run.bundle
    STATE/containers/ID/{rootfs,upper,work,volumes,hosts,hostname,resolv.conf,log,…}
"""

from __future__ import annotations

import contextlib
import enum
import fcntl
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from firstread.errors import UsageError, from_os_error
from firstread.private import private_directory
from firstread.run.document import to_json
from firstread.run.names import make_name
from firstread.run.processes import ProcessIdentity, identify, is_alive
from firstread.trees import remove_tree
from firstread.wholefile import replace_file

if TYPE_CHECKING:
    from firstread.run.options import RunOptions

_log = logging.getLogger(__name__)

SHORT_ID = 12
_ID = re.compile(r"[0-9a-f]{64}")
_RECORD = "record.json"


class Status(enum.Enum):
    """The state of a container, in docker's words."""

    CREATED = "created"
    """Not started yet; its attendant is at work."""
    RUNNING = "running"
    """Or ended, with its end not recorded yet."""
    EXITED = "exited"
    DEAD = "dead"
    """Ended unseen: the host or the attendant went away first."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """The record of one container.

    Args:
        id: 64 hexadecimal digits.
        created: seconds since 1970, as are the other times.
        command: command line of the process.
        lower: the read-only tree; empty once the container no longer uses it.
        runtime: path of its OCI runtime.
        stop_signal: number of the signal that ``stop`` sends first.
        attendant: the process that waits for the container's end.
        process: the container's first process, once started.
        exit_code: once ended.
    """

    id: str
    name: str = ""
    image: str = ""
    command: tuple[str, ...] = ()
    created: float = 0.0
    lower: str = ""
    runtime: str = ""
    stop_signal: int = 15
    remove: bool = False
    detached: bool = False
    labels: Mapping[str, str] = {}
    attendant: ProcessIdentity | None = None
    process: ProcessIdentity | None = None
    started: float | None = None
    finished: float | None = None
    exit_code: int | None = None

    @property
    def short_id(self) -> str:
        return self.id[:SHORT_ID]


def status_of(record: Record) -> Status:
    """Return the state of a container, from the kernel."""
    if record.exit_code is not None:
        return Status.EXITED
    at_work = record.attendant is not None and is_alive(record.attendant)
    if record.process:
        return Status.RUNNING if at_work or is_alive(record.process) else Status.DEAD
    return Status.CREATED if at_work else Status.DEAD


class ContainerStore:
    """The containers of one state directory.

    Args:
        state_dir: created if missing; closed to other users.

    Raises:
        NodeError: it cannot be created, or others could have written to it.
    """

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir.absolute()
        self._directory = self.state_dir / "containers"
        for directory in (self.state_dir, self._directory):
            private_directory(directory)

    def directory(self, record: Record) -> Path:
        """Return the directory of a container."""
        return self._directory / record.id

    def create(self, record: Record, name: str | None) -> Record:
        """Create a container's directory and record; return the record with its name.

        Args:
            record: without a name.
            name: that the user wants; None to make one up.

        Raises:
            UsageError: the name is taken.
            NodeError: the disk refuses.
        """
        with self._locked():
            taken = {other.name: other for other in self.list()}
            if name in taken:
                raise UsageError(
                    f'the container name "{name}" is already in use by container '
                    f"{taken[name].short_id}",
                    hint="remove that container, or choose another name",
                )
            record = msgspec.structs.replace(record, name=name or make_name(taken))
            for leftover in self._directory.glob("*.new"):
                shutil.rmtree(leftover)  # of a process that died right here
            # Under another name until it has a record, so that nobody sees it without.
            new = self.directory(record).with_suffix(".new")
            content = to_json(record)
            try:
                new.mkdir(mode=0o700)
                replace_file(new / _RECORD, content)
                new.rename(self.directory(record))
            except OSError as exc:
                shutil.rmtree(new, ignore_errors=True)
                raise from_os_error(exc, "cannot make the container's directory") from exc
        return record

    def save(self, record: Record) -> None:
        """Write a record, over the older one.

        Raises:
            NodeError: the disk refuses.
        """
        try:
            replace_file(self.directory(record) / _RECORD, to_json(record))
        except OSError as exc:
            raise from_os_error(exc, "cannot write the container's record") from exc

    def list(self) -> list[Record]:
        """Return all containers, latest first.

        A damaged record has only its id, so that the container can be removed.

        Raises:
            NodeError: reading a record fails, which says nothing about its container.
        """
        with os.scandir(self._directory) as entries:
            ids = [entry.name for entry in entries if _ID.fullmatch(entry.name)]
        records = [record for record in map(self._load, ids) if record]
        return sorted(records, key=lambda record: (-record.created, record.id))

    def find(self, key: str) -> Record:
        """Return the container with this name, id, or unique start of an id.

        Raises:
            UsageError: there is none, or there are several.
        """
        records = self.list()
        exact = [record for record in records if key and key in {record.name, record.id}]
        found = exact or [record for record in records if key and record.id.startswith(key)]
        if not found:
            raise UsageError(f"no such container: {key}", hint="ps -a lists all containers")
        if len(found) > 1:
            raise UsageError(f"multiple IDs found with provided prefix: {key}")
        return found[0]

    def list_states(self) -> Iterator[tuple[Record, Status]]:
        """Yield all containers and their states, latest first."""
        for record in self.list():
            status = status_of(record)
            if status is not Status.DEAD:
                yield record, status
            elif current := self.reload(record):  # its end may have been recorded meanwhile
                yield current, status_of(current)

    def reload(self, record: Record) -> Record | None:
        """Return the current record; None if the container was removed."""
        return self._load(record.id)

    def delete(self, record: Record) -> None:
        """Delete a container's directory, after everything in it was unmounted.

        The record goes last, so that the rest can be found after a failure.

        Raises:
            NodeError: the disk refuses.
        """
        directory = self.directory(record)
        try:
            remove_tree(*(path for path in directory.iterdir() if path.name != _RECORD))
            (directory / _RECORD).unlink(missing_ok=True)
            directory.rmdir()
        except FileNotFoundError:
            pass  # someone else was faster
        except OSError as exc:
            raise from_os_error(exc, "cannot remove the container's directory") from exc

    def _load(self, container_id: str) -> Record | None:
        directory = self._directory / container_id
        try:
            return msgspec.json.decode((directory / _RECORD).read_bytes(), type=Record)
        except (
            FileNotFoundError,
            msgspec.DecodeError,
            UnicodeDecodeError,
            RecursionError,
        ) as exc:
            if not any(directory.glob("*")):
                return None  # deleted, or about to be
            _log.warning("container %s has no readable record: %s", container_id[:SHORT_ID], exc)
            return Record(id=container_id)
        except OSError as exc:
            raise from_os_error(exc, "cannot read the record of a container") from exc

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            lock = os.open(self._directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise from_os_error(exc, "cannot lock the directory of containers") from exc
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def reserve_container(options: RunOptions, store: ContainerStore) -> Record:
    """Write the record of a future container; return it, with its name.

    Raises:
        UsageError: the name is taken.
        NodeError: the disk refuses.
    """
    record = Record(
        id=new_id(),
        image=options.image,
        created=now(),
        remove=options.remove,
        detached=options.detach,
        labels=dict(options.labels),
        attendant=identify(os.getpid()),
    )
    return store.create(record, options.name)


def new_id() -> str:
    """Return a new, unique id."""
    return os.urandom(32).hex()


def now() -> float:
    """Return the time for a record."""
    return time.time()
