# SPDX-License-Identifier: Apache-2.0
"""The records of snapshots, in SQLite.

Owns the table and its transactions; knows no rules. Invariant: a snapshot keeps its number for
life, whatever its name, and no number is used twice, so directories are named by it.

Writes are synchronous: containerd's own records are on disk when a call returns, and must not name
a snapshot that a power cut took away.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firstread.errors import NodeError
from firstread.snapshotter.messages import Kind

_SCHEMA = """
CREATE TABLE IF NOT EXISTS snapshots (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    parent INTEGER REFERENCES snapshots (id),
    kind INTEGER NOT NULL,
    created INTEGER NOT NULL,  -- nanoseconds since 1970
    updated INTEGER NOT NULL,
    size INTEGER NOT NULL DEFAULT 0,
    inodes INTEGER NOT NULL DEFAULT 0,
    labels TEXT NOT NULL,  -- JSON
    image TEXT,  -- reference to mount, of a lazy snapshot
    source TEXT,  -- digest of the pulled manifest; stays when the snapshot becomes ordinary
    whole INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS snapshots_parent ON snapshots (parent);
"""
_SELECT = (
    "SELECT s.id, s.name, coalesce(p.name, ''), s.parent, s.kind, s.created, s.updated, s.size,"
    " s.inodes, s.labels, s.image, s.source, s.whole"
    " FROM snapshots s LEFT JOIN snapshots p ON p.id = s.parent"
)


@dataclass(frozen=True, slots=True)
class Lazy:
    """The image that a lazy snapshot belongs to.

    Args:
        image: reference, with digest, of the converted image to mount.
        source: digest of the manifest that the client pulls.
        whole: the snapshot stands for the whole image, not for some of its layers.
    """

    image: str
    source: str
    whole: bool


@dataclass(frozen=True, slots=True)
class Record:
    """One snapshot. Times are nanoseconds since 1970, `size` is in bytes.

    `was_lazy` says that it became ordinary later: its image may still be mounted.
    """

    id: int
    name: str
    parent: str
    parent_id: int | None
    kind: Kind
    created: int
    updated: int
    size: int
    inodes: int
    labels: Mapping[str, str]
    lazy: Lazy | None
    was_lazy: bool


class Records:
    """The records in the database at `path`.

    Raises:
        NodeError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA foreign_keys = ON")
            self._db.executescript(_SCHEMA)
        except sqlite3.Error as exc:
            raise NodeError(f"cannot open the records {path}: {exc}") from exc
        self._lock = threading.RLock()
        self._depth = 0

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Make the block one transaction; no other one runs meanwhile."""
        with self._lock:
            if self._depth == 0:
                self._db.execute("BEGIN IMMEDIATE")
            self._depth += 1
            try:
                yield
                if self._depth == 1:
                    self._db.execute("COMMIT")
            except BaseException:
                if self._depth == 1 and self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            finally:
                self._depth -= 1

    def find(self, name: str) -> Record | None:
        """Return the snapshot of this name."""
        with self._lock:
            row = self._db.execute(f"{_SELECT} WHERE s.name = ?", (name,)).fetchone()
        return _record(row) if row else None

    def all(self) -> list[Record]:
        """Return all snapshots, oldest first."""
        with self._lock:
            rows = self._db.execute(f"{_SELECT} ORDER BY s.id").fetchall()
        return [_record(row) for row in rows]

    def ancestors(self, record: Record) -> list[Record]:
        """Return parent, its parent, and so on."""
        found = []
        with self._lock:
            parent = record.parent_id
            while parent is not None:
                row = self._db.execute(f"{_SELECT} WHERE s.id = ?", (parent,)).fetchone()
                found.append(_record(row))
                parent = found[-1].parent_id
        return found

    def children(self, record: Record | None) -> list[Record]:
        """Return the snapshots that have this one as their parent; for None those without one."""
        parent = record.id if record else None
        with self._lock:
            rows = self._db.execute(f"{_SELECT} WHERE s.parent IS ?", (parent,)).fetchall()
        return [_record(row) for row in rows]

    def add(
        self,
        name: str,
        parent: Record | None,
        kind: Kind,
        labels: Mapping[str, str],
        lazy: Lazy | None = None,
    ) -> Record:
        """Write a new record."""
        now = time.time_ns()
        with self.transaction():
            self._db.execute(
                "INSERT INTO snapshots (name, parent, kind, created, updated, labels, image,"
                " source, whole) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    name,
                    parent.id if parent else None,
                    int(kind),
                    now,
                    now,
                    _json(labels),
                    lazy.image if lazy else None,
                    lazy.source if lazy else None,
                    bool(lazy and lazy.whole),
                ),
            )
            return self._get(name)

    def commit(
        self,
        record: Record,
        name: str,
        parent: Record | None,
        labels: Mapping[str, str],
        usage: tuple[int, int],
    ) -> None:
        """Make an active snapshot a committed one, with another name."""
        now = time.time_ns()
        with self.transaction():
            self._db.execute(
                "UPDATE snapshots SET name = ?, parent = ?, kind = ?, created = ?, updated = ?,"
                " labels = ?, size = ?, inodes = ? WHERE id = ?",
                (
                    name,
                    parent.id if parent else None,
                    int(Kind.COMMITTED),
                    now,
                    now,
                    _json(labels),
                    *usage,
                    record.id,
                ),
            )

    def make_ordinary(self, record: Record, usage: tuple[int, int]) -> None:
        """Make a lazy snapshot an ordinary one."""
        with self.transaction():
            self._db.execute(
                "UPDATE snapshots SET image = NULL, whole = 0, size = ?, inodes = ? WHERE id = ?",
                (*usage, record.id),
            )

    def relabel(self, record: Record, labels: Mapping[str, str]) -> Record:
        """Replace the labels of a snapshot; return it."""
        with self.transaction():
            self._db.execute(
                "UPDATE snapshots SET labels = ?, updated = ? WHERE id = ?",
                (_json(labels), time.time_ns(), record.id),
            )
            return self._get(record.name)

    def remove(self, record: Record) -> None:
        """Forget a snapshot without children."""
        with self.transaction():
            self._db.execute("DELETE FROM snapshots WHERE id = ?", (record.id,))

    def _get(self, name: str) -> Record:
        return _record(self._db.execute(f"{_SELECT} WHERE s.name = ?", (name,)).fetchone())


def _json(labels: Mapping[str, str]) -> str:
    """Return labels as stored; a label without a value does not exist."""
    return json.dumps({key: value for key, value in labels.items() if value})


def _record(row: tuple[Any, ...]) -> Record:
    identity, name, parent, parent_id, kind, created, updated, size, inodes, labels = row[:10]
    image, source, whole = row[10:]
    lazy = Lazy(image, source or "", bool(whole)) if image else None
    return Record(
        identity,
        name,
        parent,
        parent_id,
        Kind(kind),
        created,
        updated,
        size,
        inodes,
        json.loads(labels),
        lazy,
        was_lazy=lazy is None and source is not None,
    )
