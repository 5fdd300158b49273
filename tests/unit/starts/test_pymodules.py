# SPDX-License-Identifier: Apache-2.0
"""Imports of Python programs, read from their sources."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstread.starts import pymodules
from firstread.starts.imagecommand import Started
from firstread.starts.pymodules import imports, python_files
from firstread.starts.treepaths import TreePaths
from firstread.testing.programs import tree_of

LIB = "usr/lib/python3.11"
SITE = "usr/local/lib/python3.11/dist-packages"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import a", [(0, "a", [])]),
        ("import a.b as c, d", [(0, "a.b", []), (0, "d", [])]),
        ("from a.b import c, d as e", [(0, "a.b", ["c", "d"])]),
        ("from . import x", [(1, "", ["x"])]),
        ("from ..p.q import *", [(2, "p.q", [])]),
        ("from a import (\n    b,  # why\n    c,\n)", [(0, "a", ["b", "c"])]),
        ("from a import b, \\\n    c", [(0, "a", ["b", "c"])]),
        ("import a; x = 1", [(0, "a", [])]),
        ("import a  # import b", [(0, "a", [])]),
        ("try:\n    import a\nexcept ImportError:\n    import b", [(0, "a", []), (0, "b", [])]),
        ("def f():\n    import a\n\n    import c\nimport b", [(0, "b", [])]),
        ("class C:\n    from a import b\n", []),
        ("if TYPE_CHECKING:\n    import a\nelse:\n    import b", [(0, "b", [])]),
        ('"""Text:\n\nimport a\n"""\nimport b', [(0, "b", [])]),
        ("imports = 1\nfrom_ = 2\n# import a", []),
        ("import a.", [(0, "a.", [])]),
        ("import", []),
        ("from a import", []),
        ("from a import (b", [(0, "a", ["b"])]),
    ],
)
def test_statements_at_the_top_of_a_module(
    source: str, expected: list[tuple[int, str, list[str]]]
) -> None:
    found = [
        (one.level, one.name.decode(), [name.decode() for name in one.names])
        for one in imports(source.encode())
    ]
    assert found == expected


@given(st.lists(st.sampled_from(["import ", "from ", ".", "a", ",", "(", ")", "\\", "\n", '"""'])))
def test_any_text_is_read(pieces: list[str]) -> None:
    list(imports("".join(pieces).encode()))


def files(
    tree: dict[str, bytes | str],
    *words: str,
    directory: str = "/app",
    called: str = "/usr/bin/python3.11",
    **variables: str,
) -> list[str]:
    root, read = tree_of({"usr/bin/python3.11": b"", f"{LIB}/os.py": b"", **tree})
    paths = TreePaths(root)
    program = paths.file(called.encode())
    assert program
    environment = {key.encode(): value.encode() for key, value in variables.items()}
    arguments = [word.encode() for word in words]
    started = Started(program, called.encode(), arguments, directory.encode(), environment)
    return [file.path.decode() for file in python_files(started, paths, read)]


def test_a_virtual_environment_has_packages_of_its_own() -> None:
    tree: dict[str, bytes | str] = {
        "app/.venv/bin/python": "python3",
        "app/.venv/bin/python3": "/usr/bin/python3.11",
        "app/.venv/pyvenv.cfg": b"home = /usr/bin",
        "app/.venv/lib/python3.11/site-packages/own.py": b"",
        f"{LIB}/site-packages/own.py": b"",
    }
    called = "/app/.venv/bin/python"
    own = ["app/.venv/lib/python3.11/site-packages/own.py"]
    assert files(tree, "-c", "import own", called=called) == own
    assert files(tree, "-c", "import own") == [f"{LIB}/site-packages/own.py"]


def test_bytecode_stands_for_a_source_that_names_the_imports() -> None:
    tree: dict[str, bytes | str] = {
        f"{LIB}/encodings/__init__.py": b"from . import aliases",
        f"{LIB}/encodings/__pycache__/__init__.cpython-311.pyc": b"x",
        f"{LIB}/encodings/aliases.py": b"",
    }
    assert files(tree) == [
        f"{LIB}/encodings/__pycache__/__init__.cpython-311.pyc",
        f"{LIB}/encodings/aliases.py",
    ]


