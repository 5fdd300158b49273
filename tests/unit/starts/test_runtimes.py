# SPDX-License-Identifier: Apache-2.0
"""The files that Java opens by name."""

from __future__ import annotations

import struct

import pytest

from firstread.starts.imagecommand import Started
from firstread.starts.runtimes import Runtime, runtime_of
from firstread.starts.treepaths import TreePaths
from firstread.testing.programs import tree_of


def jimage(table: int, locations: int, strings: int, magic: int = 0xCAFEDADA) -> bytes:
    header = struct.pack("<7I", magic, 1 << 16, 0, table, table, locations, strings)
    return header.ljust(1 << 20, b"\0")


def java(modules: bytes) -> Runtime:
    tree: dict[str, bytes | str] = {
        "opt/java/bin/java": b"",
        "opt/java/lib/modules": modules,
        "opt/java/lib/server/libjvm.so": b"",
        "opt/java/lib/server/classes.jsa": b"classes",
        "opt/java/lib/jvm.cfg": "/etc/java/jvm.cfg",
        "etc/java/jvm.cfg": b"cfg",
    }
    root, read = tree_of(tree)
    paths = TreePaths(root)
    program = paths.file(b"/opt/java/bin/java")
    assert program
    return runtime_of(Started(program, b"/opt/java/bin/java", [], b"", {}), paths, read)


def test_java_reads_its_virtual_machine_its_archive_and_the_index_of_its_modules() -> None:
    runtime = java(jimage(100, 2000, 3000))
    assert [file.path for file in runtime.libraries] == [b"opt/java/lib/server/libjvm.so"]
    assert [(part.file.path, part.start, part.end) for part in runtime.parts] == [
        (b"etc/java/jvm.cfg", 0, 3),
        (b"opt/java/lib/server/classes.jsa", 0, 7),
        (b"opt/java/lib/modules", 0, 28 + 800 + 2000 + 3000),
    ]


@pytest.mark.parametrize(
    "modules",
    [b"", jimage(1, 1, 1, magic=1), jimage(0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF)],
    ids=["empty", "no jimage", "too large"],
)
def test_a_strange_module_file_is_left_out(modules: bytes) -> None:
    assert java(modules).parts[-1].end == 0
