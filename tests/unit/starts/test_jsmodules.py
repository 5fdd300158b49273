# SPDX-License-Identifier: Apache-2.0
"""Modules of Node programs, read from their sources."""

from __future__ import annotations

import pytest

from firstread.starts import jsmodules
from firstread.starts.imagecommand import Started
from firstread.starts.jsmodules import node_files
from firstread.starts.treepaths import TreePaths
from firstread.testing.programs import tree_of


def files(tree: dict[str, bytes | str], *words: str, directory: str = "/app") -> list[str]:
    root, read = tree_of({"bin/node": b"", **tree})
    paths = TreePaths(root)
    program = paths.file(b"/bin/node")
    assert program
    arguments = [word.encode() for word in words]
    started = Started(program, b"/bin/node", arguments, directory.encode(), {})
    return [file.path.decode() for file in node_files(started, paths, read)]


MODULES: dict[str, bytes | str] = {
    "app/node_modules/a/package.json": b'{"main": "lib/start", "x": [1]}',
    "app/node_modules/a/lib/start.js": b"require('./part'); require(\"fs\"); require('b/sub')",
    "app/node_modules/a/lib/part/index.js": b"module.exports = require('../../data.json')",
    "app/node_modules/a/data.json": b"{}",
    "node_modules/b/package.json": b"{",
    "node_modules/b/sub.js": b"import x from 'b'; export * from './esm.mjs'",
    "node_modules/b/index.js": b"",
    "node_modules/b/esm.mjs": b"import './side.cjs'",
    "node_modules/b/side.cjs": b"require(name)",
}
LOADED = [
    *("app/node_modules/a/package.json", "app/node_modules/a/lib/start.js"),
    *("app/node_modules/a/lib/part/index.js", "app/node_modules/a/data.json"),
    *("node_modules/b/sub.js", "node_modules/b/package.json", "node_modules/b/index.js"),
    *("node_modules/b/esm.mjs", "node_modules/b/side.cjs"),
]


@pytest.mark.parametrize("words", [["server.js"], ["--flag", "/app/server"], ["./server.js", "-x"]])
def test_the_script_and_all_that_it_requires(words: list[str]) -> None:
    tree = {**MODULES, "app/server.js": b"const a = require('a')"}
    assert files(tree, *words) == ["app/server.js", *LOADED]


def test_a_directory_is_its_main_module() -> None:
    tree: dict[str, bytes | str] = {"app/package.json": b'{"main": "x.js"}', "app/x.js": b""}
    assert files(tree, ".") == ["app/package.json", "app/x.js"]


def test_debian_keeps_modules_of_node_on_the_disk() -> None:
    tree: dict[str, bytes | str] = {"usr/share/nodejs/undici/undici-fetch.js": b"require('u')"}
    assert files({**tree, "usr/share/nodejs/u.js": b""}) == [*tree, "usr/share/nodejs/u.js"]


def test_node_files_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsmodules, "MAX_MODULES", 9)
    tree: dict[str, bytes | str] = {
        f"app/m{number}.js": f"require('./m{number + 1}')".encode() for number in range(20)
    }
    assert files(tree, "m0.js") == [f"app/m{number}.js" for number in range(9)]


def test_node_names_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsmodules, "MAX_LOOKUPS", 9)
    script = "".join(f"require('./m{number}');" * 2 for number in range(20)).encode()
    tree: dict[str, bytes | str] = {f"app/m{number}.js": b"" for number in range(20)}
    found = files({"app/server.js": script, **tree}, "server.js")
    assert found == ["app/server.js", *list(tree)[:9]]


def test_the_bytes_of_sources_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsmodules, "MAX_SOURCES", 50)
    tree: dict[str, bytes | str] = {
        f"app/m{n}.js": f"require('./m{n + 1}')".encode() for n in range(9)
    }
    assert files(tree, "m0.js") == ["app/m0.js", "app/m1.js", "app/m2.js", "app/m3.js"]


@pytest.mark.parametrize(
    "package", [b"[" * 60000, b'{"main": 1}', b'{"main": "../../.."}', b"\xff"]
)
def test_a_bad_package_is_a_directory(package: bytes) -> None:
    tree: dict[str, bytes | str] = {"app/package.json": package, "app/index.js": b"require('.')"}
    assert files(tree, ".") == ["app/package.json", "app/index.js"]
