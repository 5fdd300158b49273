# SPDX-License-Identifier: Apache-2.0
"""The first bytes of blobs that a start will read, asked for before anybody can use them.

When the manifest of an image is known, its metadata has to come and be checked before the image can
be mounted and its hot sectors can be streamed. The link need not rest meanwhile. A head is the
beginning of the hot blob, in memory: the stream of the lane takes it from there, and verifies it as
it verifies what comes from a registry. It is asked for at once, and taken from its connection once
the metadata is here: until then the registry sends what fits into the connection's window, and the
link is the metadata's. Owns these bytes, and for how long they are kept.

Invariants: a head serves only who could have asked for it: the same repository with the same
credentials. It saves time, or nothing: what it lacks, or has wrong, is asked for again. Nobody
waits for one that is over, and it is over after `MOST_S`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable

from firstread.errors import FirstreadError
from firstread.oci.blobstream import BlobStream
from firstread.oci.model import Descriptor
from firstread.oci.repository import Repository
from firstread.registry.calls import within
from firstread.units import KiB, MiB

log = logging.getLogger("network")

MOST_BYTES = 8 * MiB  # of a head: what 100 Mbit/s bring while an image is pulled and mounted
MOST_HEADS = 4  # in memory at a time
MOST_S = 30.0  # that it may take to come
KEPT_S = 60.0  # from then until its image is mounted
STEP = 64 * KiB

Open = Callable[[int, int], BlobStream]
"""Asks for bytes of a blob, from an offset up to an offset."""


class Head:
    """The beginning of one blob, arriving.

    Args:
        blob: which.

    Attributes:
        length: bytes that it will have.
        latency_s: until the answer began; None as long as it has not.
        come: bytes that are here.
    """

    def __init__(self, blob: Descriptor) -> None:
        self.blob = blob
        self.length = min(blob.size, MOST_BYTES)
        self.come = 0
        self.latency_s: float | None = None
        self._begun = self._last = time.monotonic()
        self._is_let = False
        self._data = bytearray(self.length)
        self._changed = threading.Condition()
        self._ended = self._released = False
        self._stream: BlobStream | None = None

    @property
    def seconds(self) -> float:
        """Seconds from the first byte that was taken to the last one so far."""
        return self._last - self._begun

    def fill(self, ask: Open) -> None:
        """Ask for the bytes, take them as they come, and keep them until somebody has used them."""
        try:
            with within(MOST_S), ask(0, self.length) as stream:
                self._stream, self.latency_s = stream, time.monotonic() - self._begun
                with self._changed:
                    self._changed.wait_for(lambda: self._is_let or self._released, MOST_S)
                    self._begun = self._last = time.monotonic()
                view = memoryview(self._data)
                while self.come < self.length and not self._released:
                    count = stream.readinto(view[self.come : self.come + STEP])
                    with self._changed:
                        self.come, self._last = self.come + count, time.monotonic()
                        self._changed.notify_all()
        except (FirstreadError, OSError, RuntimeError, MemoryError) as exc:
            log.info("blob %s: its first bytes do not come early: %s", self.blob.digest, exc)
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
        with self._changed:
            self._changed.wait_for(lambda: self._released, KEPT_S)

    def let(self) -> None:
        """Have the bytes come: nothing that is more urgent is on its way any more."""
        with self._changed:
            self._is_let = True
            self._changed.notify_all()

    def serves(self, position: int) -> bool:
        """Return whether a byte is here, or will be soon."""
        with self._changed:
            reach = self.come if self._ended else min(self.come + STEP, self.length)
            return not self._released and position < reach

    def read(self, position: int, buffer: memoryview) -> int:
        """Copy bytes from `position` on; return how many, 0 if none of them comes."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self.come > position)
            count = max(0, min(self.come - position, len(buffer)))
        buffer[:count] = memoryview(self._data)[position : position + count]
        return count

    @property
    def source(self) -> str:
        """As `BlobStream.source`."""
        return self._stream.source if self._stream is not None else ""

    def distrust(self) -> bool:
        """As `BlobStream.distrust`; nobody gets a byte of it any more."""
        self.release()
        return self._stream is not None and self._stream.distrust()

    def release(self) -> None:
        """Note that nobody needs it any more."""
        with self._changed:
            self._released = True
            self._changed.notify_all()


def asking(repository: Repository, blob: Descriptor) -> Open:
    """Return what asks a repository for bytes of a blob."""
    return lambda start, stop: repository.open_blob(blob, offset=start, length=stop - start)


class Heads:
    """The heads of a node, by who may have them and the blob."""

    def __init__(self) -> None:
        self._heads: dict[tuple[Hashable, str, int], Head] = {}
        self._lock = threading.Lock()

    def begin(self, key: Hashable, blob: Descriptor, repository: Repository) -> Head | None:
        """Ask for the beginning of a blob in a thread of its own, unless there are too many.

        Args:
            key: of the repository and the access to it.
            blob: which.
            repository: has it.

        Returns:
            the head, which is to be `let`; None if there is none.
        """
        place, head = (key, blob.digest, blob.size), Head(blob)
        thread = threading.Thread(
            target=self._run, args=(place, head, asking(repository, blob)), name="head", daemon=True
        )
        with self._lock:
            if place in self._heads or len(self._heads) >= MOST_HEADS or not blob.size:
                return self._heads.get(place)
            try:
                thread.start()
            except RuntimeError as exc:  # no thread is left: so it comes later
                log.info("blob %s: its first bytes do not come early: %s", blob.digest, exc)
                return None
            self._heads[place] = head
            return head

    def _run(self, place: tuple[Hashable, str, int], head: Head, ask: Open) -> None:
        try:
            head.fill(ask)
        finally:
            with self._lock:
                del self._heads[place]

    def find(self, key: Hashable, blob: Descriptor) -> Head | None:
        """Return the head of a blob, if there is one; arguments as before."""
        return self._heads.get((key, blob.digest, blob.size))


class HeadReader:
    """A range of a blob: from its head as far as that reaches, then from where the blob is.

    Args:
        head: that serves the first byte.
        ask: for the other bytes.
        start: first byte.
        stop: the byte after the last.

    Attributes:
        rest: the other bytes, as soon as they are asked for.
    """

    def __init__(self, head: Head, ask: Open, start: int, stop: int) -> None:
        self._head, self._ask = head, ask
        self._position, self._stop = start, stop
        self._border = min(head.length, stop)  # from there on it is the rest
        self.rest = ask(self._border, stop) if self._border < stop else None

    def readinto(self, buffer: memoryview, /) -> int:
        buffer = buffer[: self._stop - self._position]
        count = 0
        if self._position < self._border:
            count = self._head.read(self._position, buffer[: self._border - self._position])
            if not count:
                self._begin_rest()
        if not count and self.rest is not None:
            count = self.rest.readinto(buffer)
        self._position += count
        if self._position >= self._head.length:
            self._head.release()
        return count

    def _begin_rest(self) -> None:
        """Ask for all that is left: the head has ended early."""
        self.close()
        self._border = self._position
        self.rest = self._ask(self._position, self._stop)

    @property
    def source(self) -> str:
        """As `BlobStream.source`, of the last bytes."""
        return self._last.source

    def distrust(self) -> bool:
        """As `BlobStream.distrust`; a frame may have begun in the head and ended in the rest."""
        others = self._head.distrust()
        return self._last.distrust() if self._last is not self._head else others

    @property
    def _last(self) -> Head | BlobStream:
        return self.rest if self.rest is not None and self._position > self._border else self._head

    def close(self) -> None:
        if self.rest is not None:
            self.rest.close()
