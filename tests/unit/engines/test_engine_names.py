# SPDX-License-Identifier: Apache-2.0
"""``--engine``: which texts name an engine, and what the options of a command refuse."""

from __future__ import annotations

import sys
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import pytest

from firstread.engines.daskcluster import open_cluster
from firstread.engines.naming import GROUP, check_engine, opened_engine
from firstread.errors import EngineError, UsageError
from firstread.testing.command import firstread

PLUGIN = """
from concurrent.futures import ThreadPoolExecutor

def opened(text):
    return ThreadPoolExecutor(1, thread_name_prefix=text)

def broken(text):
    raise RuntimeError("password=abcdef is wrong")
"""
ENTRIES = f"""[{GROUP}]
threads = plugin_of_a_test:opened
broken = plugin_of_a_test:broken
absent = a_package_that_nobody_has:opened
"""
PLACES = ("127.0.0.1:1/a:in", "127.0.0.1:1/a:out")


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that offers engines."""
    (tmp_path / "plugin_of_a_test.py").write_text(PLUGIN)
    metadata = tmp_path / "plugin_of_a_test-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin-of-a-test\nVersion: 1")
    (metadata / "entry_points.txt").write_text(ENTRIES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "plugin_of_a_test", raising=False)


def opened(text: str) -> Executor | None:
    with opened_engine(text) as executor:
        return executor


def test_the_local_engine_is_none() -> None:
    assert opened("local") is None


@pytest.mark.parametrize(
    "text", ["", "loca", "ray://h:1", "dask", "dask:h:1", "x" * 9999, "d\n://"]
)
def test_a_text_that_names_no_engine(text: str) -> None:
    with pytest.raises(UsageError, match="is no engine") as caught:
        check_engine(text)
    assert caught.value.hint is not None
    assert "local" in caught.value.hint
    assert "dask://…" in caught.value.hint


@pytest.mark.usefixtures("plugin")
def test_a_package_offers_an_engine() -> None:
    with opened_engine("threads://x") as executor:
        assert isinstance(executor, ThreadPoolExecutor)
    with pytest.raises(RuntimeError):  # it is shut down
        executor.submit(print)


@pytest.mark.usefixtures("plugin")
def test_an_engine_that_cannot_be_opened() -> None:
    with pytest.raises(UsageError, match="needs a package") as usage:
        opened("absent://x")
    assert usage.value.hint == "pip install 'firstread[absent]'"
    with pytest.raises(EngineError, match="cannot open the engine") as caught:
        opened("broken://user:pass@x")
    assert "abcdef" not in str(caught.value)
    assert "pass@" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["dask://", "dask://h", "dask://h:x", "dask://h:1/x", "dask://u:p@h:1", "dask://h:1?x=1"],
)
def test_a_text_without_the_address_of_a_scheduler(text: str) -> None:
    with pytest.raises(UsageError, match="no address of a Dask scheduler"):
        open_cluster(text)


def test_a_scheduler_that_is_not_there() -> None:
    ran = firstread("convert", *PLACES, "--engine", "dask://127.0.0.1:1")
    assert (ran.code, ran.stdout) == (5, "")
    assert ran.stderr.startswith("firstread: no Dask scheduler answers at tcp://127.0.0.1:1: ")
    assert "Connection refused" in ran.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--worker-credentials", "secret:a"), "is for the workers of an --engine"),
        (("--engine", "dask://h:1", "--worker-credentials", "a/b"), "names no credentials"),
        (("--engine", "ray://h:1"), "is no engine"),
    ],
)
def test_options_that_make_no_sense(arguments: tuple[str, ...], says: str) -> None:
    ran = firstread("convert", *PLACES, *arguments)
    assert ran.code == 2
    assert says in ran.stderr


def test_workers_do_not_see_the_disk_of_a_command(tmp_path: Path) -> None:
    ran = firstread("convert", f"oci:{tmp_path}", PLACES[1], "--engine", "dask://h:1")
    assert ran.code == 2
    assert "do not see oci: on this machine" in ran.stderr
