# SPDX-License-Identifier: Apache-2.0
"""The start set of an image: programs of its command, and its bounds."""

from __future__ import annotations

import stat
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstread.erofs.tree import Node
from firstread.starts.imagecommand import MAX_STARTS, MAX_WORD, MAX_WORDS, after_env, command_of
from firstread.starts.startset import MAX_CODE, MAX_SET, start_set
from firstread.testing.programs import PAGE, Program, tree_of
from firstread.traces.tracefile import Trace
from firstread.units import MiB

LOADER = b"/lib64/ld.so"
PROGRAM = Program(needed=(b"libc.so.6",), interpreter=LOADER).image()
LIB = Program().image()
SYSTEM: dict[str, bytes | str] = {
    "lib64/ld.so": LIB,
    "lib/libc.so.6": LIB,
    "usr/bin/server": PROGRAM,
    "usr/bin/python3": "python3.11",
    "usr/bin/python3.11": PROGRAM,
    "usr/bin/env": PROGRAM,
    "bin/sh": PROGRAM,
    "bin/init": PROGRAM,
    "etc/passwd": b"root:x:0:0::/root:/bin/sh\n",
    "var/rest": bytes(8 * MiB),
}
LOADED = {"lib64/ld.so", "lib/libc.so.6", "etc/passwd"}


def traced(files: dict[str, bytes | str], config: Any) -> Trace | None:
    root, read = tree_of(files)
    return start_set(root, read, {"config": config})


def read_files(files: dict[str, bytes | str], **config: Any) -> set[str]:
    trace = traced({**SYSTEM, **files}, config)
    return {read.path.decode() for read in trace.reads} if trace else set()


@pytest.mark.parametrize(
    ("files", "config", "expected"),
    [
        ({}, {"Cmd": ["server"]}, {"usr/bin/server"}),
        ({}, {"Cmd": ["/usr/bin/server", "-v"]}, {"usr/bin/server"}),
        (
            {"app/server": PROGRAM},
            {"Cmd": ["./server"], "WorkingDir": "/app"},
            {"app/server"},
        ),
        (
            {"opt/server": PROGRAM},
            {"Cmd": ["server"], "Env": ["PATH=/none:/opt", "A"]},
            {"opt/server"},
        ),
        (
            {"run.sh": b"#! /bin/sh -e\nexec server\n"},
            {"Entrypoint": ["/run.sh"], "Cmd": ["server"]},
            {"run.sh", "bin/sh", "usr/bin/server"},
        ),
        (
            {"tool": b"#!/usr/bin/env -S A=1 python3\nimport x", "x.py": b"1"},
            {"Cmd": ["/tool"]},
            {"tool", "usr/bin/env", "usr/bin/python3.11", "x.py"},
        ),
        (
            {},
            {"Entrypoint": ["/bin/init", "--", "server"]},
            {"bin/init", "usr/bin/server"},
        ),
        ({}, {"Cmd": ["/bin/sh", "-c", "server --flag"]}, {"bin/sh"}),
        (
            {"etc/server/main.conf": b"a", "etc/server/d/more.conf": b"b", "srv/c.conf": b"c"},
            {"Cmd": ["server", "--config=/srv/c.conf"]},
            {"usr/bin/server", "etc/server/main.conf", "etc/server/d/more.conf", "srv/c.conf"},
        ),
        (
            {"srv/data/one": b"1"},
            {"Cmd": ["server", "-D", "/srv/data"]},
            {"usr/bin/server", "srv/data/one"},
        ),
        (
            {"a": b"#!/b\n", "b": b"#!/a\n"},
            {"Entrypoint": ["/bin/init"], "Cmd": ["/a"]},
            {"a", "b", "bin/init"},
        ),
    ],
    ids=lambda value: " ".join(value["Cmd"]) if isinstance(value, dict) and "Cmd" in value else "",
)
def test_the_command_decides(
    files: dict[str, bytes | str], config: dict[str, Any], expected: set[str]
) -> None:
    assert read_files(files, **config) == LOADED | expected


