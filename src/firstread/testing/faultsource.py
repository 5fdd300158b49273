# SPDX-License-Identifier: Apache-2.0
"""A source that fails as a script says, in front of any other: a repository in a repository.

Owns the faults of a source; the bytes are the inner repository's. No sockets, no files, so a test
of what fetches needs neither. Invariant: what was injected is counted, and without a script and
without chances every byte is the inner repository's.

A script has one letter for each blob that is opened, in order; after its end all goes well. A star
repeats the last letter for ever::

    r  the right bytes                      n  there is no such blob
    b  breaks off after half of them        u  the credentials are refused
    E  fails at once, and may work later    h  says nothing until `FaultSource.wake`
    f  one bit of the last byte is wrong

``"rrrE"``: three requests go well, the fourth fails, the fifth goes well. ``"f*"``: none does.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Mapping
from typing import Final

from firstread.errors import AuthError, NotFoundError, SourceError, TransportError
from firstread.oci.blobstream import BlobStream, clamp
from firstread.oci.model import Descriptor
from firstread.oci.repository import Repository

GOOD: Final = "r"
HANG_S: Final = 10.0  # after which a request that says nothing goes on by itself
_SAYS: Final = "as the script says"
_ERRORS: Final[dict[str, type[SourceError]]] = {
    "E": TransportError,
    "n": NotFoundError,
    "u": AuthError,
}
_LETTERS: Final = frozenset("rbfh") | _ERRORS.keys()


class FaultSource(Repository):
    """`inner`, with faults.

    Args:
        inner: closed with this one.
        script: see the module.
        chances: letter to probability, for requests behind the end of the script.
        seed: of what happens by chance.

    Attributes:
        injected: how often each letter was taken but for the good one.
        requests: (offset, length) of each blob that was opened so far.

    Raises:
        ValueError: a letter means nothing.
    """

    def __init__(
        self,
        inner: Repository,
        script: str = "",
        *,
        chances: Mapping[str, float] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(inner.reference)
        self.injected: Counter[str] = Counter()
        self.requests: list[tuple[int, int]] = []
        self._inner = inner
        self._chances = dict(chances or {})
        self._random = random.Random(seed)
        self._awake = threading.Event()
        self._lock = threading.Lock()
        self.script(script)

    def script(self, script: str) -> None:
        """Replace what is left of the script."""
        letters = script.removesuffix("*")
        if wrong := (set(letters) | self._chances.keys()) - _LETTERS:
            raise ValueError(f"no fault is called {min(wrong)!r}")
        if script.endswith("*") and not letters:
            raise ValueError("a star repeats the letter before it")
        with self._lock:
            self._script = list(letters)
            self._rest = letters[-1] if script.endswith("*") else ""

    def wake(self) -> None:
        """Let requests that say nothing go on."""
        self._awake.set()

    def get_manifest(self, reference: str | None = None) -> tuple[Descriptor, bytes]:
        return self._inner.get_manifest(reference)

    def has_blob(self, blob: Descriptor) -> bool:
        return self._inner.has_blob(blob)

    def open_blob(
        self, blob: Descriptor, *, offset: int = 0, length: int | None = None
    ) -> BlobStream:
        count = clamp(blob, offset, length)
        letter = self._next(offset, count)
        if letter == "h":
            self._awake.wait(HANG_S)
        if letter in _ERRORS:
            raise _ERRORS[letter](_SAYS)
        stream = self._inner.open_blob(blob, offset=offset, length=count)
        if letter in ("b", "f"):
            reader = _Spoiled(stream, count, letter)
            verify = count == blob.size
            return BlobStream(blob, reader, length=count, verify=verify, image=str(self.reference))
        return stream

    def close(self) -> None:
        self._awake.set()
        self._inner.close()

    def _next(self, offset: int, count: int) -> str:
        with self._lock:
            self.requests.append((offset, count))
            letter = self._script.pop(0) if self._script else self._rest or self._by_chance()
            if letter != GOOD:
                self.injected[letter] += 1
            return letter

    def _by_chance(self) -> str:
        for letter, chance in self._chances.items():
            if self._random.random() < chance:
                return letter
        return GOOD


class _Spoiled:
    """A `firstread.oci.blobstream.Reader` of another stream, which it spoils."""

    def __init__(self, stream: BlobStream, length: int, letter: str) -> None:
        self._stream = stream
        self._left = length // 2 if letter == "b" else length
        self._flips = letter == "f"

    def readinto(self, buffer: memoryview, /) -> int:
        if not self._left:
            raise TransportError(f"it hung up, {_SAYS}")
        part = buffer[: self._left]
        count = self._stream.readinto(part)
        self._left -= count
        if self._flips and not self._left:
            part[count - 1] ^= 1
        return count

    def close(self) -> None:
        self._stream.close()
