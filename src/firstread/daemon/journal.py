# SPDX-License-Identifier: Apache-2.0
"""The journal: which events wait, in memory that outlives the process which read them.

Owns the layout of the file of `wire.BUFFER_FD`: first the buffer that events are read into, then a
record for each event that is not answered, with the path of its file. The descriptor of an event
dies with its process, unless there is an anchor; the kernel still waits for an answer to its
*number*: a process with the group and this file can open the sector file anew and answer.

The supervisor alone writes it, its successor reads it. Invariant: between two calls an event
is in the buffer or in a record, or it is answered; a record counts while its flag is 1, which is
set last.

Layout (a successor that does not know it makes a file of its own)::

    0       buffer of read(2), zeroed once all events in it are recorded
    4096    magic, 8 bytes
    8192    flags of the records, a byte each
    24576   records of 512 bytes: number, pid, length of the path (4 each), offset, length (8 each),
            path
"""

from __future__ import annotations

import mmap
import os
import struct

from firstread.device.base import MOST_READS, Read, sector_of

EVENT_BUFFER_BYTES = 4096
RECORDS = MOST_READS
SPARE_FDS = 256  # descriptors of a process for all else: sockets, sector files, clients; or …
SPARE_SHARE = 4  # … this part of its limit

_MAGIC = b"frevent1"
_FLAGS = 8192
_FIRST = _FLAGS + RECORDS
_RECORD_BYTES = 512
_RECORD = struct.Struct("=iiIQQ")
_BYTES = _FIRST + RECORDS * _RECORD_BYTES


def make_journal() -> int:
    """Return the descriptor of an empty journal. It takes memory only for what is used of it."""
    fd = os.memfd_create("events", os.MFD_CLOEXEC)
    os.ftruncate(fd, _BYTES)
    os.pwrite(fd, _MAGIC, EVENT_BUFFER_BYTES)
    return fd


def is_journal(fd: int) -> bool:
    """Return whether a descriptor is of a journal of this layout."""
    return os.fstat(fd).st_size == _BYTES and os.pread(fd, 8, EVENT_BUFFER_BYTES) == _MAGIC


def path_of(fd: int) -> bytes:
    """Return the path of an open file; empty if there is none."""
    try:
        return os.readlink(b"/proc/self/fd/%d" % fd)
    except OSError:
        return b""


def most_waiting(open_files: int) -> int:
    """Return how many events may be read and wait: each has a record, and a descriptor.

    Those beyond stay in the kernel's queue, and wait there. Were they read, the kernel would deny
    each for which there is no descriptor.

    Args:
        open_files: limit of descriptors of a process; negative for none.
    """
    if open_files < 0:
        return RECORDS
    return max(1, min(RECORDS, open_files - max(SPARE_FDS, open_files // SPARE_SHARE)))


class Journal:
    """The journal of an open file.

    Args:
        fd: as `make_journal` gave it; stays the caller's.
    """

    def __init__(self, fd: int) -> None:
        self._memory = mmap.mmap(fd, _BYTES)
        self.buffer = memoryview(self._memory)[:EVENT_BUFFER_BYTES]
        used = self._used()
        self._slots = {self._read(slot)[0].number: slot for slot in used}
        self._unused = max(used, default=-1) + 1  # slots from here on were never used
        self._free = sorted(set(range(self._unused)) - set(used))

    def close(self) -> None:
        """Unmap it."""
        self.buffer.release()
        self._memory.close()

    def clear_buffer(self) -> None:
        """Note that every event of the buffer is recorded, or answered."""
        self._memory[0:4] = b"\0\0\0\0"

    def add(self, request: Read, path: bytes | None = None) -> None:
        """Record an event that waits; `path`: of its file, if it is known already."""
        if path is None:
            path = path_of(request.fd)
        if self._free:
            slot = self._free.pop()
        elif self._unused < RECORDS:
            slot, self._unused = self._unused, self._unused + 1
        else:
            return
        if len(path) > _RECORD_BYTES - _RECORD.size:
            path = b""
        position = _FIRST + slot * _RECORD_BYTES
        number, pid, offset, length, *_ = request
        _RECORD.pack_into(self._memory, position, number, pid, len(path), offset, length)
        self._memory[position + _RECORD.size : position + _RECORD.size + len(path)] = path
        self._memory[_FLAGS + slot] = 1
        self._slots[number] = slot

    def remove(self, number: int) -> None:
        """Forget an event that is answered."""
        slot = self._slots.pop(number, None)
        if slot is not None:
            self._memory[_FLAGS + slot] = 0
            self._free.append(slot)

    def keep(self, held: list[Read]) -> None:
        """Have a record of each of these events, and of no others."""
        numbers = {request.number for request in held}
        for number in self._slots.keys() - numbers:
            self.remove(number)
        for request in held:
            if request.number not in self._slots:
                self.add(request)

    def reopen(self, known: set[int], files: dict[int, int]) -> tuple[list[Read], list[int]]:
        """Return the recorded events that are not `known`, each with a descriptor of its file.

        Args:
            known: numbers of events to leave out.
            files: descriptors of events, by number, which are taken out of it; other files are
                opened anew. Unlike an event's own, such a descriptor raises an event when it is
                written to.

        Returns:
            the events, and the numbers of those whose file cannot be opened any more.
        """
        found, lost = [], []
        for slot in self._used():
            request, path = self._read(slot)
            if request.number in known:
                continue
            try:
                fd = files.pop(request.number, None)
                if fd is None:
                    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                found.append(request._replace(fd=fd))
            except OSError:
                lost.append(request.number)
        return found, lost

    def _read(self, slot: int) -> tuple[Read, bytes]:
        position = _FIRST + slot * _RECORD_BYTES
        number, pid, size, offset, length = _RECORD.unpack_from(self._memory, position)
        start = position + _RECORD.size
        path = self._memory[start : start + size]
        return Read(number, pid, offset, length, -1, sector_of(path)), path

    def _used(self) -> list[int]:
        flags = self._memory[_FLAGS : _FLAGS + RECORDS]
        return [slot for slot in range(RECORDS) if flags[slot]]