@pytest.mark.parametrize(
    "config",
    [
        {},
        None,
        [],
        {"Cmd": []},
        {"Cmd": "server"},
        {"Cmd": [1, None]},
        {"Cmd": ["missing"]},
        {"Cmd": ["/etc/passwd"]},
        {"Cmd": ["/usr/bin"]},
        {"Cmd": ["server\0"]},
        {"Cmd": ["C:\\server.exe"]},
        {"Cmd": ["server"], "Env": ["PATH="]},
    ],
    ids=str,
)
def test_an_unknown_command_has_no_start_set(config: Any) -> None:
    assert traced(SYSTEM, config) is None


def test_the_set_is_a_trace_of_whole_blocks_the_surest_first() -> None:
    trace = traced(SYSTEM, {"Cmd": ["server"]})
    assert trace
    assert trace.header.command == ["server"]
    assert trace == traced(SYSTEM, {"Cmd": ["server"]})
    assert all(read.offset % PAGE == 0 and read.length % PAGE == 0 for read in trace.reads)
    paths = [read.path for read in trace.reads]
    headers = [read.path for read in trace.reads if read.offset == 0]
    assert headers == [b"usr/bin/server", b"lib64/ld.so", b"lib/libc.so.6", b"etc/passwd"]
    code = [paths.index(b"etc/passwd") < at for at, path in enumerate(paths) if path == paths[-1]]
    assert code[0] is False, "the tables of a library come before the files"
    assert code[-1] is True, "its code comes after them"


def test_the_loader_is_read_whole_before_other_code() -> None:
    trace = traced(SYSTEM, {"Cmd": ["server"]})
    assert trace
    paths = [read.path for read in trace.reads]
    assert len(paths) - paths[::-1].index(b"lib64/ld.so") < paths.index(b"etc/passwd")


def test_large_code_and_the_rest_of_large_files_are_left_out() -> None:
    pages = MAX_CODE // PAGE + 1
    large = Program(needed=(b"libc.so.6",), interpreter=LOADER, code=pages)
    files: dict[str, bytes | str] = {**SYSTEM, "usr/bin/server": large.image()}
    files["var/rest"] = bytes(32 * MiB)
    trace = traced(files, {"Cmd": ["server"]})
    assert trace
    read = sum(read.length for read in trace.reads if read.path == b"usr/bin/server")
    assert read < MiB


@pytest.mark.parametrize(("rest", "has_set"), [(0, False), (8 * MiB, True)])
def test_most_of_an_image_is_no_start_set(rest: int, has_set: bool) -> None:
    files: dict[str, bytes | str] = {"server": Program(code=1000).image(), "rest": bytes(rest)}
    assert bool(traced(files, {"Cmd": ["/server"]})) is has_set


def test_the_set_is_limited() -> None:
    names = [f"lib{number}.so".encode() for number in range(18)]
    library = Program(code=MAX_CODE // PAGE).image()
    files: dict[str, bytes | str] = {f"lib/{name.decode()}": library for name in names}
    program = Program(needed=tuple(names), interpreter=LOADER).image()
    root, read = tree_of({**files, **SYSTEM, "usr/bin/server": program})
    assert root.children
    root.children[b"rest"] = Node(stat.S_IFREG, size=300 * MiB)
    trace = start_set(root, read, {"config": {"Cmd": ["server"]}})
    assert trace
    assert MAX_SET - 4 * MiB < sum(read.length for read in trace.reads) <= MAX_SET


def test_few_words_may_be_programs() -> None:
    command = command_of({"config": {"Entrypoint": ["a"], "Cmd": ["b"] + ["--", "c"] * 50}})
    assert command.starts == [0, 1, 3, 5]
    assert len(command.starts) == MAX_STARTS


JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=9) | st.sampled_from(["server", "--", "/bin/sh"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["Entrypoint", "Cmd", "Env", "WorkingDir"]), inner)
    ),
    max_leaves=20,
)
TREE = tree_of(SYSTEM)


@settings(max_examples=50)
@given(JSON)
def test_any_config_is_read(config: Any) -> None:
    start_set(*TREE, {"config": config})


def test_long_arguments_of_env_take_linear_time() -> None:
    begun = time.process_time()
    assert after_env([b"env", *[b"a= " * (MAX_WORD // 3)] * MAX_WORDS, b"server"]) == [b"server"]
    assert len(after_env([b"env", b"b " * MAX_WORD])) == MAX_WORDS
    assert time.process_time() - begun < 2
