# SPDX-License-Identifier: Apache-2.0
"""The flags together, and as click reads them from a command line."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from firstread.errors import UsageError
from firstread.run.options import CONTEXT_SETTINGS, RunOptions, parse_options, run_options


def read(*arguments: str) -> RunOptions:
    """Return the options of a command line, read by a command as `cli/run.py` has one."""
    seen: list[RunOptions] = []

    @click.command(context_settings=CONTEXT_SETTINGS)
    @run_options
    @click.option("--other", is_flag=True)
    def command(options: RunOptions, other: bool) -> None:
        assert not other
        seen.append(options)

    result = CliRunner().invoke(command, arguments)
    if isinstance(result.exception, UsageError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return seen[0]


def test_what_follows_the_image_is_the_command() -> None:
    options = read("--rm", "-it", "image", "sh", "-c", "echo", "--rm")
    assert (options.image, options.command) == ("image", ("sh", "-c", "echo", "--rm"))
    assert options.remove
    assert options.interactive
    assert options.tty


def test_defaults() -> None:
    assert read("image") == RunOptions(image="image")


def test_every_flag_arrives() -> None:
    options = read(
        *("-d", "--name", "web", "-w", "/srv", "-u", "app:staff", "--entrypoint", "/init"),
        *("--hostname", "h", "--read-only", "-m", "64m", "--cpus", "0.5", "--pids-limit", "7"),
        *("--network", "none", "--cap-add", "net_admin", "--cap-drop", "ALL", "--privileged"),
        *("--device", "/dev/null", "--ulimit", "nofile=5", "-l", "a=b", "--add-host", "x:1.2.3.4"),
        *("--security-opt", "no-new-privileges", "--security-opt", "seccomp=unconfined"),
        *("--tmpfs", "/run", "-v", "/anonymous", "-v", "/a:/b", "--runtime", "runc", "image"),
    )
    assert options.detach
    assert options.privileged
    assert options.read_only
    assert options.no_new_privileges
    assert not options.seccomp
    assert (options.name, options.workdir, options.user) == ("web", "/srv", "app:staff")
    assert (options.entrypoint, options.hostname) == (("/init",), "h")
    assert (options.memory_bytes, options.cpus, options.pids_limit) == (64 << 20, 0.5, 7)
    assert (options.network, options.runtime) == ("none", "runc")
    assert (options.cap_add, options.cap_drop) == (("CAP_NET_ADMIN",), ("ALL",))
    assert options.volumes == ("/anonymous",)
    assert [mount.destination for mount in options.mounts] == ["/b", "/run"]
    assert options.extra_hosts == (("x", "1.2.3.4"),)
    assert options.labels == {"a": "b"}


def test_single_variables_win_over_files(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("A=one\nB=one\n")
    (tmp_path / "two").write_text("B=two\nC=two\n")
    flags = {
        "env": ("C=flag", "GONE", "HOME"),
        "env_file": (str(tmp_path / "one"), str(tmp_path / "two")),
    }
    options = parse_options(flags, {"HOME": "/me"})
    assert options.env == {"A": "one", "B": "two", "C": "flag", "GONE": None, "HOME": "/me"}


def test_empty_entrypoint_clears_it() -> None:
    assert read("--entrypoint", "", "image").entrypoint == ()


def test_an_empty_text_is_none() -> None:
    """As of a variable that a script has not set."""
    assert read("--name", "", "-w", "", "-h", "", "-u", "", "--net", "", "image") == read("image")


def test_unlimited_pids() -> None:
    assert read("--pids-limit", "-1", "image").pids_limit is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-w", "srv"), "the working directory 'srv' is invalid, it needs to be an absolute path"),
        (("--network", "bridge"), "network bridge not found"),
        (("--cap-add", "fly"), "unknown capability: 'fly'"),
        (("-v", "/a:/x", "-v", "/b:/x/"), "duplicate mount point: /x/"),
        (("-v", "/a:/x", "--tmpfs", "/x"), "duplicate mount point: /x"),
        (("--security-opt", "apparmor=x"), "invalid --security-opt: 'apparmor=x'"),
        (("-e", "=x"), "invalid environment variable: '=x'"),
        (("-e", "A=\udcff"), r"not UTF-8: '\xff'"),
        (("-v", "/\udcff:/x"), r"not UTF-8: '/\xff'"),
        (("-l", "\udcff=x"), r"not UTF-8: '\xff'"),
    ],
)
def test_refused(arguments: tuple[str, ...], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(*arguments, "image")
    assert caught.value.message == words


def test_a_command_that_is_not_text() -> None:
    with pytest.raises(UsageError, match=r"not UTF-8: 'caf\\xe9'"):
        read("image", "ls", "caf\udce9")


def test_runtime_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRSTREAD_RUNTIME", "runc")
    assert read("image").runtime == "runc"
