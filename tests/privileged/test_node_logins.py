# SPDX-License-Identifier: Apache-2.0
"""Credentials for the life of a mount change, expire and come back, and show up nowhere."""

from __future__ import annotations

import base64
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from firstread.testing.command import firstread
from firstread.testing.daemon import Daemon
from firstread.testing.lazymount import output
from firstread.testing.manager import ServiceManager
from firstread.testing.patience import PATIENCE_S
from firstread.testing.plainimage import PlainImage, put_plain_image
from firstread.testing.scripted import (
    IDENTITY_TOKEN,
    PASSWORD,
    SIGNATURE,
    TOKEN_PREFIX,
    USERNAME,
    ScriptedRegistry,
)
from firstread.units import KiB

pytestmark = pytest.mark.privileged

SECTOR = 256 * KiB
NEW = "open barley"


@contextmanager
def registry(
    auth: str, *, redirect: bool = False, says: str = "as the script says"
) -> Iterator[tuple[ScriptedRegistry, str, PlainImage]]:
    """Yield a registry that wants a login, the name of an image in it, and the image."""
    with ScriptedRegistry(auth=auth, redirect=redirect, says=says) as running:
        with ScriptedRegistry() as open_one:
            image = put_plain_image(f"docker://{open_one.host}/lazy/plain:1")
            running.blobs.update(open_one.blobs)
            running.manifests.update(open_one.manifests)
        yield running, f"{running.host}/lazy/plain:1", image


def write_login(directory: Path, host: str, **entry: str) -> None:
    """Put the credentials of `host` into a directory, atomically."""
    directory.mkdir(exist_ok=True)
    path = directory / (host.replace(":", "_") + "_.json")
    scratch = path.with_suffix(".new")
    scratch.write_text(json.dumps(entry))
    scratch.replace(path)


@pytest.mark.parametrize("auth", ["basic", "token"])
def test_a_password_changes_while_the_image_is_mounted(tmp_path: Path, auth: str) -> None:
    logins = tmp_path / "logins"
    with (
        registry(auth) as (server, name, image),
        Daemon(tmp_path, "--credentials-dir", str(logins)) as daemon,
    ):
        write_login(logins, server.host, username=USERNAME, password=PASSWORD)
        place = daemon.mount(name)
        assert output(daemon.reading(place / "f0", 0, SECTOR)) == image.summary(0, 0, SECTOR)

        if auth == "token":  # the tokens of these tests let anybody pull; the old ones do not
            server.script("GET /token status 401 x5")
        server.change_password(NEW)
        reader = daemon.reading(place / "f3", 0, SECTOR)
        daemon.wait(lambda: "401" in (daemon.mounted(place)["last_error"] or ""))
        assert reader.poll() is None
        write_login(logins, server.host, username=USERNAME, password=NEW)
        assert output(reader) == image.summary(3, 0, SECTOR)
        assert daemon.mounted(place)["failed_reads"] == 0


def test_a_denial_that_lasts_longer_than_any_other_error_may(tmp_path: Path) -> None:
    with registry("") as (server, name, image), Daemon(tmp_path) as daemon:
        place = daemon.mount(name)
        server.script("GET /blobs/ status 403 x6")
        assert output(daemon.reading(place / "f0", 0, SECTOR)) == image.summary(0, 0, SECTOR)
        assert server.unused() == []
        assert daemon.mounted(place)["failed_reads"] == 0


def test_a_wrong_login_fails_after_the_stall_limit(tmp_path: Path) -> None:
    with registry("") as (server, name, _), Daemon(tmp_path, "--stall", "1") as daemon:
        place = daemon.mount(name)
        server.script("GET /blobs/ status 401 x999")
        assert output(daemon.reading(place / "f0")) == "errno 5"


def test_tokens_expire_while_the_image_is_mounted(tmp_path: Path) -> None:
    with registry("token") as (server, name, image), Daemon(tmp_path) as daemon:
        place = daemon.mount(name)
        for number in range(4):
            server.revoke_tokens()
            said = output(daemon.reading(place / f"f{number}", 0, SECTOR))
            assert said == image.summary(number, 0, SECTOR)
        assert daemon.mounted(place)["fetch_errors"] == 0


