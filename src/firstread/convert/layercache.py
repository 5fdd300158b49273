# SPDX-License-Identifier: Apache-2.0
"""The local cache of packed layers.

An entry maps a layer and its parameters to the sector blob's descriptor, the layer record and the
repository that has the blob: the cache itself keeps no blobs. Invariant: an entry is complete or
absent, and an unreadable one counts as absent.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from firstread.convert.blobwriter import PackedLayer
from firstread.convert.record import LayerRecord, Parameters, layer_key
from firstread.errors import ImageError, UsageError
from firstread.structs import completed
from firstread.units import MiB

DIGEST_SIZE = hashlib.sha256().digest_size
MAX_CACHE_SIZE = 512 * MiB  # of records; the least recently used go first


def default_cache_dir() -> Path:
    """Return the directory of records: ``$FIRSTREAD_CACHE``, else under ``$XDG_CACHE_HOME``.

    Raises:
        UsageError: neither is set, and there is no home directory.
    """
    if given := os.environ.get("FIRSTREAD_CACHE"):
        return Path(given)
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as exc:
        raise UsageError(
            "there is no home directory to keep a cache in",
            hint="set FIRSTREAD_CACHE to a directory, or use --no-cache",
        ) from exc
    return Path(base) / "firstread"


class _Cached(msgspec.Struct, frozen=True, rename={"repository": "place"}):
    """An entry of the cache.

    Args:
        packed: the layer.
        repository: that has the blob, ``host/name``; empty if the blob went to a disk.
    """

    packed: PackedLayer
    repository: str = ""


class LayerCache:
    """Packed layers by the diff_id of the source layer and the parameters.

    Args:
        directory: created with the first entry.
        max_size: bytes of all entries.
    """

    def __init__(self, directory: Path, max_size: int = MAX_CACHE_SIZE) -> None:
        self._directory = directory / "layers"
        self._max_size = max_size

    def get(self, diff_id: str, parameters: Parameters) -> PackedLayer | None:
        """Return the packed layer, or None if it is unknown."""
        known = self._read(diff_id, parameters)
        return known.packed if known is not None else None

    def repository(self, diff_id: str, parameters: Parameters) -> str:
        """Return the repository that has the layer's blob, ``host/name``; empty if unknown."""
        known = self._read(diff_id, parameters)
        return known.repository if known is not None else ""

    def _read(self, diff_id: str, parameters: Parameters) -> _Cached | None:
        path = self._path(diff_id, parameters)
        try:
            entry = path.read_bytes()
            digest, data = entry[:DIGEST_SIZE], entry[DIGEST_SIZE:]
            if hashlib.sha256(data).digest() != digest:
                return None
            known = msgspec.msgpack.decode(data, type=completed(_Cached))
            record = LayerRecord.decode(known.packed.record)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ImageError):
            return None
        if (record.diff_id, record.parameters) != (diff_id, parameters.key):
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return known

    def put(
        self, packed: PackedLayer, diff_id: str, parameters: Parameters, repository: str = ""
    ) -> None:
        """Store a packed layer; failing to write the cache is not an error."""
        path = self._path(diff_id, parameters)
        data = msgspec.msgpack.encode(_Cached(packed, repository))
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
                try:
                    file.write(hashlib.sha256(data).digest())
                    file.write(data)
                    file.flush()
                    os.replace(file.name, path)
                except BaseException:
                    os.unlink(file.name)
                    raise
            self._prune()

    def _path(self, diff_id: str, parameters: Parameters) -> Path:
        return self._directory / layer_key(diff_id, parameters)

    def _prune(self) -> None:
        entries = [(e.stat().st_mtime, e.stat().st_size, e.path) for e in self._scan()]
        excess = sum(size for _, size, _ in entries) - self._max_size
        for _, size, path in sorted(entries):
            if excess <= 0:
                break
            os.unlink(path)
            excess -= size

    def _scan(self) -> Iterator[os.DirEntry[str]]:
        with os.scandir(self._directory) as entries:
            yield from entries
