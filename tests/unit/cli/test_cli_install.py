# SPDX-License-Identifier: Apache-2.0
"""``firstread install containerd`` and ``uninstall``: changed files, and output."""

from __future__ import annotations

import os
import resource
import tomllib
from pathlib import Path

import pytest

from firstread.snapshotter import imagefs
from firstread.snapshotter.configfile import BEGIN, END, Choice, added
from firstread.testing.command import firstread

SOCKET = "/run/firstread/snapshotter.sock"
CONFIG = (
    "version = 2\n\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\n  snapshotter = 'x' # y\n"
)
HOME = "/var/lib/firstread/snapshotter"
RESTART = "  restart containerd to apply it: systemctl restart containerd\n"


@pytest.fixture(autouse=True)
def _no_containerd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests ask the real one."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(imagefs, "ROOT", "/nonexistent")


def install(*arguments: str) -> str:
    ran = firstread("install", "containerd", "--config", "c.toml", *arguments)
    assert (ran.code, ran.stderr) == (0, ""), ran
    return ran.stdout


def uninstall(*arguments: str) -> str:
    ran = firstread("uninstall", "containerd", "--config", "c.toml", *arguments)
    assert (ran.code, ran.stderr) == (0, ""), ran
    return ran.stdout


def files() -> dict[str, str]:
    return {
        os.path.relpath(path): path.read_bytes().decode()
        for path in Path().rglob("*")
        if path.is_file()
    }


def test_there_and_back() -> None:
    Path("c.toml").write_text(CONFIG)
    Path("c.toml").chmod(0o640)
    assert install("--default") == (
        f"c.toml: proxy plugin firstread at {SOCKET}\n"
        "  the CRI plugin uses it for every image\n"
        "  c.toml.before-firstread is a copy of the old file\n" + RESTART
    )
    new = added(CONFIG, Choice(SOCKET, default=True, root=HOME))
    assert files() == {"c.toml": new, "c.toml.before-firstread": CONFIG}
    assert Path("c.toml").stat().st_mode & 0o777 == 0o640
    assert install("--default") == "c.toml: containerd knows the snapshotter already\n"
    assert uninstall() == "c.toml: restored\n" + RESTART
    assert files() == {"c.toml": CONFIG}
    assert Path("c.toml").stat().st_mode & 0o777 == 0o640
    assert uninstall() == "c.toml: has no block of firstread\n"


def test_the_path_that_the_kubelet_measures_exists() -> None:
    Path("root").mkdir()
    place = Path("root/io.containerd.snapshotter.v1.firstread").absolute()
    config = f'version = 2\nroot = "{place.parent}"\n'
    Path("c.toml").write_text(config)
    for _ in range(2):  # somebody removes it: the next run makes it again
        said = install("--root", "/a/store")
        assert place.readlink() == Path("/a/store/snapshotter")
        exports = tomllib.loads(Path("c.toml").read_text())["proxy_plugins"]["firstread"]["exports"]
        assert exports == {"root": "/a/store/snapshotter"}
        place.unlink()
    assert "already" in said
    install("--root", "/a/store", "--dry-run")
    assert not place.is_symlink()
    install("--root", "/another", "--dry-run")
    assert not place.is_symlink()
    assert f"{place} leads the kubelet to /another/snapshotter" in install("--root", "/another")
    uninstall("--dry-run")
    assert place.is_symlink()
    uninstall()
    assert not place.is_symlink()
    place.mkdir()
    install()
    assert place.is_dir()
    assert not place.is_symlink()  # it may belong to somebody
    uninstall()
    assert place.is_dir()


def test_choices_stand_in_one_line() -> None:
    ran = firstread("install")
    assert ran.code == 2
    assert ran.stderr == (
        "firstread: Missing argument '{containerd}'. Choose from: containerd\n"
        "  see 'firstread install --help'\n"
    )


