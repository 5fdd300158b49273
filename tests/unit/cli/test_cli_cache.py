# SPDX-License-Identifier: Apache-2.0
"""``firstread cache`` on a node without a daemon, from its user's view."""

from __future__ import annotations

from pathlib import Path

import pytest

from firstread.sectors.sectorstore import SectorStore
from firstread.testing.command import firstread

HELP = "see 'firstread {} --help'"
WRONG = {
    "no such verb": (["cache", "list"], "No such command 'list'", HELP.format("cache")),
    "no size": (
        ["cache", "prune", "--to", "lots"],
        "'lots' is not a size",
        HELP.format("cache prune"),
    ),
    "too many": (["cache", "ls", "x"], "unexpected extra argument (x)", HELP.format("cache ls")),
    "no option": (["cache", "verify", "-r"], "No such option '-r'", HELP.format("cache verify")),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_command_line_says_what_is_wrong(name: str) -> None:
    arguments, message, hint = WRONG[name]
    ran = firstread(*arguments)
    assert (ran.code, ran.stdout) == (2, "")
    assert message in ran.stderr
    assert hint in ran.stderr


@pytest.mark.parametrize("verb", ["ls", "prune", "verify"])
def test_a_root_that_is_no_store_is_left_as_it_is(verb: str) -> None:
    ran = firstread("cache", verb, "--root", "nothing", "--run-dir", "run")
    assert (ran.code, ran.stdout) == (5, "")
    assert "there is no sector store in" in ran.stderr
    assert "--root DIR" in ran.stderr
    assert not Path("nothing").exists()
    assert not Path("run").exists()


def test_an_empty_store(tmp_path: Path) -> None:
    places = ("--root", str(tmp_path / "root"), "--run-dir", str(tmp_path / "run"))
    SectorStore(tmp_path / "root", filesystems=None).close()
    ran = firstread("cache", "ls", *places)
    assert ran.code == 0
    assert ran.stdout.startswith("IMAGE   STATE   SECTORS   HERE   ALONE   USED\n\n0 sectors, 0 B;")
    ran = firstread("cache", "prune", *places)
    assert (ran.code, ran.stdout) == (0, "0 images and 0 sectors (0 B) were removed\n")
    ran = firstread("cache", "verify", *places)
    assert (ran.code, ran.stdout) == (0, "0 sectors, 0 B, checked: 0 damaged\n")
    document = firstread("cache", "verify", "--json", *places).json
    assert document["ok"] is True
    assert document["damaged"] == document["images"] == []


def test_a_store_in_use_is_left_to_its_daemon(tmp_path: Path) -> None:
    """The daemon does not answer, or has another run directory."""
    with SectorStore(tmp_path / "root", filesystems=None) as store:
        store.claim()
        ran = firstread("cache", "prune", "--root", str(tmp_path / "root"), "--run-dir", "run")
    assert (ran.code, ran.stdout) == (5, "")
    assert "is in use by process" in ran.stderr
