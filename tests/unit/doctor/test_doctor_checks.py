# SPDX-License-Identifier: Apache-2.0
"""What the doctor says of directories, clocks, registries and images that are not well."""

from __future__ import annotations

import base64
import json
import os
import shutil
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from firstread import config
from firstread.config import RegistryTable
from firstread.doctor import running
from firstread.doctor.engines import _controllers, check_engines
from firstread.doctor.finding import Finding
from firstread.doctor.host import check_clock, check_read_ahead
from firstread.doctor.preflight import check_node
from firstread.doctor.reach import check_image, clock_skew
from firstread.doctor.running import check_configuration, daemon_status
from firstread.oci.reference import parse_reference
from firstread.registry.options import AccessOptions
from firstread.run.cgroups import Cgroups
from firstread.testing.command import firstread
from firstread.testing.images import feature_image, write_layout
from firstread.testing.plainimage import put_plain_image
from firstread.testing.registry import PASSWORD, USERNAME, DockerRegistry
from firstread.testing.scripted import ScriptedRegistry


def named(checks: list[Finding], name: str) -> Finding:
    (found,) = (check for check in checks if check.name == name)
    return found


def checked(tmp_path: Path, name: str) -> Finding:
    return named(
        list(check_node(tmp_path / "root", tmp_path / "run", daemon_status(tmp_path / "run"))), name
    )


# The node.


def test_absent_parts_pass(tmp_path: Path) -> None:
    for check in check_node(tmp_path / "root", tmp_path / "run", daemon_status(tmp_path / "run")):
        assert check.ok, check
    assert "is made when" in checked(tmp_path, "store directory").detail
    assert "none runs" in checked(tmp_path, "daemon").detail
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("mode", "status"), [(0o700, "ok"), (0o750, "warn"), (0o755, "warn"), (0o770, "fail")]
)
def test_modes_of_directories(tmp_path: Path, mode: int, status: str) -> None:
    for name, what in (("root", "store directory"), ("run", "run directory")):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(mode)
        found = checked(tmp_path, what)
        assert found.status == status, found
        assert (found.fix is None) == (status == "ok")
        if found.fix:
            assert f"chmod 700 {tmp_path / name}" in found.fix


