# SPDX-License-Identifier: Apache-2.0
"""The log of a daemon that was started on demand: two processes write it, it does not grow on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from firstread.control.daemonlog import turn_over
from firstread.testing.patience import PATIENCE_S

LIMIT_BYTES = 150_000  # of about 200,000 that two processes write

_WRITER = f"""
import logging, sys
from pathlib import Path
from firstread.daemon import logs
logs.LogFile.__init__.__defaults__ = ({LIMIT_BYTES},)
logs.configure_logging("INFO", Path(sys.argv[1]))
for number in range(1000):
    logging.info("%s writes %d", sys.argv[2], number)
sys.stdout.write(f"to stdout {{sys.argv[2]}}\\n")  # as one, whatever the environment says
"""


_SHORT = """
import logging, os, sys
from pathlib import Path
from firstread.daemon import logs
from firstread.testing.shortage import no_threads
logs.configure_logging("INFO", Path(sys.argv[1]))
os.unlink(sys.argv[1])
with no_threads():
    logging.info("written to the old file")
logging.info("written to the new one")
"""


def write(path: Path, *names: str) -> None:
    """Let processes log at the same time, to a file that they have in common."""
    with open(path, "ab") as log:
        writers = [
            subprocess.Popen([sys.executable, "-c", _WRITER, path, name], stdout=log, stderr=log)
            for name in names
        ]
    assert [writer.wait(timeout=PATIENCE_S) for writer in writers] == [0] * len(names)


def test_a_log_is_turned_over_and_every_process_follows(tmp_path: Path) -> None:
    path = tmp_path / "daemon.log"
    write(path, "first", "second")
    before = (tmp_path / "daemon.log.1").read_text().splitlines()
    after = path.read_text().splitlines()
    assert LIMIT_BYTES <= (tmp_path / "daemon.log.1").stat().st_size < LIMIT_BYTES + 1000
    said = [line for line in before + after if line.startswith("to stdout")]
    assert sorted(said) == ["to stdout first", "to stdout second"]
    records = [json.loads(line)["message"] for line in before + after if line not in said]
    for name in ("first", "second"):
        numbers = [int(words.split()[-1]) for words in records if words.startswith(name)]
        assert numbers == list(range(1000))


def test_a_reader_of_a_lost_log_continues_with_the_present_one(
    tmp_path: Path,
) -> None:
    """As the child of a process that has been quiet while others turned the log over twice."""
    path = tmp_path / "daemon.log"
    with open(path, "ab") as log:
        for _ in range(2):
            turn_over(path)
            path.touch()
        command = [sys.executable, "-c", _WRITER, str(path), "one"]
        subprocess.run(command, stdout=log, stderr=log, check=True, timeout=PATIENCE_S)
        assert os.fstat(log.fileno()).st_size == 0
    assert len(path.read_text().splitlines()) == 1001


def test_a_log_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    ours, other = tmp_path / "daemon.log", tmp_path / "other.log"
    with open(other, "ab") as log:
        command = [sys.executable, "-c", _WRITER, str(ours), "one"]
        subprocess.run(command, stdout=log, stderr=log, check=True, timeout=PATIENCE_S)
    assert len(other.read_text().splitlines()) == 1001
    assert [path.name for path in tmp_path.iterdir()] == ["other.log"]


def test_a_log_line_raises_nothing_if_no_thread_can_be_had(tmp_path: Path) -> None:
    """Its writer has often met the same shortage, and would end."""
    path = tmp_path / "daemon.log"
    with path.open("a+") as log:
        command = [sys.executable, "-c", _SHORT, str(path)]
        subprocess.run(command, stdout=log, stderr=log, check=True, timeout=PATIENCE_S)
        log.seek(0)
        assert "written to the old file" in log.read()
    assert "written to the new one" in path.read_text()
