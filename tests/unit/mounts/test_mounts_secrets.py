# SPDX-License-Identifier: Apache-2.0
"""Memory for credentials: what is kept, whoever dies while it is written."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from firstread.errors import UsageError
from firstread.mounts.secrets import SLOT_BYTES, SecretMemory, secret_memory
from firstread.testing.patience import PATIENCE_S


def everything(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


def test_the_next_process_finds_what_was_saved_last() -> None:
    fd = secret_memory()
    assert SecretMemory(fd).load() == {}
    SecretMemory(fd).save({"r.io": ["me", "old word", ""]})
    SecretMemory(fd).save({"r.io": ["me", "new", ""]})
    assert SecretMemory(fd).load() == {"r.io": ["me", "new", ""]}
    assert b"old word" not in everything(fd)
    os.close(fd)


def test_a_secret_that_is_too_large_changes_nothing() -> None:
    fd = secret_memory()
    memory = SecretMemory(fd)
    memory.save({"a": "b"})
    with pytest.raises(UsageError, match="no more credentials"):
        memory.save({"a": "x" * SLOT_BYTES})
    assert memory.load() == {"a": "b"}
    os.close(fd)


def test_a_save_that_was_not_finished_is_not_seen() -> None:
    fd = secret_memory()
    memory = SecretMemory(fd)
    memory.save({"a": "b"})
    offset, _ = memory._header()
    for start in (4096, 4096 + SLOT_BYTES):  # the slot that would be written next
        if start != offset:
            os.pwrite(fd, b'{"a": "half', start)
    assert memory.load() == {"a": "b"}
    memory.save({"c": "d"})
    assert memory.load() == {"c": "d"}
    os.close(fd)


def test_what_no_version_can_read_is_not_there(caplog: pytest.LogCaptureFixture) -> None:
    fd = secret_memory()
    memory = SecretMemory(fd)
    for text in ("[1]", "word"):
        memory.save({"a": "word"})
        offset, length = memory._header()
        os.pwrite(fd, text.encode().ljust(length), offset)
        assert memory.load() == {}
    assert "word" not in caplog.text
    assert "log in again" in caplog.text
    os.close(fd)


def test_a_crash_leaves_no_memory_on_the_disk() -> None:
    code = (
        "import resource\n"
        "from firstread.mounts.secrets import no_core_dumps\n"
        "no_core_dumps()\n"
        "print(resource.getrlimit(resource.RLIMIT_CORE)[0])\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert ran.stdout == "0\n"