def test_uninstall_says_that_it_restores_the_default() -> None:
    Path("c.toml").write_text(CONFIG)
    install("--default")
    assert install() == (
        f"c.toml: proxy plugin firstread at {SOCKET}\n"
        "  the CRI plugin no longer uses it for every image: that takes --default\n" + RESTART
    )
    assert Path("c.toml").read_text() == added(CONFIG, Choice(SOCKET, root=HOME))


def test_a_dry_run_prints_a_difference() -> None:
    Path("c.toml").write_text(CONFIG)
    assert install("--default", "--dry-run", "--socket", "/s").splitlines() == [
        "--- c.toml",
        "+++ c.toml",
        "@@ -1,4 +1,13 @@",
        " version = 2",
        " ",
        ' [plugins."io.containerd.grpc.v1.cri".containerd]',
        "-  snapshotter = 'x' # y",
        "+  disable_snapshot_annotations = false",
        '+  snapshotter = "firstread" # y',
        f"+{BEGIN}",
        *[
            f"+{line}"
            for line in added(CONFIG, Choice("/s", default=True, root=HOME)).splitlines()[6:7]
        ],
        "+[proxy_plugins.firstread]",
        '+  type = "snapshot"',
        '+  address = "/s"',
        "+  [proxy_plugins.firstread.exports]",
        f'+    root = "{HOME}"',
        f"+{END}",
    ]
    assert files() == {"c.toml": CONFIG}
    install("--default")
    before = files()
    assert "-[proxy_plugins.firstread]" in uninstall("--dry-run").splitlines()
    assert files() == before


def test_a_missing_file_is_created_and_removed() -> None:
    assert install() == f"c.toml: proxy plugin firstread at {SOCKET}\n" + RESTART
    assert files() == {"c.toml": added("version = 2\n", Choice(SOCKET, root=HOME))}
    assert uninstall() == "c.toml: removed, since it had no other content\n" + RESTART
    assert files() == {}


def test_changes_by_others_stay_and_so_does_the_copy() -> None:
    Path("c.toml").write_text(CONFIG)
    install()
    with Path("c.toml").open("a") as file:
        file.write("[metrics]\n")
    said = uninstall()
    assert said.startswith("c.toml: without firstread; it was changed since, so c.toml.before-")
    assert files() == {"c.toml": CONFIG + "[metrics]\n", "c.toml.before-firstread": CONFIG}


def test_a_copy_that_stayed_is_replaced() -> None:
    """The output promises the file as it was."""
    Path("c.toml").write_text(CONFIG)
    install()
    with Path("c.toml").open("a") as file:
        file.write("[metrics]\n")
    uninstall()
    assert "c.toml.before-firstread is a copy of the old file\n" in install()
    assert files()["c.toml.before-firstread"] == CONFIG + "[metrics]\n"
    assert uninstall() == "c.toml: restored\n" + RESTART
    assert files() == {"c.toml": CONFIG + "[metrics]\n"}


def test_a_symbolic_link_stays_one() -> None:
    Path("real").mkdir()
    Path("real/c.toml").write_text(CONFIG)
    Path("c.toml").symlink_to("real/c.toml")
    install("--default")
    assert Path("c.toml").is_symlink()
    assert files() == {
        "c.toml": added(CONFIG, Choice(SOCKET, default=True, root=HOME)),
        "real/c.toml": added(CONFIG, Choice(SOCKET, default=True, root=HOME)),
        "c.toml.before-firstread": CONFIG,
    }
    assert uninstall() == "c.toml: restored\n" + RESTART
    assert files() == {"c.toml": CONFIG, "real/c.toml": CONFIG}
    assert Path("c.toml").is_symlink()


def test_a_symbolic_link_to_nothing() -> None:
    Path("c.toml").symlink_to("real/c.toml")
    install()
    assert files().keys() == {"c.toml", "real/c.toml"}
    uninstall()
    assert files() == {}
    assert Path("c.toml").is_symlink()


