# SPDX-License-Identifier: Apache-2.0
"""What tools/release makes of the commands, the configuration and the lock files.

`make test-deb` tries the whole package; these need no root, no network and no dpkg.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
from tests.packages.imported import image_of_the_daemonset
from tools.release.debpackage import CONFIG, SCRIPTS, UNITS, debian_version
from tools.release.manpages import contexts, pages, settings
from tools.release.programs import main, source_date
from tools.release.wheelhouse import LOCK, TOP, pythons

from firstread import __version__
from firstread.config import Config, load_config
from firstread.device.syscalls import NUMBERS
from firstread.errors import NodeError, UsageError
from firstread.testing.patience import PATIENCE_S

EPOCH = 1_700_000_000
DEBIAN = TOP / "packaging/debian"
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),  # whose table arm64 has
}


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    return pages(EPOCH)


def shown(page: str) -> str:
    """Return a page without the marks of troff."""
    return re.sub(r"\\f[BR]", "", page).replace("\\-", "-")


@pytest.mark.parametrize("context", list(contexts()), ids=lambda ctx: ctx.command_path)
def test_each_command_and_option_is_in_its_page(
    context: click.Context, made: dict[str, str]
) -> None:
    page = shown(made[context.command_path.replace(" ", "-") + ".1"])
    names = [
        name
        for each in context.command.get_params(context)
        if isinstance(each, click.Option) and not each.hidden
        for name in (*each.opts, *each.secondary_opts)
    ]
    assert "--help" in names
    assert [name for name in names if not re.search(rf"(?m)^(.* )?{name}\b", page)] == []
    if isinstance(context.command, click.Group):
        commands = context.command.list_commands(context)
        assert [each for each in commands if f"-{each}(1)" not in page] == []


def test_pages_have_a_form_that_man_takes(made: dict[str, str]) -> None:
    for name, page in made.items():
        title, section = name.removesuffix(name[-2:]), name[-1]
        assert re.search(rf"^\.TH {title.upper()} {section} 2023-11-14 ", shown(page), re.MULTILINE)
        assert not re.search(r"(?m)^['.](?!(TH|SH|TP|PP|nf|fi)\b|\\\")", page), name


@pytest.mark.skipif(not shutil.which("man"), reason="there is no man")
def test_man_finds_no_fault_in_a_page(made: dict[str, str]) -> None:
    """One with a table of commands, one with many options, one with text as it is."""
    for name in ("firstread.1", "firstread-run.1", "firstread.toml.5"):
        done = subprocess.run(
            ("man", "--warnings", "--local-file", "-"),
            input=made[name],
            env=os.environ | {"LC_ALL": "C.UTF-8"},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=True,
        )
        assert done.stderr == "", name


def test_exit_codes_are_those_of_the_errors(made: dict[str, str]) -> None:
    codes = re.findall(r"^\.TP\n(\d+)$", shown(made["firstread.1"]), re.MULTILINE)
    assert codes[:6] == ["0", "1", "2", "3", "4", "5"]


def test_the_settings_of_the_docstring_are_the_defaults(tmp_path: Path) -> None:
    """The package's configuration is this text, commented out."""
    document = tomllib.loads(settings())
    assert {table: set(values) for table, values in document.items()} == {
        table: set(values) for table, values in Config().to_builtins().items()
    }
    path = tmp_path / "config.toml"
    path.write_text(settings())
    assert load_config(path) == Config()


def test_the_lock_file_of_the_package_is_a_part_of_the_other() -> None:
    entries = re.split(r"\n(?=\S)", LOCK.read_text().strip())
    everything = (TOP / "requirements.lock").read_text()
    assert [entry for entry in entries if entry not in everything] == []
    named = {entry.partition("==")[0] for entry in entries}
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    direct = {re.split("[=<>~;]", each)[0].replace(".", "-") for each in project["dependencies"]}
    assert direct <= named


def test_no_file_names_a_package_registry() -> None:
    for lock in (LOCK, TOP / "requirements.lock"):
        assert "://" not in lock.read_text()


def test_the_daemonset_names_the_image_of_this_version() -> None:
    assert image_of_the_daemonset() == f"registry.example/firstread-node:{__version__}"


def test_pythons_are_those_of_the_classifiers() -> None:
    assert pythons() == ["3.11", "3.12", "3.13"]


@pytest.mark.parametrize(
    ("version", "debian"),
    [
        ("0.2.0", "0.2.0"),
        ("1.0rc2", "1.0~rc2"),
        ("1.0.dev3", "1.0~dev3"),
        ("2.1.post1", "2.1.post1"),
    ],
)
def test_prereleases_come_before_their_release(version: str, debian: str) -> None:
    assert debian_version(version) == debian


