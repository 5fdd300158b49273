# SPDX-License-Identifier: Apache-2.0
"""The values that each flag accepts, and the messages that refuse the rest."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from firstread.errors import NodeError, UsageError
from firstread.run import parse
from firstread.run.parse import DeviceFlag, Mount, Rlimit
from firstread.units import GiB, MiB

ENVIRON = {"HOME": "/home/me", "EMPTY": ""}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/a:/b", Mount("/b", "bind", "/a", ("rbind", "rprivate", "rw"))),
        ("/a:/b:ro", Mount("/b", "bind", "/a", ("rbind", "rprivate", "rro"))),
        ("/a:/b:ro,z", Mount("/b", "bind", "/a", ("rbind", "rprivate", "rro"))),
        ("/a:/b:rshared", Mount("/b", "bind", "/a", ("rbind", "rshared", "rw"))),
        ("/only", "/only"),
        ("/a:/x/../b", Mount("/b", "bind", "/a", ("rbind", "rprivate", "rw"))),
        ("/x/../only", "/only"),
    ],
)
def test_volume(text: str, expected: Mount | str) -> None:
    assert parse.parse_volume(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "invalid volume specification: ''"),
        ("/a:", "invalid volume specification: '/a:'"),
        (":/a", "invalid volume specification: ':/a'"),
        ("/a:/b:ro:x", "invalid volume specification: '/a:/b:ro:x'"),
        ("data:/b", "invalid volume specification: 'data:/b': 'data' is not an absolute path"),
        ("/a:b", "invalid mount path: 'b' in '/a:b': it must be absolute"),
        ("/a:/", "invalid mount path: '/' in '/a:/'"),
        ("/a:/x/../..", "invalid mount path: '/' in '/a:/x/../..'"),
        ("/a:/b:bad", "invalid mode: 'bad' in volume '/a:/b:bad'"),
    ],
)
def test_volume_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse.parse_volume(text)
    assert caught.value.message == words


def test_equal_mount_points_are_told() -> None:
    assert Mount("/a//b/", "bind", "/x").target == Mount("/a/b", "bind", "/x").target


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("/run", ("nosuid", "nodev", "noexec")),
        ("/run:exec", ("nosuid", "nodev", "exec")),
        ("/run:size=1m,mode=1777", ("nosuid", "nodev", "noexec", "size=1m", "mode=1777")),
        ("/run:noexec", ("nosuid", "nodev", "noexec")),
    ],
)
def test_tmpfs(text: str, options: tuple[str, ...]) -> None:
    assert parse.parse_tmpfs(text) == Mount("/run", "tmpfs", "tmpfs", options)


def test_environment_of_the_caller() -> None:
    assert parse.parse_env("A=b=c", ENVIRON) == ("A", "b=c")
    assert parse.parse_env("A=", ENVIRON) == ("A", "")
    assert parse.parse_env("HOME", ENVIRON) == ("HOME", "/home/me")
    assert parse.parse_env("MISSING", ENVIRON) == ("MISSING", None)


def test_env_file() -> None:
    content = (
        b'\xef\xbb\xbf# comment\n\n  LEFT=kept \nQUOTED="x"\r\nHOME\nMISSING\nEMPTY\nEQ=a=b\nNONE='
    )
    assert parse.parse_env_file(content, ENVIRON, "f") == {
        "LEFT": "kept ",
        "QUOTED": '"x"',
        "HOME": "/home/me",
        "EMPTY": "",
        "EQ": "a=b",
        "NONE": "",
    }


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"=x", "env file f: no variable name on line 1"),
        (b"A=1\nA B=x", "env file f: variable 'A B' contains white space"),
        (b"A=1\n\xff=x", "env file f: invalid UTF-8 on line 2"),
    ],
)
def test_env_file_refused(content: bytes, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse.parse_env_file(content, ENVIRON, "f")
    assert caught.value.message == words


def test_env_file_is_bounded_and_there(tmp_path: Path) -> None:
    with pytest.raises(NodeError, match="cannot read the env file"):
        parse.read_env_file(str(tmp_path / "none"), ENVIRON)
    (tmp_path / "big").write_bytes(b"#" * (4 * MiB + 1))
    with pytest.raises(UsageError, match=r"larger than 4\.0 MiB"):
        parse.read_env_file(str(tmp_path / "big"), ENVIRON)


def test_memory() -> None:
    assert parse.parse_memory("6m") == 6 * MiB
    assert parse.parse_memory("1.5g") == 3 * GiB // 2
    assert parse.parse_memory("0") is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("5m", "the minimum is 6m"),
        ("99999999t", "no machine has that much"),
        ("-1", "'-1' is not a size"),
        ("", "'' is not a size"),
    ],
)
def test_a_memory_limit_that_is_none(text: str, why: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse.parse_memory(text)
    assert caught.value.message == f"invalid memory limit {text!r}: {why}"


def test_cpus() -> None:
    assert parse.parse_cpus("1.5", 2) == 1.5
    assert parse.parse_cpus(".5", 2) == 0.5
    assert parse.parse_cpus("0", 2) is None
    assert parse.parse_cpus("0.00", 2) is None
    for text in ("2.01", "0.001", "nan", "inf", "-1", "1e0", ""):
        with pytest.raises(UsageError, match=r"the range is from 0\.01 to 2\.00"):
            parse.parse_cpus(text, 2)


def test_rlimits() -> None:
    assert parse.parse_rlimit("nofile=10:20") == Rlimit("RLIMIT_NOFILE", 10, 20)
    assert parse.parse_rlimit("core=-1") == Rlimit("RLIMIT_CORE", -1, -1)
    for text in ("nofile", "nofile=x", "bad=1", "nofile=20:10", "nofile=-1:10", "nofile=1:2:3"):
        with pytest.raises(UsageError):
            parse.parse_rlimit(text)


def test_devices() -> None:
    assert parse.parse_device("/dev/a") == DeviceFlag("/dev/a", "/dev/a", "rwm")
    assert parse.parse_device("/dev/a:r") == DeviceFlag("/dev/a", "/dev/a", "r")
    assert parse.parse_device("/dev/a:/dev/b") == DeviceFlag("/dev/a", "/dev/b", "rwm")
    assert parse.parse_device("/dev/a:/dev/b:rw") == DeviceFlag("/dev/a", "/dev/b", "rw")
    for text in ("", "dev", "/dev/a:x", "/dev/a:/dev/b:rwx", "/dev/a:/b:r:w"):
        with pytest.raises(UsageError):
            parse.parse_device(text)


def test_extra_hosts() -> None:
    assert parse.parse_extra_host("db:10.0.0.1") == ("db", "10.0.0.1")
    assert parse.parse_extra_host("db=::1") == ("db", "::1")
    assert parse.parse_extra_host("db:[fe80::2]") == ("db", "fe80::2")
    for text in ("db", "db:", ":1.2.3.4", "db:1.2.3", "a b:1.2.3.4", "db:host-gateway"):
        with pytest.raises(UsageError):
            parse.parse_extra_host(text)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("SIGTERM", signal.SIGTERM),
        ("quit", signal.SIGQUIT),
        ("9", signal.SIGKILL),
        ("SIGRTMIN+3", signal.SIGRTMIN + 3),
        ("RTMAX-1", signal.SIGRTMAX - 1),
    ],
)
def test_signals(text: str, number: int) -> None:
    assert parse.parse_signal(text) == number


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (parse.parse_signal, "SIGNONE"),
        (parse.parse_signal, "0"),
        (parse.parse_signal, "99"),
        (parse.parse_signal, "SIG_DFL"),
        (parse.parse_signal, "RTMIN+99"),
        (parse.parse_signal, ""),
        (parse.check_name, "x"),
        (parse.check_name, "-ab"),
        (parse.check_name, "a/b"),
        (parse.check_hostname, "a b"),
        (parse.check_hostname, "-a"),
        (parse.check_hostname, "a" * 65),
        (parse.parse_label, "=x"),
        (parse.parse_tmpfs, "/run:color=red"),
        (parse.parse_tmpfs, "/run:size"),
        (parse.parse_tmpfs, "run"),
    ],
)
def test_refused(check: Callable[[str], object], text: str) -> None:
    with pytest.raises(UsageError):
        check(text)


def test_a_volume_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for text, source in ((".", ""), ("./a", "/a"), ("./a/../b", "/b"), ("..//x", "/../x")):
        mount = parse.parse_volume(f"{text}:/b")
        assert isinstance(mount, Mount)
        assert mount.source == os.path.normpath(f"{tmp_path}{source}")


NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("10m", NOW - 600),
        ("1h30m", NOW - 5400),
        ("1.5s", NOW - 1.5),
        ("250ms", NOW - 0.25),
        ("2d", NOW - 172_800),
        ("99999d", 0.0),
        ("1700000000", NOW),
        ("1700000000.5", NOW + 0.5),
        ("2023-11-14T22:13:20Z", NOW),
        ("2023-11-14T22:13:20.123456789Z", NOW + 0.123456),
        ("2023-11-14T23:13:20+01:00", NOW),
        ("1969-12-31T00:00:00Z", 0.0),
    ],
)
def test_moments(text: str, moment: float) -> None:
    assert parse.parse_moment(text, NOW) == moment


def test_a_moment_without_a_zone_is_local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC-2")
    time.tzset()
    try:
        assert parse.parse_moment("2023-11-15T00:13:20", NOW) == NOW
        assert parse.parse_moment("2023-11-15", NOW) == NOW - 800
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("text", ["", "soon", "-1", "1x", "m", "1e3", "9" * 13, "9" * 12, "10 m"])
def test_no_moments(text: str) -> None:
    with pytest.raises(UsageError, match="invalid time"):
        parse.parse_moment(text, NOW)
