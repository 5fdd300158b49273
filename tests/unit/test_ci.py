# SPDX-License-Identifier: Apache-2.0
"""What `tools/check.py` says of small suites: its exit code and its last lines."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tools import check
from tools.check import MOST

from firstread.testing.patience import PATIENCE_S

CHECK = Path(__file__).parents[2] / "tools/check.py"
ALONE = "passed alone, failed beside others"

FLAKY = """
import os, pathlib, pytest
@pytest.mark.parametrize("name", ["a::b[c]", "two words"])
def test_flaky(name):
    if name == "two words":
        return
    first = not pathlib.Path("been").exists()
    pathlib.Path("been").touch()
    {0}
def test_good(): pass
"""
ONCE = FLAKY.format("assert not first")
CRASH = FLAKY.format("os._exit(1) if first else None")
BROKEN = "def test_bad(): assert 0\n" + ONCE
MANY = """
import pytest
@pytest.mark.parametrize("number", range({0}))
def test_bad(number): assert 0
"""


class Ran:
    """The check of a suite, in a directory of its own."""

    def __init__(self, tmp_path: Path, suite: str, *options: str) -> None:
        (tmp_path / "test_suite.py").write_text(suite)
        (tmp_path / "pytest.ini").write_text("[pytest]\n")
        command = [sys.executable, str(CHECK), "--workers=0", "-q", *options]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=os.environ
            | {
                "PYTEST_ADDOPTS": "-p no:hypothesispytest",  # most of its start
                "PYTEST_DEBUG_TEMPROOT": str(tmp_path),  # at its end it removes those of others
            },
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        self.code, self.output = done.returncode, done.stdout
        self.lines = done.stdout.splitlines()
        self.runs = len(
            re.findall(r" in \d+\.\d+s", done.stdout)
        )  # what pytest says at the end of each


def test_what_passes(tmp_path: Path) -> None:
    ran = Ran(tmp_path, "def test_good(): pass", "--no-lint", "--rerun")
    assert (ran.code, ran.runs) == (0, 1), ran.output


def test_what_fails_once_is_named(tmp_path: Path) -> None:
    ran = Ran(tmp_path, ONCE, "--no-lint", "--rerun")
    assert (ran.code, ran.runs) == (0, 2), ran.output
    assert ran.lines[-2:] == ["flaky: test_suite.py::test_flaky[a::b[c]]", ALONE]
    assert "1 passed in" in ran.output  # no other test ran twice


def test_a_worker_that_ends_is_a_failure_of_its_test(tmp_path: Path) -> None:
    """So does a test that hangs: pytest-timeout ends the process."""
    ran = Ran(tmp_path, CRASH, "--no-lint", "--rerun", "--workers=1")
    assert ran.code == 0, ran.output
    assert ran.lines[-2:] == ["flaky: test_suite.py::test_flaky[a::b[c]]", ALONE]
    assert "1 failed, 3 passed" in ran.output  # xdist continues with it, and those after it


def test_a_worker_that_ends_with_the_last_test_of_its_file_stops_nothing(tmp_path: Path) -> None:
    """The worker in its place gets that test alone, and a worker waits for two."""
    (tmp_path / "test_then.py").write_text("def test_then(): pass")
    last = CRASH.replace('["a::b[c]", "two words"]', '["a::b[c]"]').split("def test_good")[0]
    ran = Ran(tmp_path, last, "--no-lint", "--rerun", "--workers=1")
    assert ran.code == 0, ran.output
    assert ran.lines[-2:] == ["flaky: test_suite.py::test_flaky[a::b[c]]", ALONE]
    assert "1 failed, 2 passed" in ran.output


def test_a_worker_that_ends_behind_many_files_stops_nothing(tmp_path: Path) -> None:
    """Files that it has done are not distributed again."""
    for number in range(4):
        (tmp_path / f"test_a{number}.py").write_text("def test_a(): pass")
    ran = Ran(tmp_path, CRASH, "--no-lint", "--rerun", "--workers=1")
    assert ran.code == 0, ran.output
    assert ran.lines[-2:] == ["flaky: test_suite.py::test_flaky[a::b[c]]", ALONE]


def test_what_fails_twice_is_a_failure(tmp_path: Path) -> None:
    ran = Ran(tmp_path, BROKEN, "--no-lint", "--rerun")
    assert (ran.code, ran.runs) == (1, 2), ran.output
    assert ran.lines[-1] == "failed twice: test_suite.py::test_bad"


@pytest.mark.parametrize(
    ("suite", "options", "code", "said"),
    [
        pytest.param(ONCE, [], 1, "1 failed", id="nobody asked for a second run"),
        pytest.param(
            "import nothing_of_this_name",
            ["--rerun", "--workers=1"],  # with workers pytest itself would say 1
            2,
            "",
            id="not loaded",
        ),
        pytest.param("import os; os._exit(7)", ["--rerun"], 7, "", id="pytest ends"),
        pytest.param(
            MANY.format(MOST + 1),
            ["--rerun"],
            1,
            f"{MOST + 1} tests failed: too many to run them once more",
            id="too many",
        ),
        pytest.param(
            ONCE,
            ["--rerun", "--until={soon}"],
            1,
            "1 test failed, and no time is left to run them once more",
            id="no time",
        ),
        pytest.param(
            "import time\ndef test_hangs(): time.sleep(600)",
            ["--rerun", "--until={now}"],
            124,
            "failed: the time was over before the tests",
            id="no end",
        ),
    ],
)
def test_nothing_else_is_run_once_more(
    tmp_path: Path, suite: str, options: list[str], code: int, said: str
) -> None:
    now = time.time()
    options = [option.format(now=now + 2, soon=now + 15) for option in options]
    ran = Ran(tmp_path, suite, "--no-lint", *options)
    assert ran.code == code, ran.output
    assert said in ran.output
    assert "once more, alone" not in ran.output


def test_a_second_run_without_an_end_is_no_second_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "_pytest", lambda options, until: (124, []))
    assert check._once_more(["test_suite.py::test_bad"], time.time() + 60) == 1
    said = "1 test failed, and the time was over before the second run was"
    assert capsys.readouterr().out.splitlines()[-1] == said


def test_what_ruff_or_mypy_find_is_a_failure_whatever_the_tests_say(tmp_path: Path) -> None:
    (tmp_path / "mypy.ini").write_text("[mypy]\nfiles = wrong.py\n")
    (tmp_path / "wrong.py").write_text('number: int = "text"\n')
    (tmp_path / "ruff.toml").write_text("format.exclude = ['test_suite.py']\nlint.select = []\n")
    ran = Ran(tmp_path, ONCE, "--rerun")
    assert (ran.code, ran.runs) == (1, 1), ran.output
    assert ran.lines[-1] == "failed: mypy"
    assert "Incompatible types" in ran.output
    (tmp_path / "wrong.py").write_text("number  = 1\n")
    ran = Ran(tmp_path, ONCE, "--rerun")
    assert (ran.code, ran.runs) == (1, 0), ran.output  # before any test
    assert ran.lines[-1] == "failed: ruff format --check ."
