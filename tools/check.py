# SPDX-License-Identifier: Apache-2.0
"""Runs every check: ruff, then mypy beside the tests, then failed tests once more, alone.

Owns the order, the exit code and the last lines. A test that fails beside others and passes alone
is *flaky*: a defect to mend, and reported as one, but no reason to refuse an unrelated change.
Everything else fails at once: ruff, mypy, a test file that cannot be loaded, a broken run of
pytest, and more failures than `MOST`, which point at the change.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

MOST: Final = 10  # failures to run once more
TESTS_FAILED: Final = 1  # exit code of pytest for failed tests and nothing worse
_TIME_OVER: Final = 124  # exit code for a run that took too long, as of timeout(1)
_LEAST_S: Final = 20.0  # minimum for a second run
_GRACE_S: Final = 20.0  # for pytest to clean up after its tests

_SPREAD: Final = (  # of tests over workers: each file in one, in the order of names
    "--dist=loadfile",
    "--no-loadscope-reorder",
    "--max-worker-restart=3",  # a test that kills its worker runs again, and could kill them all
)

_BIN: Final = Path(sys.executable).parent
_QUICK: Final = ("ruff check .", "ruff format --check .")
_TYPES: Final = "mypy"


def main(arguments: Sequence[str]) -> int:
    """Run the checks in the current directory; return the exit code."""
    options, more = _parse(arguments)
    wrong = [line for line in _QUICK if not options.no_lint and not _passed(line, _lint(line))]
    if wrong:
        return _say(1, *(f"failed: {line}" for line in wrong))
    types = None if options.no_lint else _lint(_TYPES)
    try:
        workers = f"--numprocesses={options.workers}"
        code, failed = _pytest((workers, *_SPREAD, *more), options.until)
        if types is not None and not _passed(_TYPES, types):
            return _say(1, f"failed: {_TYPES}")
    finally:
        if types is not None:
            with types:
                types.kill()
    if code == _TIME_OVER:
        return _say(code, "failed: the time was over before the tests")
    if code != TESTS_FAILED or not options.rerun:
        return code
    return _once_more(failed, options.until)


def _once_more(failed: list[str], until: float) -> int:
    """Run failed tests in a process of their own; return the exit code."""
    tests = "1 test" if len(failed) == 1 else f"{len(failed)} tests"
    if len(failed) > MOST:
        return _say(1, f"{tests} failed: too many to run them once more")
    if until - time.time() < _LEAST_S:
        return _say(1, f"{tests} failed, and no time is left to run them once more")
    _say(0, f"{tests} failed: once more, alone")
    code, again = _pytest(("--numprocesses=0", *failed), until)
    if code == _TIME_OVER:
        return _say(1, f"{tests} failed, and the time was over before the second run was")
    if code:
        return _say(1, *(f"failed twice: {name}" for name in again or failed))
    return _say(0, *(f"flaky: {name}" for name in failed), "passed alone, failed beside others")


def _parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="Run every check.", epilog="The rest is for pytest."
    )
    parser.add_argument("--rerun", action="store_true", help="run what failed once more, alone")
    parser.add_argument("--until", type=float, default=math.inf, help="then all has ended; epoch")
    parser.add_argument("--workers", default="4", help="processes that run tests")
    parser.add_argument("--no-lint", action="store_true", help="run the tests only")
    return parser.parse_known_args(arguments)


def _lint(line: str) -> subprocess.Popen[str]:
    name, *options = line.split()
    command = [str(_BIN / name), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _passed(line: str, lint: subprocess.Popen[str]) -> bool:
    said, _ = lint.communicate()
    print(f"{line}: {said.strip()}", flush=True)
    return lint.returncode == 0


def _pytest(options: Sequence[str], until: float) -> tuple[int, list[str]]:
    """Run pytest; return its exit code (`_TIME_OVER` if it takes too long) and the failed tests."""
    with tempfile.TemporaryDirectory(prefix="firstread-check-") as scratch:
        record = Path(scratch, "failed.json")
        program = str(Path(__file__).with_name("recorded.py"))
        command = [sys.executable, program, str(record), *options]
        code = _wait(subprocess.Popen(command), until)
        return code, json.loads(record.read_text()) if record.exists() else []


def _wait(tests: subprocess.Popen[bytes], until: float) -> int:
    try:
        left_s = max(0.0, until - time.time())
        return abs(tests.wait(None if math.isinf(left_s) else left_s))
    except KeyboardInterrupt:  # pytest has got it as well
        tests.wait()
        raise
    except subprocess.TimeoutExpired:
        tests.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            tests.wait(_GRACE_S)
        return _TIME_OVER
    finally:
        tests.kill()
        tests.wait()


def _say(code: int, *lines: str) -> int:
    print("", *lines, sep="\n", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
