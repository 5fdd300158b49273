# SPDX-License-Identifier: Apache-2.0
"""Paths of an image resolve as in a container, and end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstread.starts.treepaths import MAX_LINKS, TreePaths
from firstread.testing.programs import tree_of

FILES: dict[str, bytes | str] = {
    "usr/bin/tool": b"tool",
    "usr/lib/real.so": b"lib",
    "usr/lib/rel.so": "real.so",
    "usr/lib/up.so": "../lib/rel.so",
    "usr/lib/abs.so": "/usr/lib/real.so",
    "usr/lib/out.so": "../../../../../usr/lib/real.so",
    "lib": "usr/lib",
    "loop": "loop",
    "ping": "pong",
    "pong": "ping",
    "dangling": "nowhere",
}


def find(path: bytes, directory: bytes = b"") -> bytes | None:
    found = TreePaths(tree_of(FILES)[0]).file(path, directory)
    return found.path if found else None


@pytest.mark.parametrize(
    ("path", "directory", "expected"),
    [
        (b"/usr/bin/tool", b"", b"usr/bin/tool"),
        (b"tool", b"usr/bin", b"usr/bin/tool"),
        (b"../lib/./real.so", b"/usr/bin", b"usr/lib/real.so"),
        (b"/lib/rel.so", b"", b"usr/lib/real.so"),
        (b"/lib/up.so", b"", b"usr/lib/real.so"),
        (b"/lib/abs.so", b"", b"usr/lib/real.so"),
        (b"/lib/out.so", b"", b"usr/lib/real.so"),
        (b"../../usr/bin/tool", b"/usr", b"usr/bin/tool"),
        (b"/loop", b"", None),
        (b"/ping", b"", None),
        (b"/dangling", b"", None),
        (b"/usr/bin", b"", None),
        (b"/usr/bin/tool/x", b"", None),
        (b"/usr/bin/tool\0", b"", None),
        (b"/" + b"a/" * 4096, b"", None),
        (b"", b"", None),
    ],
)
def test_a_path_finds_its_file(path: bytes, directory: bytes, expected: bytes | None) -> None:
    assert find(path, directory) == expected


@pytest.mark.parametrize(("links", "found"), [(MAX_LINKS, True), (MAX_LINKS + 1, False)])
def test_a_chain_of_links_has_the_limit_of_linux(links: int, found: bool) -> None:
    files: dict[str, bytes | str] = {f"l{number}": f"l{number + 1}" for number in range(links)}
    paths = TreePaths(tree_of({**files, f"l{links}": b"x"})[0])
    assert bool(paths.file(b"/l0")) is found


NAMES = st.sampled_from(["a", "b", "c", "..", ".", "", "/"])


@given(st.dictionaries(st.sampled_from("abc"), st.lists(NAMES, max_size=40)), st.lists(NAMES))
def test_any_links_end(links: dict[str, list[str]], path: list[str]) -> None:
    files: dict[str, bytes | str] = {name: "/".join(target) for name, target in links.items()}
    found = TreePaths(tree_of(files)[0]).find("/".join(path).encode())
    assert found is None or found.path == b""


def test_small_files_come_from_the_top_down_and_are_counted() -> None:
    files: dict[str, bytes | str] = {f"etc/app/{n:02}": b"" for n in range(9)}
    files |= {"etc/app/sub/deep": b"", "etc/app/link": "../other", "etc/other": b""}
    paths = TreePaths(tree_of(files)[0])
    found = [file.path.decode() for file in paths.small_files(b"etc/app", b"", 64)]
    assert found == [*(f"etc/app/{n:02}" for n in range(9)), "etc/other", "etc/app/sub/deep"]
    assert len(list(paths.small_files(b"etc/app", b"", 4))) == 3
