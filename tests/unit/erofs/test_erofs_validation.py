# SPDX-License-Identifier: Apache-2.0
"""Which of the two checks of an image is asked, and that both say the same."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstread.erofs import validation
from firstread.erofs.erofsimage import ErofsImage
from firstread.erofs.tree import directory
from firstread.erofs.validation import FEW, V2, load, validate, walk
from firstread.erofs.writer import write_erofs


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    load.cache_clear()
    yield
    load.cache_clear()


def image_of(directories: int) -> ErofsImage:
    root, out = directory(), io.BytesIO()
    root.children = {b"%d" % number: directory() for number in range(directories)}
    write_erofs(out, root, [])
    return ErofsImage(out.getvalue())


def no_walk(image: ErofsImage) -> None:
    raise AssertionError("the quick check has to do")


def test_many_inodes_are_checked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    image = image_of(FEW)  # and the root
    expected = walk(image)
    monkeypatch.setattr(validation, "walk", no_walk)
    found = validate(image)
    assert found.runs.to_bytes() == expected.runs.to_bytes()
    assert found.has_xattrs is expected.has_xattrs is False
    with pytest.raises(AssertionError):
        validate(image_of(FEW - 1))


def test_an_old_processor_checks_one_inode_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(validation, "_cpu_flags", lambda: V2 - {"sse4_2"})
    assert load() is None
    assert validate(image_of(FEW)).runs.to_bytes() == walk(image_of(FEW)).runs.to_bytes()


def test_the_walk_serves_while_numpy_cannot_be_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as short:
        short.setitem(sys.modules, "firstread.erofs.columns", None)  # its import fails
        assert validate(image_of(FEW)).runs.to_bytes() == walk(image_of(FEW)).runs.to_bytes()
    assert load() is not None


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="there is no /proc")
def test_the_flags_are_those_of_this_processor() -> None:
    assert load() is not None, "make test needs x86-64-v2, or another architecture"
    assert "lm" in validation._cpu_flags() or validation._cpu_flags() == V2


def test_numpy_makes_no_threads_and_is_loaded_by_nobody_who_does_not_check() -> None:
    code = (
        "import sys, threading, firstread.mounts.node, firstread.cli.main\n"
        "assert 'numpy' not in sys.modules\n"
        "from firstread.erofs.validation import load\n"
        "load()\n"
        "status = open('/proc/self/status').read()\n"
        "assert 'numpy' in sys.modules and 'Threads:\\t1\\n' in status\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={})
