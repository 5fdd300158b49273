# SPDX-License-Identifier: Apache-2.0
"""Deep documents: told from others as they are written, and refused before the stack is used up."""

from __future__ import annotations

import gc
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from firstread.daemon.succession import hear
from firstread.errors import ImageError, NodeError, UsageError
from firstread.mounts.secrets import _FIRST, _HEADER, SecretMemory, secret_memory
from firstread.mounts.table import MountTable
from firstread.nesting import MAX_DEPTH, is_deep
from firstread.oci.untrusted import load
from firstread.sectors.sectorstore import SectorStore
from firstread.snapshotter.configfile import _recorded

DEEP = b"[" * 100_000


@pytest.mark.parametrize("inside", ["", '"[[]{"', r'"\"[\\"', '"[', '{"a":1}', "[],[]"])
def test_brackets_within_strings_do_not_count(inside: str) -> None:
    depth = MAX_DEPTH - ("a" in inside or "," in inside)
    assert not is_deep("[" * depth + inside)
    assert not is_deep("[" * depth + inside + "]" * depth + "," + "[]," * 1000)
    assert is_deep("[" * (depth + 1) + inside)
    assert not is_deep(f'"{"[" * 1000}"')
    assert is_deep('{"a[":' * (depth + 1) + inside)


def table_of(directory: Path) -> None:
    (directory / "mounts").mkdir()
    (directory / "mounts/x.json").write_bytes(DEEP)
    assert MountTable(directory).load() == []


def document(_: Path) -> None:
    with pytest.raises(ImageError, match="nested more than"):
        load(DEEP, "it")


@pytest.mark.parametrize("read", [table_of, document])
def test_no_finalizer_runs_where_the_stack_ends(
    tmp_path: Path, read: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would fail with an error that nobody catches, here: whatever was collected just then."""

    def deep(levels: int = 300) -> None:
        if levels:
            deep(levels - 1)

    def collected(_phase: str, _info: dict[str, int]) -> None:
        deep()

    failed: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", failed.append)
    before = gc.get_threshold()
    gc.callbacks.append(collected)
    gc.set_threshold(20, 1000, 1000)
    try:
        read(tmp_path)
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(collected)
    assert not failed


def format_file(directory: Path) -> None:
    (directory / "format.json").write_bytes(DEEP)
    with pytest.raises(NodeError, match="is not a sector store"):
        SectorStore(directory)


def secrets(_: Path) -> None:
    fd = secret_memory()
    os.pwrite(fd, _HEADER.pack(_FIRST, len(DEEP)), 0)
    os.pwrite(fd, DEEP, _FIRST)
    assert SecretMemory(fd).load() == {}
    os.close(fd)


def question(_: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        theirs.send(DEEP[:5000])
        assert hear(ours) == {}


def block(_: Path) -> None:
    with pytest.raises(UsageError, match="is damaged"):
        _recorded(f"# was {DEEP.decode()}", "# was ")


@pytest.mark.parametrize("read", [format_file, secrets, question, block])
def test_a_nested_document_of_our_own_is_a_damaged_one(
    tmp_path: Path, read: Callable[[Path], None]
) -> None:
    read(tmp_path)