def test_a_signed_address_expires_while_the_image_is_mounted(tmp_path: Path) -> None:
    with registry("", redirect=True) as (server, name, image), Daemon(tmp_path) as daemon:
        place = daemon.mount(name)
        server.seen.clear()
        assert output(daemon.reading(place / "f0", 0, SECTOR)) == image.summary(0, 0, SECTOR)
        server.script("GET /store/ status 403\nGET /store/ hangup 1000\nGET /store/ status 403")
        for number in (3, 6):
            said = output(daemon.reading(place / f"f{number}", 0, SECTOR))
            assert said == image.summary(number, 0, SECTOR)
        assert server.unused() == []
        assert len(server.asked("/v2/")) == 3  # once at first, and once for each expired one
        assert daemon.mounted(place)["failed_reads"] == 0


def test_a_password_on_stdin_outlives_the_fetcher_but_not_the_daemon(tmp_path: Path) -> None:
    with registry("basic") as (server, name, image), Daemon(tmp_path) as daemon:
        place = tmp_path / "mnt"
        place.mkdir()
        options = ("--username", USERNAME, "--password-stdin")
        refused = daemon.tell("wrong", "mount", name, place, *options)
        assert (refused.code, refused.stdout) == (4, "")
        assert daemon.tell(PASSWORD, "mount", name, place, *options).code == 0
        for number, killed in enumerate((daemon.fetcher, daemon.supervisor)):
            os.kill(killed, signal.SIGKILL)
            said = output(daemon.reading(place / f"f{number}", 0, SECTOR))
            assert said == image.summary(number, 0, SECTOR)
        daemon.wait(lambda: daemon.status()["fetcher"]["healthy"])

        server.change_password(NEW)
        reader = daemon.reading(place / "f3", 0, SECTOR)
        daemon.wait(lambda: "401" in (daemon.mounted(place)["last_error"] or ""))
        assert daemon.tell(NEW, "login", f"{server.host}/lazy/plain", *options).code == 0
        assert output(reader) == image.summary(3, 0, SECTOR)

        daemon.end_all(signal.SIGKILL)
        daemon.start()
        reader = daemon.reading(place / "f5", 0, SECTOR)
        daemon.wait(lambda: "401" in (daemon.mounted(place)["last_error"] or ""))
        assert daemon.tell(NEW, "login", server.host, *options).code == 0
        assert output(reader) == image.summary(5, 0, SECTOR)
        assert daemon.mounted(place)["failed_reads"] == 0


def test_a_refused_login_changes_nothing(tmp_path: Path) -> None:
    options = ("--username", USERNAME, "--password-stdin")
    with registry("basic") as (server, name, image), Daemon(tmp_path) as daemon:
        for scope in (server.host, f"{server.host}/lazy/plain"):
            assert daemon.tell(PASSWORD, "login", scope, *options).code == 0
            refused = daemon.tell("wrong", "login", scope, *options)
            assert (refused.code, refused.stdout) == (4, "")
            assert "401" in refused.stderr
            assert "nothing was kept" in refused.stderr
        place = daemon.mount(name)  # with the first one
        assert output(daemon.reading(place / "f0", 0, SECTOR)) == image.summary(0, 0, SECTOR)
        server.script("GET /v2/ status 503 x9")
        assert daemon.tell(NEW, "login", server.host, *options).code == 4
        server.script("")
        daemon.end_all(signal.SIGTERM)
        assert daemon.tell("wrong", "login", server.host, *options).code == 4
        assert not daemon.client.alive()  # no daemon was started for it


def test_an_error_names_the_files_of_the_daemon(tmp_path: Path) -> None:
    """They differ from those of a successful command."""
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    for directory in (theirs, ours):
        directory.mkdir()
    state = tmp_path / "state"
    state.mkdir()
    environment = ("env", f"DOCKER_CONFIG={theirs}")
    with registry("basic") as (server, name, _), Daemon(state, command=environment) as daemon:
        entry = {"username": USERNAME, "password": PASSWORD}
        (ours / "config.json").write_text(json.dumps({"auths": {server.host: entry}}))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DOCKER_CONFIG", str(ours))
            assert firstread("inspect", f"docker://{name}").code == 0
            place = state / "mnt"
            place.mkdir()
            refused = daemon.run("mount", name, place)
        assert refused.code == 4
        said = f"the daemon (process {daemon.fetcher}) looked for credentials of {server.host} in"
        assert f"{said} its memory (nothing for it), {theirs}/config.json (not there)" in (
            refused.stderr
        )
        assert str(ours) not in refused.stderr