def test_a_disabled_plugin_is_noted() -> None:
    Path("c.toml").write_text('disabled_plugins = ["cri"]\n')
    ran = firstread("install", "containerd", "--config", "c.toml", "--default")
    assert ran.code == 0
    assert ran.stderr == (
        "note: c.toml disables the CRI plugin, so Kubernetes cannot use containerd\n"
    )


# -- files that are imported -----------------------------------------------------------------------

IMPORTS = 'version = 3\nimports = ["conf.d/*.toml"]\n'


@pytest.mark.parametrize("default", [(), ("--default",)], ids=["plugin", "default"])
def test_a_file_of_its_own(default: tuple[str, ...]) -> None:
    Path("c.toml").write_text(IMPORTS)
    assert install("--drop-in", *default).startswith("conf.d/firstread.toml: proxy plugin")
    made = added("version = 3\n", Choice(SOCKET, bool(default), root=HOME))
    assert files() == {"c.toml": IMPORTS, "conf.d/firstread.toml": made}
    assert "already" in install("--drop-in", *default)
    install("--drop-in", "--socket", "/other")
    assert 'address = "/other"' in files()["conf.d/firstread.toml"]
    assert uninstall().startswith("conf.d/firstread.toml: ")
    assert "conf.d/firstread.toml" not in files()
    assert files()["c.toml"] == IMPORTS


PAUSE = "[plugins.'io.containerd.grpc.v1.cri']\nsandbox_image = 'my/pause:1'\n"
TWO = IMPORTS.replace("3", "2")


@pytest.mark.parametrize("name", ["conf.d/10-other.toml", "conf.d/zz.toml", "more/a.toml"])
@pytest.mark.parametrize("drop_in", [(), ("--drop-in",)], ids=["main", "drop-in"])
def test_a_section_that_is_imported(name: str, drop_in: tuple[str, ...]) -> None:
    """containerd would lose one of both, depending on the names."""
    Path("c.toml").write_text(TWO)
    Path("conf.d").mkdir()
    Path("conf.d/50.toml").write_text("imports = ['../more/*.toml', '../c.toml']\n")
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text(PAUSE)
    before = files()
    ran = firstread("install", "containerd", "--config", "c.toml", "--default", *drop_in)
    shown = name.replace("more", "conf.d/../more")
    assert ran.stderr == (
        f"firstread: {shown}: it has a section of the plugin io.containerd.grpc.v1.cri, and"
        " containerd takes that from one file only\n"
        '  write snapshotter = "firstread" and disable_snapshot_annotations = false there by hand,'
        " and leave out --default\n"
    )
    assert (ran.code, ran.stdout) == (2, "")
    assert files() == before
    install(*drop_in)  # proxy plugins are separate sections


def test_sections_of_other_plugins_that_are_imported() -> None:
    Path("c.toml").write_text(IMPORTS)
    Path("conf.d").mkdir()
    Path("conf.d/other.toml").write_text(
        "version = 3\n[plugins.'io.containerd.cri.v1.runtime']\nx = 1\n"
        "[plugins.'io.containerd.grpc.v1.cri']\nstream_server_port = '1'\n"
    )
    install("--default")
    assert uninstall().startswith("c.toml: restored")


def test_an_imported_file_that_is_damaged() -> None:
    Path("c.toml").write_text(IMPORTS)
    Path("conf.d").mkdir()
    for damage, words in (
        (b"x = ", "conf.d/a.toml: it is not valid TOML: Invalid value (at end of document)"),
        (b"\xff", "conf.d/a.toml is not valid TOML: it is not UTF-8"),
    ):
        Path("conf.d/a.toml").write_bytes(damage)
        ran = firstread("install", "containerd", "--config", "c.toml", "--default")
        assert (ran.code, ran.stderr.splitlines()[0]) == (2, f"firstread: {words}")
        assert Path("c.toml").read_text() == IMPORTS


