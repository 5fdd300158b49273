# SPDX-License-Identifier: Apache-2.0
"""What is known of containers: one directory and one record each.

Owns names, ids, the records on disk and what state they are in. Starts, stops and removes nothing
but files. Invariants: a record is replaced atomically; a name belongs to one container; whether
one runs is asked of the kernel, never read from the record, so that a crash of anything, or of the
host, leaves no record that lies.

::

    STATE/containers/.lock            held while a name is given away
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
from firstread.run.document import to_json, write_private
from firstread.run.names import make_name
from firstread.run.processes import ProcessIdentity, identify, is_alive
from firstread.trees import remove_tree

if TYPE_CHECKING:
    from firstread.run.options import RunOptions

_log = logging.getLogger(__name__)

SHORT_ID = 12
_ID = re.compile(r"[0-9a-f]{64}")
_RECORD = "record.json"


class Status(enum.Enum):
    """State of a container, in docker's words."""

    CREATED = "created"
    """Not started yet; the one who makes it is at work."""
    RUNNING = "running"
    """Or its end is not yet written down."""
    EXITED = "exited"
    DEAD = "dead"
    """Ended with nobody there to see how: the host or the attending process went away first."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What is written down about one container.

    Args:
        id: 64 hexadecimal digits.
        created: seconds since 1970, as are the other times.
        command: command line of the process.
        lower: the read-only tree; empty when the container no longer uses it.
        runtime: path of the OCI runtime that holds it.
        stop_signal: number of the signal that ``stop`` sends first.
        attendant: the process that waits for the container's end.
        process: the container's first process, once it was started.
        exit_code: once it ended.
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
    """Ask the kernel what state a container is in."""
    if record.exit_code is not None:
        return Status.EXITED
    at_work = record.attendant is not None and is_alive(record.attendant)
    if record.process:
        return Status.RUNNING if at_work or is_alive(record.process) else Status.DEAD
    return Status.CREATED if at_work else Status.DEAD


class ContainerStore:
    """The containers of one state directory.

    Args:
        state_dir: made if it is missing; other users have no way into it.

    Raises:
        NodeError: it cannot be made, or others could have written to it.
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
        """Make a container's directory and record; return it with its name.

        Args:
            record: without a name.
            name: what the user asked for; None makes one up.

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
                shutil.rmtree(leftover)  # of one who died right here
            # Under another name until the record is in it, so that nobody sees one without.
            new = self.directory(record).with_suffix(".new")
            content = to_json(record)
            try:
                new.mkdir(mode=0o700)
                write_private(new / _RECORD, content)
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
        path = self.directory(record) / _RECORD
        new = path.with_suffix(".new")
        try:
            write_private(new, to_json(record))
            os.replace(new, path)
        except OSError as exc:
            raise from_os_error(exc, "cannot write the container's record") from exc

    def list(self) -> list[Record]:
        """Return all containers, the latest first.

        One whose record is damaged is there with its id only, so that it can be removed.

        Raises:
            NodeError: a record cannot be read now, which says nothing of its container.
        """
        with os.scandir(self._directory) as entries:
            ids = [entry.name for entry in entries if _ID.fullmatch(entry.name)]
        records = [record for record in map(self._load, ids) if record]
        return sorted(records, key=lambda record: (-record.created, record.id))

    def find(self, key: str) -> Record:
        """Return the container of this name, id, or start of an id that only one has.

        Raises:
            UsageError: there is none, or there are several.
        """
        records = self.list()
        exact = [record for record in records if key and key in {record.name, record.id}]
        found = exact or [record for record in records if key and record.id.startswith(key)]
        if not found:
            raise UsageError(f"no such container: {key}", hint="ps -a lists what there is")
        if len(found) > 1:
            raise UsageError(f"multiple IDs found with provided prefix: {key}")
        return found[0]

    def list_states(self) -> Iterator[tuple[Record, Status]]:
        """Yield all containers and their states, the latest first."""
        for record in self.list():
            status = status_of(record)
            if status is not Status.DEAD:
                yield record, status
            elif current := self.reload(record):  # its end may have been written down meanwhile
                yield current, status_of(current)

    def reload(self, record: Record) -> Record | None:
        """Return the record as it is now; None if the container was removed."""
        return self._load(record.id)

    def delete(self, record: Record) -> None:
        """Delete a container's directory, in which nothing may be mounted any more.

        The record goes last, so that what is left by a failure can be found.

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
                return None  # it is being deleted, or is
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
    """Write the record of a container that is about to be made; return it, with its name.

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
    """Return an id that no container has."""
    return os.urandom(32).hex()


def now() -> float:
    """Return the time for a record."""
    return time.time()