@pytest.mark.parametrize("way", ["reload", "replace"])
def test_a_password_on_stdin_outlives_an_upgrade(tmp_path: Path, way: str) -> None:
    with registry("basic") as (_, name, image), Daemon(tmp_path) as daemon:
        place = tmp_path / "mnt"
        place.mkdir()
        options = ("--username", USERNAME, "--password-stdin")
        assert daemon.tell(PASSWORD, "mount", name, place, *options).code == 0
        for upgrades in (1, 2):
            if way == "reload":
                ran = daemon.run("daemon", "--reload")
                assert ran.code == 0, ran
            else:
                daemon.replace()
            daemon.wait_version(upgrades)
            said = output(daemon.reading(place / f"f{3 * upgrades}", 0, SECTOR))
            assert said == image.summary(3 * upgrades, 0, SECTOR)
        assert daemon.mounted(place)["failed_reads"] == 0
        assert PASSWORD not in daemon.output()


def test_a_password_on_stdin_is_left_with_systemd(tmp_path: Path) -> None:
    with registry("basic") as (_, name, image), ServiceManager(tmp_path) as manager:
        daemon = Daemon(tmp_path, manager=manager)
        place = tmp_path / "mnt"
        place.mkdir()
        try:
            daemon.start()
            options = ("--username", USERNAME, "--password-stdin")
            assert daemon.tell(PASSWORD, "mount", name, place, *options).code == 0
            daemon.end_all(signal.SIGKILL)
            reader = daemon.reading(place / "f3", 0, SECTOR)
            daemon.start()
            assert output(reader) == image.summary(3, 0, SECTOR)
        finally:
            manager.drop()
            daemon.__exit__()


def test_a_helper_gives_another_password_while_the_image_is_mounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Docker's config.json names a helper, like that of a cloud whose passwords last hours."""
    secret = tmp_path / "secret"
    tools = tmp_path / "bin"
    tools.mkdir()
    helper = tools / "docker-credential-hours"
    helper.write_text(
        f"""#!/bin/sh
        printf '{{"Username": "{USERNAME}", "Secret": "%s"}}' "$(cat {secret})"
        """
    )
    helper.chmod(0o755)
    (tmp_path / "config.json").write_text('{"credsStore": "hours"}')
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    secret.write_text(PASSWORD)
    with registry("basic") as (server, name, image), Daemon(tmp_path) as daemon:
        place = daemon.mount(name)
        assert output(daemon.reading(place / "f0", 0, SECTOR)) == image.summary(0, 0, SECTOR)
        server.change_password(NEW)
        secret.write_text(NEW)
        assert output(daemon.reading(place / "f3", 0, SECTOR)) == image.summary(3, 0, SECTOR)
        mount = daemon.mounted(place)
        assert (mount["failed_reads"], mount["fetch_errors"]) == (0, 0)  # asked on the 401


def test_a_wrong_password_is_not_kept(tmp_path: Path) -> None:
    with registry("basic") as (_, name, _), Daemon(tmp_path) as daemon:
        place = tmp_path / "mnt"
        place.mkdir()
        options = ("--username", USERNAME, "--password-stdin")
        assert daemon.tell(PASSWORD, "mount", name, place, *options).code == 0
        assert daemon.run("umount", place).code == 0
        ran = daemon.tell("wrong", "mount", name, place, *options, "--pull", "always")
        assert ran.code == 4
        ran = daemon.run("mount", name, place, "--pull", "always")  # with the one before
        assert ran.code == 0, ran


SECRETS = {
    "password": PASSWORD,
    "new password": NEW,
    "identity token": IDENTITY_TOKEN,
    "bearer token": TOKEN_PREFIX,
    "signature": SIGNATURE,
    "header": "header-that-nobody-may-see",
    "proxy": "word-of-the-proxy",
}