# -- refusals --------------------------------------------------------------------------------------

REFUSED = {
    "not TOML": (
        "x = ",
        (),
        "c.toml: it is not valid TOML: Invalid value (at end of document)",
        "repair it first",
    ),
    "a plugin of our name": (
        "version = 2\n[proxy_plugins.firstread]\ntype = 'snapshot'\n",
        (),
        "c.toml: it has a section proxy_plugins.firstread that 'firstread install' did not write",
        "remove that section, or keep it and do without 'firstread install'",
    ),
    "no imports": (
        "version = 2\n",
        ("--drop-in",),
        "c.toml: it imports no directory",
        'write imports = ["./conf.d/*.toml"] at its top, or leave out --drop-in',
    ),
    "an import that would replace": (
        IMPORTS + "[plugins.'io.containerd.cri.v1.images']\nx = 1\n",
        ("--drop-in", "--default"),
        "c.toml: it has a section of the plugin io.containerd.cri.v1.images, which an imported one"
        " would replace",
        "leave out --drop-in, so that the section itself is changed",
    ),
    "a relative socket": ("", ("--socket", "s"), "--socket s is not an absolute path", None),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_changes_nothing(case: str) -> None:
    text, arguments, message, hint = REFUSED[case]
    Path("c.toml").write_text(text)
    ran = firstread("install", "containerd", "--config", "c.toml", *arguments)
    assert ran.stderr == f"firstread: {message}\n" + (f"  {hint}\n" if hint else "")
    assert (ran.code, ran.stdout) == (2, "")
    assert files() == {"c.toml": text}


@pytest.mark.parametrize("verb", ["install", "uninstall"])
def test_wrong_files(verb: str) -> None:
    Path("c.toml").write_bytes(b"\xff")
    ran = firstread(verb, "containerd", "--config", "c.toml")
    assert (ran.code, ran.stderr) == (
        2,
        "firstread: c.toml is not valid TOML: it is not UTF-8\n",
    )
    ran = firstread(verb, "docker")
    assert (ran.code, ran.stdout) == (2, "")
    assert "'docker' is not" in ran.stderr


def test_a_configuration_that_containerd_refuses_is_not_written(tmp_path: Path) -> None:
    Path("c.toml").write_text(CONFIG)
    program = tmp_path / "containerd"
    program.write_text("#!/bin/sh\necho 'containerd: no such thing' >&2\nexit 1\n")
    program.chmod(0o755)
    ran = firstread("install", "containerd", "--config", "c.toml")
    assert ran.code == 5
    assert ran.stderr == (
        "firstread: containerd does not accept the configuration: containerd: no such thing\n"
        "  nothing was changed\n"
    )
    assert files() == {"c.toml": CONFIG}
    Path("c.toml").write_text(IMPORTS)
    ran = firstread("install", "containerd", "--config", "c.toml", "--drop-in")
    assert ran.code == 5
    assert files() == {"c.toml": IMPORTS}


def test_a_file_that_cannot_be_written_leaves_nothing() -> None:
    Path("c.toml").write_text(CONFIG)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(CONFIG), before[1]))
    try:
        ran = firstread("install", "containerd", "--config", "c.toml")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (ran.code, ran.stdout) == (5, "")
    assert "cannot write the configuration" in ran.stderr
    assert files() == {"c.toml": CONFIG}


@pytest.mark.parametrize(("said", "version"), [("1.6.20~ds1", 2), ("v2.0.4", 3), ("?", 2)])
def test_a_new_file_has_the_version_of_the_program(tmp_path: Path, said: str, version: int) -> None:
    program = tmp_path / "containerd"
    program.write_text(f"#!/bin/sh\necho containerd github.com/containerd/containerd {said} x\n")
    program.chmod(0o755)
    install()
    assert files()["c.toml"].startswith(f"version = {version}\n")