def test_a_parent_that_everybody_can_write_to(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    assert checked(tmp_path, "store directory").status == "fail"
    tmp_path.chmod(0o1777)
    assert checked(tmp_path, "store directory").status == "ok"


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a directory away: needs root")
def test_a_directory_of_another_user(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir(mode=0o700)
    os.chown(tmp_path / "root", 65534, 65534)
    assert "belongs to user 65534" in checked(tmp_path, "store directory").detail
    assert checked(tmp_path, "store directory").status == "fail"


@pytest.mark.parametrize(("name", "what"), [("root", "store directory"), ("run", "run directory")])
def test_a_file_in_the_place_of_a_directory(tmp_path: Path, name: str, what: str) -> None:
    (tmp_path / name).write_bytes(b"")
    found = checked(tmp_path, what)
    assert (found.status, found.detail) == ("fail", f"{tmp_path / name} is no directory")


@pytest.mark.parametrize(
    ("seconds", "status"),
    [(0, "ok"), (-20, "ok"), (40, "warn"), (-40, "warn"), (400, "fail"), (-86400, "fail")],
)
def test_clocks(seconds: int, status: str) -> None:
    now = time.time()
    found = clock_skew(formatdate(now - seconds, usegmt=True), now)
    assert found.status == status
    assert ("behind" in found.detail) == (seconds <= 0) or not seconds
    assert check_clock().status == "ok"


def test_read_ahead_that_can_be_set(tmp_path: Path) -> None:
    assert check_read_ahead(tmp_path).status == "ok"


def test_read_ahead_that_nobody_can_set(tmp_path: Path) -> None:
    found = check_read_ahead(tmp_path / "missing")
    assert found.status == "warn"
    assert "stays as the kernel has it" in found.detail


@pytest.mark.parametrize("date", ["", "nonsense", "Wed, 21 Oct 999999999999 07:28:00 GMT"])
def test_a_registry_without_a_clock(date: str) -> None:
    assert clock_skew(date, time.time()).status == "ok"


def test_control_groups() -> None:
    everything = frozenset({"cpu", "memory", "pids"})
    assert _controllers(Cgroups(True, everything, swap=True)).status == "ok"
    lacking = _controllers(Cgroups(True, frozenset({"cpu", "pids"}), swap=False))
    assert (lacking.status, lacking.detail) == ("warn", "no limits of memory")
    assert _controllers(Cgroups(False, everything, swap=True)).status == "warn"


def test_the_runtime_of_this_machine() -> None:
    if not (shutil.which("crun") or shutil.which("runc")):
        pytest.skip("no runtime is installed")
    found = named(list(check_engines()), "container runtime")
    assert found.status == "ok"
    assert "version" in found.detail


# Images.


@pytest.fixture(scope="module")
def registry() -> Iterator[DockerRegistry]:
    with DockerRegistry(login=True) as running:
        yield running


def login(folder: Path, registry: DockerRegistry, password: str = PASSWORD) -> Path:
    auth = base64.b64encode(f"{USERNAME}:{password}".encode()).decode()
    path = folder / "config.json"
    path.write_text(json.dumps({"auths": {registry.host: {"auth": auth}}}))
    path.chmod(0o600)
    return path


def image_checks(reference: str, auth_file: Path | None) -> list[Finding]:
    return check_image(parse_reference(reference), AccessOptions(auth_file=auth_file))


def test_an_image_that_can_be_had(
    registry: DockerRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = login(tmp_path, registry)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    put_plain_image(f"{registry.host}/plain:1")
    checks = image_checks(f"{registry.host}/plain:1", path)
    assert [(check.name, check.status) for check in checks] == [
        ("credentials", "ok"),
        ("registry", "ok"),
        ("clock against the registry", "ok"),
        ("image", "ok"),
        ("range requests", "ok"),
    ]
    assert "4096 bytes of sha256:" in checks[-1].detail
    path.chmod(0o644)
    assert named(image_checks(f"{registry.host}/plain:1", path), "credentials").status == "warn"
    assert PASSWORD not in repr(checks)


def test_the_file_that_has_the_credentials_is_the_one_that_others_may_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    podman = tmp_path / "auth.json"
    podman.write_text(json.dumps({"auths": {"127.0.0.1:1": {"username": "u", "password": "p"}}}))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(podman))
    for mode, status in ((0o644, "warn"), (0o600, "ok")):
        podman.chmod(mode)
        assert named(image_checks("127.0.0.1:1/a:b", None), "credentials").status == status


@pytest.mark.parametrize("password", ["wrong", ""])
def test_credentials_that_are_refused(
    registry: DockerRegistry, tmp_path: Path, password: str
) -> None:
    path = login(tmp_path, registry, password)
    *_, last = image_checks(f"{registry.host}/plain:1", path)
    assert last.status == "fail"
    assert last.fix is not None
    assert "log in" in last.fix


def test_a_file_of_credentials_that_is_damaged(registry: DockerRegistry, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("{")
    (only,) = image_checks(f"{registry.host}/plain:1", path)
    assert (only.name, only.status) == ("credentials", "fail")


def test_a_registry_that_is_not_there(tmp_path: Path) -> None:
    *_, last = image_checks("127.0.0.1:1/a:b", None)
    assert (last.name, last.status) == ("registry", "fail")
    assert "127.0.0.1:1" in last.detail


# What a script says; the check that fails, and what its line and its advice have in them.
ANSWERS = {
    "GET /manifests/ status 401 x*": ("image", "401 Unauthorized", "log in with"),
    "GET /manifests/ status 403 x*": ("image", "403 Forbidden", "this account may do this"),
    "GET /manifests/ status 404 x*": ("image", "404 Not Found", "check the name"),
    "GET /manifests/ status 429 Retry-After=0 x*": ("image", "429 Too Many", "limits requests"),
    "GET /v2/ status 503 Retry-After=0 x*": ("registry", "503 Service", "later"),
    "GET /v2/ lost x*": ("registry", "hung up", "later"),
    "GET /blobs/ status 404 x*": ("range requests", "is missing", "push it again"),
    "GET /blobs/ status 416 x*": ("range requests", "has less than", "push it again"),
    "GET /blobs/ ignore-range x*": ("range requests", "", ""),
}


@pytest.mark.parametrize("script", ANSWERS)
def test_a_registry_that_answers_wrongly(script: str) -> None:
    name, detail, fix = ANSWERS[script]
    with ScriptedRegistry() as registry:
        reference = f"{registry.host}/a/plain:1"
        put_plain_image(f"docker://{reference}")
        registry.script(script)
        *before, last = image_checks(reference, None)
    assert all(check.ok for check in before)
    assert (last.name, last.status) == (name, "fail")
    assert detail in last.detail
    assert last.fix is not None
    assert fix in last.fix


def test_an_image_that_is_not_there(registry: DockerRegistry, tmp_path: Path) -> None:
    *_, last = image_checks(f"{registry.host}/none:1", login(tmp_path, registry))
    assert (last.name, last.status) == ("image", "fail")


def test_an_image_with_a_conversion_that_is_attached(tmp_path: Path) -> None:
    write_layout(feature_image(), tmp_path / "layout", "1")
    name = f"oci:{tmp_path}/layout:1"
    assert firstread("convert", "--attach", name).code == 0
    checks = check_image(parse_reference(name), AccessOptions())
    assert "attached to sha256:" in named(checks, "image").detail
    assert [check.status for check in checks] == ["ok"] * len(checks)
    assert named(checks, "range requests")


def test_what_the_configuration_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (running, config):
        monkeypatch.setattr(module, "configuration", lambda: tmp_path / "none.toml")
    settings, check = check_configuration(None, None)
    assert (settings, check.ok) == (RegistryTable(), True)
    assert "all is as by default" in check.detail
    path = tmp_path / "config.toml"
    path.write_text("[registry]\nconnect_timeout_s = 3\n")
    settings, check = check_configuration(path, None)
    assert (settings.connect_timeout_s, check.detail) == (3, str(path))
    daemon = {"configuration": {"file": "/etc/x.toml", "registry": {"stall_timeout_s": 7}}}
    settings, check = check_configuration(None, daemon)
    assert settings.stall_timeout_s == 7
    assert "daemon that runs: /etc/x.toml" in check.detail
    for text in ("[registry]\nconnect_timeout_s = 0\n", "["):
        path.write_text(text)
        settings, check = check_configuration(path, daemon)
        assert (settings, check.status) == (RegistryTable(), "fail")
        assert str(path) in check.detail
    assert check_configuration(tmp_path / "gone", None)[1].status == "fail"


def test_an_image_that_is_not_converted(tmp_path: Path) -> None:
    write_layout(feature_image(), tmp_path / "layout")
    (only,) = image_checks(f"oci:{tmp_path}/layout:latest", None)
    assert (only.name, only.status) == ("image", "fail")
    assert only.fix is not None
    assert "firstread convert" in only.fix


@pytest.mark.parametrize(("kind", "name"), [("oci", "image"), ("oci-archive", "source")])
def test_a_place_on_disk_that_is_not_there(tmp_path: Path, kind: str, name: str) -> None:
    (only,) = image_checks(f"{kind}:{tmp_path}/none:latest", None)
    assert (only.name, only.status) == (name, "fail")


def test_each_endpoint_of_a_registry(
    registry: DockerRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = login(tmp_path, registry)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    put_plain_image(f"{registry.host}/plain:1")
    directory = tmp_path / registry.host
    directory.mkdir()
    (directory / "hosts.toml").write_text(
        f'server = "http://{registry.host}"\n'
        f'[host."http://127.0.0.1:1"]\n'
        f'[host."http://localhost:{registry.host.rpartition(":")[2]}"]\n'
    )
    options = AccessOptions(auth_file=path, hosts_dirs=(tmp_path,), retries=0)
    checks = check_image(parse_reference(f"{registry.host}/plain:1"), options)
    port = registry.host.rpartition(":")[2]
    assert [(check.name, check.status) for check in checks] == [
        ("credentials", "ok"),
        ("mirror 127.0.0.1:1", "warn"),
        (f"mirror localhost:{port}", "ok"),
        (f"clock against localhost:{port}", "ok"),
        ("registry", "ok"),
        ("clock against the registry", "ok"),
        ("image", "ok"),
        ("range requests", "ok"),
    ]