def found_in(text: bytes) -> list[str]:
    """Return the secrets in `text`, plain or in base64 at any alignment."""
    found = []
    for name, secret in SECRETS.items():
        forms = [secret.encode(), secret.replace(" ", "+").encode()]
        for lead in range(3):
            coded = base64.b64encode(b"x" * lead + secret.encode())
            forms.append(coded[4 if lead else 0 : -4])
        if any(form in text for form in forms):
            found.append(name)
    return found


def test_secrets_are_found_by_the_test_itself() -> None:
    for user in ("", "a", "ab", USERNAME):
        assert found_in(b"Basic " + base64.b64encode(f"{user}:{PASSWORD}".encode())) == ["password"]
    assert found_in(f"?signature={SIGNATURE}-a".encode()) == ["signature"]
    assert found_in(b"nothing") == []


def test_no_secret_is_written_or_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that can fail does, at level DEBUG, and the registry echoes what it received."""
    monkeypatch.setenv("http_proxy", f"http://me:{SECRETS['proxy']}@proxy.invalid:1")
    says = f"you sent {PASSWORD}, {NEW}, {SECRETS['header']} and Bearer {TOKEN_PREFIX}1"
    state = tmp_path / "state"
    logins, hosts = tmp_path / "logins", tmp_path / "hosts"
    state.mkdir()
    with registry("token", redirect=True, says=says) as (server, name, image):
        directory = hosts / (server.host.replace(":", "_") + "_")
        directory.mkdir(parents=True)
        (directory / "hosts.toml").write_text(f"""
            server = "http://{server.host}"
            header = {{ X-Key = "{SECRETS["header"]}" }}
            """)
        write_login(logins, server.host, identitytoken=IDENTITY_TOKEN)
        options = ("--hosts-dir", str(hosts), "--credentials-dir", str(logins))
        answers: list[str] = []
        with Daemon(state, "--log-level", "DEBUG", *options) as daemon:
            place = daemon.mount(name)
            login = ("--username", USERNAME, "--password-stdin")
            with daemon.watching(place) as watcher:
                for ran in (
                    daemon.tell(PASSWORD, "login", server.host, *login),
                    daemon.tell(NEW, "login", f"{server.host}/other", *login),
                    daemon.tell(NEW, "mount", "registry.invalid/a", place, "--plain-http", *login),
                    daemon.tell(NEW, "mount", f"oci:{state}", place, *login),
                    daemon.tell(NEW, "login", "/", *login),
                ):
                    answers += [ran.stdout, ran.stderr]
                server.revoke_tokens()
                server.script(
                    """
                    GET /blobs/ status 401
                    GET /blobs/ status 403
                    GET /token status 500
                    GET /store/ status 403
                    GET /store/ hangup 100
                    GET /store/ flip 9
                    GET /blobs/ status 307 Location=http://me:open+barley@x.invalid/?signature=secret-of-the-store
                    GET /blobs/ status 500
                    """
                )
                said = output(daemon.reading(place / "f3", 0, SECTOR))
                assert said == image.summary(3, 0, SECTOR)
                os.kill(daemon.fetcher, signal.SIGABRT)
                said = output(daemon.reading(place / "f4", 0, SECTOR))
                assert said == image.summary(4, 0, SECTOR)
                answers.append(json.dumps(daemon.status()))
                answers.append(daemon.run("status", "--metrics").stdout)
                for pid in (daemon.supervisor, daemon.fetcher):
                    answers.append(Path(f"/proc/{pid}/cmdline").read_text())
                watcher.send_signal(signal.SIGINT)
                events = watcher.communicate(timeout=PATIENCE_S)[0]
            assert '"error"' in events
            answers.append(events)
            server.script("* / status 500 x9")
            for verb in (["inspect", name], ["convert", name, f"oci:{state}/x:1"]):
                ran = daemon.tell(NEW, *verb, "--retries", "0")
                answers += [ran.stdout, ran.stderr]
        for answer in answers:
            assert found_in(answer.encode()) == [], answer
        files = [path for path in state.rglob("*") if path.is_file()]
        assert any(path.name == "log" for path in files)
        for path in files:
            assert found_in(path.read_bytes()) == [], path
        log = (state / "log").read_text()
        assert '"debug"' in log
        assert "answers 403" in log