def test_the_calls_of_each_architecture_have_the_numbers_of_the_headers() -> None:
    for machine, header in HEADERS.items():
        if not header.exists():
            pytest.skip(f"there is no {header}")
        text = header.read_text()
        found = dict(re.findall(r"^#define __NR_(\w+)\s+(\d+)", text, re.MULTILINE))
        assert {name: int(found[name]) for name in NUMBERS[machine]} == NUMBERS[machine]


@pytest.mark.parametrize("script", [*SCRIPTS, "rtupdate"])
def test_maintainer_scripts_are_valid(script: str) -> None:
    subprocess.run(("sh", "-n", DEBIAN / script), check=True, timeout=PATIENCE_S)
    text = (DEBIAN / script).read_text()
    assert text.startswith("#!/bin/sh\n# SPDX-License-Identifier: Apache-2.0\n")
    assert "\nset -e\n" in text
    named = set(re.findall(r"firstread[\w-]*\.service", text))
    assert named <= set(UNITS)
    assert f"/{CONFIG}" not in text  # dpkg owns it


def run_script(
    script: str, *arguments: str, scratch: Path, fails: str = "-"
) -> tuple[str, list[str]]:
    """Run a maintainer script as if systemd had booted; return what it printed, and its calls.

    Args:
        script: its name.
        arguments: of dpkg.
        scratch: an empty directory.
        fails: the call that fails.
    """
    log = scratch / "log"
    for name in ("py3clean", "py3compile", "systemctl", "firstread"):
        program = scratch / name
        program.write_text(
            f'#!/bin/sh\necho "{name} $*" >>{log}\n[ "{name} $*" != "{fails}" ] || exit 1\n'
            + ('echo \'{"daemon": {"pid": 1}}\'\n' if name == "firstread" else "")
        )
        program.chmod(0o755)
    text = (DEBIAN / script).read_text().replace("/run/systemd/system", str(scratch))
    done = subprocess.run(
        ("sh", "-c", text, script, *arguments),
        env={"PATH": f"{scratch}:/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    calls = log.read_text().splitlines()
    return done.stdout, [call for call in calls if not call.startswith("py3")]


def test_an_upgrade_reloads_and_never_restarts_the_daemon(tmp_path: Path) -> None:
    said, calls = run_script("postinst", "configure", "0.0.9", scratch=tmp_path)
    assert said == ""
    assert calls == [
        "systemctl daemon-reload",
        "systemctl --quiet is-active firstread.service",
        "systemctl reload firstread.service",
        "systemctl try-restart firstread-snapshotter.service",
    ]


def test_a_reload_that_fails_leaves_the_package_configured(tmp_path: Path) -> None:
    fails = "systemctl reload firstread.service"
    said, calls = run_script("postinst", "configure", "0.0.9", scratch=tmp_path, fails=fails)
    assert "the version that ran before serves on" in said
    assert f"to try again: {fails}" in said
    assert calls[-1] == "systemctl try-restart firstread-snapshotter.service"


def test_a_daemon_that_a_command_started_is_upgraded_too(tmp_path: Path) -> None:
    fails = "systemctl --quiet is-active firstread.service"
    _, calls = run_script("postinst", "configure", "0.0.9", scratch=tmp_path, fails=fails)
    assert calls[2:4] == ["firstread version --json", "firstread daemon --reload"]


def test_an_installation_starts_nothing(tmp_path: Path) -> None:
    _, calls = run_script("postinst", "configure", "", scratch=tmp_path)
    assert calls == ["systemctl daemon-reload"]


def test_only_a_removal_stops_the_daemon(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    run_script("prerm", "upgrade", "0.2.0", scratch=tmp_path / "one")
    assert (tmp_path / "one/log").read_text() == "py3clean -p firstread\n"
    _, calls = run_script("prerm", "remove", scratch=tmp_path / "two")
    assert calls == [
        "systemctl stop firstread-snapshotter.service firstread.service",
        "firstread version --json",
        "firstread daemon --stop",
    ]


def test_a_build_needs_a_date(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    assert main(lambda: [str(source_date())]) == UsageError.exit_code
    assert capsys.readouterr().err == (
        "failed: SOURCE_DATE_EPOCH is no number of seconds\n  make sets it\n"
    )


def test_a_build_that_fails_says_why(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.release.debpackage", f"{tmp_path}/none.whl"]
    places = [f"--cache={tmp_path}/cache", f"--output={tmp_path}/out"]
    done = subprocess.run(
        [*command, *places],
        cwd=TOP,
        env=os.environ | {"SOURCE_DATE_EPOCH": "1", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (done.returncode, done.stdout) == (NodeError.exit_code, "")
    assert done.stderr.startswith("failed: ")
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []
