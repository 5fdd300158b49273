# SPDX-License-Identifier: Apache-2.0
"""The matrix of kernels: what apt says, what pytest says, and the table."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.kernels import rootdisk
from tests.kernels.inside import outcome, told
from tests.kernels.matrix import PAGE, Result, Tried, chapter, is_good, load, merged, put, save
from tests.kernels.packages import newest

from firstread.errors import NodeError

SHOWN = """Package: linux-image-amd64
Source: linux-signed-amd64 (6.12.57+1)
Depends: linux-image-6.12.57+deb13-amd64 (= 6.12.57-1)
Recommends: grub-pc
"""
REFUSED = Tried(False, "no | EROFS")
SPLIT = """Package: linux-image-amd64
Depends: linux-base-amd64 (= 7.3-1), linux-image-7.3+deb13-amd64 (= 7.3-1)
"""
OLD = Result("5.10.0-1", {"fanotify": REFUSED, "fuse": Tried(True)}, "fuse", package="sid 1")
NEW = Result("7.3.0-1", {"fanotify": Tried(True, checks={"suite": "9 passed"})}, "fanotify")


def test_apt_names_the_kernel() -> None:
    assert newest(SHOWN) == ("6.12.57+deb13-amd64", "6.12.57-1")
    assert newest(SPLIT) == ("7.3+deb13-amd64", "7.3-1")
    for shown in ("N: Unable to locate package", "Depends: linux-modules-amd64 (= 7.3-1)"):
        with pytest.raises(NodeError, match="does not say which kernel"):
            newest(shown)


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("..\n2 passed, 40 deselected in 3.10s", "2 passed"),
        ("F\n1 failed, 2 passed, 1 skipped, 1 warning in 70.1s (0:01:10)", None),
        ("the interpreter was killed", "no result"),
    ],
)
def test_the_outcome_of_tests_is_their_last_line(output: str, said: str | None) -> None:
    assert outcome(output) == (said or "1 failed, 2 passed, 1 skipped")


FAILED = """F.
FAILED tests/privileged/test_a.py::TestFlat::test_reads[4] - AssertionError: 1
ERROR tests/privileged/test_a.py::test_it_starts
1 failed, 1 passed, 1 error in 3.0s
"""


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ("2 passed in 3.0s", "2 passed at the second try, after test_it_starts, test_reads"),
        (FAILED, "1 failed, 1 passed, 1 error"),
    ],
)
def test_a_second_try_names_what_failed_at_the_first(second: str, said: str) -> None:
    assert told([FAILED, second]) == said
    assert is_good(Result("1", {"fuse": Tried(True, checks={"run": said})}, "fuse")) == (
        second != FAILED
    )


def test_what_passes_at_once_needs_no_second_try() -> None:
    assert told(["1 passed in 2.0s"]) == "1 passed"


def test_a_table_has_a_column_for_each_device_and_says_why_not() -> None:
    text = chapter([OLD, NEW], ["somewhere"])
    assert "| kernel | package | `fanotify` | `fuse` | `auto` takes | seconds |" in text
    assert "| 5.10.0-1 | sid 1 | no | yes | `fuse` | 0 |" in text
    assert "| 7.3.0-1 |  | yes; suite: 9 passed | not tried | `fanotify` | 0 |" in text
    assert r"- `fanotify` on 5.10.0-1: no \| EROFS" in text


def test_a_chapter_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A\n\n<!-- x -->\nold\n<!-- end -->\n\n<!-- y -->\nmine\n<!-- end -->\n")
    put("x", "new \\1\n", page)
    assert page.read_text() == (
        "# A\n\n<!-- x -->\nnew \\1\n<!-- end -->\n\n<!-- y -->\nmine\n<!-- end -->\n"
    )
    with pytest.raises(ValueError, match="no chapter z"):
        put("z", "", page)


def test_the_pages_have_the_chapters() -> None:
    for page, name in ((PAGE, "kernels"), (rootdisk.PAGE, "rootdisk")):
        assert page.read_text().count(f"<!-- {name} -->\n") == 1


def test_a_guest_of_a_root_disk_is_a_row() -> None:
    booted = rootdisk.Booted("nbd", "6.1.0", 200_000_000, 4_400_000, 3_000_000, 9, 5.25)
    text = rootdisk.chapter([booted], ["somewhere"])
    assert "| nbd | 6.1.0 | 200.0 MB | 4.4 MB | 3.0 MB | 9 | 5.2 s |" in text


def test_results_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    assert load(path) == {}
    save({"bullseye": OLD, "sid": NEW}, path)
    assert load(path) == {"bullseye": OLD, "sid": NEW}


def test_a_device_that_was_not_tried_again_keeps_its_result() -> None:
    again = Result("5.10.0-1", {"fuse": Tried(False)}, "none", package="sid 1")
    assert merged(OLD, again).devices == {"fanotify": REFUSED, "fuse": Tried(False)}
    assert merged(OLD, NEW) == NEW
    assert merged(None, NEW) == NEW


@pytest.mark.parametrize(
    ("result", "good"),
    [
        (OLD, True),
        (NEW, True),
        (Result("1", {"fuse": Tried(False)}, "none"), False),
        (Result("1", {"fuse": Tried(True, checks={"run": "1 failed, 2 passed"})}, "fuse"), False),
        (Result("1", {"fuse": Tried(True, checks={"run": "no result"})}, "fuse"), False),
        (Result("1", {"fuse": Tried(True, checks={"tree": "1 wrong, such as x"})}, "fuse"), False),
        (Result("1", {"fuse": Tried(True, checks={"run": "4 passed, 1 skipped"})}, "fuse"), True),
        (Result("1", {"fuse": Tried(True)}), False),  # the guest did not come to its end
    ],
)
def test_a_kernel_is_good_if_what_works_passes(result: Result, good: bool) -> None:
    assert is_good(result) is good
