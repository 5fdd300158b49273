# SPDX-License-Identifier: Apache-2.0
"""The log of a detached container: exact bytes, bounded size, and following it."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from firstread.run.containerlog import LogEntry, LogWriter, last_lines, read_log, rotated
from firstread.testing.shortage import few_descriptors

PIECES = st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), st.binary(min_size=1)))


def joined(entries: list[LogEntry], stream: str) -> bytes:
    return b"".join(entry.content for entry in entries if entry.stream == stream)


@given(pieces=PIECES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_come_back(tmp_path: Path, pieces: list[tuple[str, bytes]]) -> None:
    path = tmp_path / "log"
    path.unlink(missing_ok=True)
    log = LogWriter(path)
    for stream, content in pieces:
        log.write(stream, content)
    log.close()
    entries = list(read_log(path))
    for stream in ("stdout", "stderr"):
        written = b"".join(content for name, content in pieces if name == stream)
        assert joined(entries, stream) == written


def test_format(tmp_path: Path) -> None:
    log = LogWriter(tmp_path / "log")
    log.write("stdout", b"one\ntwo")
    log.close()
    lines = (tmp_path / "log").read_text().splitlines()
    time = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"
    assert re.fullmatch(f"{time} stdout F one", lines[0])
    assert re.fullmatch(f"{time} stdout P two", lines[1])
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


def test_size_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = LogWriter(path, file_bytes=1000)
    for number in range(200):
        log.write("stdout", b"line %03d\n" % number)
    log.close()
    assert path.stat().st_size <= 1000
    assert rotated(path).stat().st_size <= 1000
    entries = list(read_log(path))
    numbers = [int(entry.content[5:]) for entry in entries]
    assert numbers == list(range(200 - len(numbers), 200))
    assert len(numbers) > 20


def test_a_writer_goes_on_where_the_last_one_stopped(tmp_path: Path) -> None:
    for content in (b"a\n", b"b\n"):
        log = LogWriter(tmp_path / "log")
        log.write("stderr", content)
        log.close()
    assert joined(list(read_log(tmp_path / "log")), "stderr") == b"a\nb\n"


def test_following_sees_everything_over_a_rotation(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = LogWriter(path, file_bytes=100_000)
    writing = threading.Event()

    def write() -> None:
        for number in range(2000):
            log.write("stdout", b"line %d\n" % number)
        writing.set()

    thread = threading.Thread(target=write)
    thread.start()
    entries = list(read_log(path, follow=True, is_running=lambda: not writing.is_set()))
    thread.join()
    log.close()
    expected = b"".join(b"line %d\n" % number for number in range(2000))
    assert joined(entries, "stdout") == expected


def test_a_half_record_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"T stdout F whole\nT stdout F ha")
    assert [entry.content for entry in read_log(path)] == [b"whole\n"]
    answers = iter([True, False])

    def is_running() -> bool:
        with path.open("ab") as file:
            file.write(b"lf\n" if next(answers) else b"")
        return False

    found = [entry.content for entry in read_log(path, follow=True, is_running=is_running)]
    assert found == [b"whole\n", b"half\n"]


def test_a_log_that_is_deleted_is_read_to_its_end(tmp_path: Path) -> None:
    """A container with --rm takes its log with it."""
    path = tmp_path / "log"
    log = LogWriter(path)
    log.write("stdout", b"first\n")
    answers = iter([True, False])

    def is_running() -> bool:
        if answer := next(answers):
            log.write("stdout", b"last\n")
            path.unlink()
        return answer

    found = read_log(path, follow=True, is_running=is_running)
    assert [entry.content for entry in found] == [b"first\n", b"last\n"]
    log.close()


def test_a_log_is_waited_for(tmp_path: Path) -> None:
    """While its container is being made there is none yet."""
    path = tmp_path / "log"
    answers = iter([True, False, False])

    def is_running() -> bool:
        if answer := next(answers):
            assert not path.exists()
        else:
            path.write_bytes(b"T stdout F late\n")
        return answer

    found = read_log(path, follow=True, is_running=is_running)
    assert [entry.content for entry in found] == [b"late\n"]


def test_lines_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"junk\n\nT stdout F good\n")
    assert [entry.content for entry in read_log(tmp_path / "log")] == [b"good\n"]


def test_no_log_is_an_empty_one(tmp_path: Path) -> None:
    assert list(read_log(tmp_path / "none")) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_drops_output(tmp_path: Path) -> None:
    os.symlink("/dev/full", tmp_path / "log")
    log = LogWriter(tmp_path / "log")
    log.write("stdout", b"lost\n")
    assert log.dropped_bytes == 5
    log.close()


def pieces(*written: tuple[str, bytes]) -> list[LogEntry]:
    return [LogEntry(str(n), stream, content) for n, (stream, content) in enumerate(written)]


def test_a_file_that_cannot_be_begun_is_begun_later(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = LogWriter(path, file_bytes=100)
    log.write("stdout", b"a" * 60 + b"\n")
    with few_descriptors(os.getpid()):
        log.write("stdout", b"b" * 60 + b"\n")
    assert log.dropped_bytes == 61
    other = os.open(os.devnull, os.O_RDONLY)
    log.write("stdout", b"c" * 60 + b"\n")
    log.close()
    os.close(other)  # it was nobody else's
    assert [entry.content[:1] for entry in read_log(path)] == [b"a", b"c"]


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, []), (1, [b"d"]), (2, [b"c\n", b"d"]), (4, [b"a", b"b\n", b"A\n", b"c\n", b"d"])],
)
def test_last_lines(count: int, expected: list[bytes]) -> None:
    """One in two pieces is one line, wherever the other stream comes between."""
    out, err = "stdout", "stderr"
    written = pieces((out, b"a"), (err, b"b\n"), (out, b"A\n"), (out, b"c\n"), (err, b"d"))
    assert [entry.content for entry in last_lines(written, count)] == expected
    assert list(last_lines([], count)) == []


def test_a_piece_of_an_older_line_is_not_shown() -> None:
    written = pieces(("stdout", b"a"), ("stderr", b"b\n"), ("stdout", b"A\n"))
    assert [entry.content for entry in last_lines(written, 1)] == [b"b\n"]


def test_the_tail_goes_across_files_and_what_follows_is_whole(tmp_path: Path) -> None:
    log = LogWriter(tmp_path / "log", file_bytes=150)
    for number in range(4):
        log.write("stdout", b"line %d\n" % number)
    assert rotated(tmp_path / "log").exists()
    more = list(range(4, 7))

    def is_running() -> bool:
        if not more:
            return False
        log.write("stdout", b"line %d\n" % more.pop(0))
        return True

    found = read_log(tmp_path / "log", tail=3, follow=True, is_running=is_running)
    assert [entry.content for entry in found] == [b"line %d\n" % n for n in range(1, 7)]
    log.close()