PACKAGE: dict[str, bytes | str] = {
    f"{SITE}/pkg/__init__.py": b"from .core import run\nfrom . import ext, missing",
    f"{SITE}/pkg/core.py": b"import pkg.sub.deep\nimport os\n",
    f"{SITE}/pkg/sub/__init__.py": b"from .. import core",
    f"{SITE}/pkg/sub/deep.py": b"from ...pkg import core\nfrom ..other import x",
    f"{SITE}/pkg/other.py": b"",
    f"{SITE}/pkg/unused.py": b"",
    f"{SITE}/pkg/ext.cpython-311-x86_64-linux-gnu.so": b"",
    f"{SITE}/pkg/__main__.py": b"import late",
    f"{SITE}/late.py": b"",
}
LOADED = [
    *("pkg/__init__.py", "pkg/core.py", "pkg/sub/__init__.py", "pkg/sub/deep.py", "pkg/other.py"),
    *("os.py", "pkg/ext.cpython-311-x86_64-linux-gnu.so"),
]


def names_of(found: list[str]) -> list[str]:
    return [path.removeprefix(f"{SITE}/").removeprefix(f"{LIB}/") for path in found]


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (["-c", "import pkg"], []),
        (["-u", "/app/run.py", "--flag"], []),
        (["run.py"], []),
        (["-m", "pkg"], ["pkg/__main__.py", "late.py"]),
        (["/usr/bin/serve", "pkg:app"], []),
        (["pkg"], None),
        (["--version"], None),
    ],
    ids=lambda value: value[0] if value else None,
)
def test_the_command_line_names_what_is_loaded(words: list[str], extra: list[str] | None) -> None:
    tree = {**PACKAGE, "app/run.py": b"import pkg", "usr/bin/serve": b""}
    expected = [] if extra is None else LOADED + extra
    assert names_of(files(tree, *words)) == expected


def test_a_script_finds_its_neighbours_first() -> None:
    tree: dict[str, bytes | str] = {
        "app/run.py": b"import helper",
        "app/helper.py": b"",
        f"{SITE}/helper.py": b"",
        "opt/helper.py": b"",
    }
    assert files(tree, "run.py") == ["app/helper.py"]
    assert files(tree, "-c", "import helper", directory="/", PYTHONPATH="/opt") == ["opt/helper.py"]


def test_a_package_without_init_is_a_directory() -> None:
    tree: dict[str, bytes | str] = {f"{SITE}/space/part/__init__.py": b""}
    assert files(tree, "-c", "import space.part") == [f"{SITE}/space/part/__init__.py"]


def test_path_configuration_is_read_and_followed() -> None:
    tree: dict[str, bytes | str] = {
        f"{SITE}/a.pth": b"import hook; hook.x()",
        f"{SITE}/hook.py": b"",
    }
    assert files(tree) == [f"{SITE}/a.pth", f"{SITE}/hook.py"]


def test_path_configuration_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firstread.starts.pymodules.MAX_CONFIGURATIONS", 3)
    tree: dict[str, bytes | str] = {f"{SITE}/{number}.pth": b"" for number in range(10)}
    assert files(tree) == [f"{SITE}/{number}.pth" for number in range(3)]


def test_python_names_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pymodules, "MAX_MODULES", 9)
    names = [f"m{number}" for number in range(20)]
    tree: dict[str, bytes | str] = {f"{SITE}/{name}.py": b"" for name in names}
    found = names_of(files(tree, "-c", "import " + ", ".join(names)))
    assert found == ["m0.py", "m1.py", "m2.py", "m3.py", "m4.py"], "four names belong to Python"


def test_the_bytes_of_sources_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pymodules, "MAX_SOURCES", 30)
    tree: dict[str, bytes | str] = {
        f"{SITE}/m{n}.py": f"import m{n + 1}#{n:2}".encode() for n in range(9)
    }
    assert len(files(tree, "-c", "import m0")) == 3


def test_imports_in_a_circle_end() -> None:
    tree: dict[str, bytes | str] = {f"{SITE}/a.py": b"import b", f"{SITE}/b.py": b"import a"}
    assert names_of(files(tree, "-c", "import a")) == ["a.py", "b.py"]
