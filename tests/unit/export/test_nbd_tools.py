# SPDX-License-Identifier: Apache-2.0
"""NBD exports as other programs see them: libnbd's and qemu's tools, plain and over TLS."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstread.testing.command import firstread, program
from firstread.testing.featurestory import content
from firstread.testing.images import Dir, File, Image, Layer, Whiteout, write_layout

IMAGE = Image([
    Layer([Dir("d/"), File("d/a", content("a", 5_000_000)), File("d/b", content("b", 700_000))]),
    Layer([Whiteout("d/b"), File("c", content("c", 3_000_000))]),
])  # fmt: skip


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with the image ``oci:out:1`` and, as ``raw``, its disk."""
    folder = tmp_path_factory.mktemp("image")
    with contextlib.chdir(folder):
        write_layout(IMAGE, "in")
        for arguments in (
            ("convert", "oci:in:latest", "oci:out:1", "--no-cache"),
            ("export", "oci:out:1", "--raw", "raw"),
        ):
            assert firstread(*arguments).code == 0
    return folder


@contextlib.contextmanager
def served(layout: Path, *arguments: str) -> Iterator[str]:
    command = program("export", "oci:out:1", "--json", *arguments)
    with subprocess.Popen(
        command, cwd=layout, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stderr
        try:
            yield json.loads(process.stdout.readline())["targets"][0]
        finally:
            process.send_signal(signal.SIGTERM)
            log = process.stderr.read().decode()
        assert (process.wait(), "Traceback" in log) == (0, False), log


@pytest.fixture
def uri(layout: Path, tmp_path: Path) -> Iterator[str]:
    with served(layout, "--nbd", f"unix:{tmp_path / 's'}") as found:
        yield found


def run(*command: str | Path) -> str:
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_nbdinfo_lists_all_that_is_offered(layout: Path, uri: str) -> None:
    (export,) = json.loads(run("nbdinfo", "--json", uri))["exports"]
    assert export["export-size"] == (layout / "raw").stat().st_size
    shown = {name: export[name] for name in export if name.startswith(("is_", "can_"))}
    assert {name for name, is_so in shown.items() if is_so} == {
        "is_read_only",
        "can_df",
        "can_multi_conn",
    }
    assert export["contexts"] == ["base:allocation"]
    (listed,) = json.loads(run("nbdinfo", "--json", "--list", uri))["exports"]
    assert listed["description"] == "oci:out:1"
    states = json.loads(run("nbdinfo", "--json", "--map", uri))
    assert {state["description"] for state in states} == {"data", "hole,zero"}
    assert sum(state["length"] for state in states) == export["export-size"]


@pytest.mark.parametrize("options", [(), ("--connections=1", "--synchronous"), ("--allocated",)])
def test_nbdcopy_copies_the_disk(
    layout: Path, uri: str, tmp_path: Path, options: tuple[str, ...]
) -> None:
    run("nbdcopy", *options, uri, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == (layout / "raw").read_bytes()


def test_qemu_img_converts_and_compares(layout: Path, uri: str, tmp_path: Path) -> None:
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri, tmp_path / "copy.qcow2")
    compared = run("qemu-img", "compare", "-F", "raw", tmp_path / "copy.qcow2", layout / "raw")
    assert compared == "Images are identical.\n"
    states = json.loads(run("qemu-img", "map", "--output=json", "-f", "raw", uri))
    assert {state["data"] for state in states} == {True, False}


def test_qemu_io_reads_and_cannot_write(layout: Path, uri: str) -> None:
    with (layout / "raw").open("rb") as raw:
        raw.seek(1024)
        first = raw.read(1)[0]
    read = run("qemu-io", "-r", "-f", "raw", "-c", f"read -P {first} 1024 1", uri)
    assert "Pattern verification failed" not in read
    assert "read 1/1 bytes" in read
    ran = subprocess.run(
        ["qemu-io", "-f", "raw", "-c", "write 0 512", uri],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode
    assert "Permission denied" in ran.stderr


def test_tcp_on_this_machine(layout: Path, tmp_path: Path) -> None:
    with served(layout, "--nbd", "tcp:127.0.0.1:0") as found:
        assert found.startswith("nbd://127.0.0.1:")
        run("nbdcopy", found, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == (layout / "raw").read_bytes()


# -- TLS ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with certificates in ``server``, ``client`` and ``stranger``."""
    folder = tmp_path_factory.mktemp("keys")
    for authority, names in (("ours", ("server", "client")), ("theirs", ("stranger",))):
        key = _key(folder / f"{authority}-key.pem")
        ca = folder / f"{authority}-cert.pem"
        _openssl("req", "-x509", "-key", key, "-subj", f"/CN={authority}", "-out", ca)
        for name in names:
            place = folder / name
            place.mkdir()
            (place / "ca-cert.pem").write_bytes((folder / "ours-cert.pem").read_bytes())
            kind = "server" if name == "server" else "client"
            own = _key(place / f"{kind}-key.pem")
            request, extra = folder / f"{name}.csr", folder / f"{name}.ext"
            extra.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
            _openssl("req", "-new", "-key", own, "-subj", f"/CN={name}", "-out", request)
            _openssl(
                *("x509", "-req", "-in", request, "-CA", ca, "-CAkey", key, "-set_serial", "1"),
                *("-extfile", extra, "-out", place / f"{kind}-cert.pem"),
            )
    return folder


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def _key(path: Path) -> Path:
    curve = "ec_paramgen_curve:prime256v1"
    _openssl("genpkey", "-algorithm", "EC", "-pkeyopt", curve, "-out", path)
    return path


@pytest.fixture
def encrypted(layout: Path, keys: Path) -> Iterator[str]:
    with served(layout, "--nbd", "tcp:127.0.0.1:0", "--tls-dir", str(keys / "server")) as found:
        assert found.startswith("nbds://127.0.0.1:")
        yield found


def test_clients_with_a_certificate_read_over_tls(
    layout: Path, encrypted: str, keys: Path, tmp_path: Path
) -> None:
    run("nbdcopy", f"{encrypted}?tls-certificates={keys / 'client'}", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == (layout / "raw").read_bytes()
    host, _, port = encrypted.removeprefix("nbds://").rpartition(":")
    (tmp_path / "copy").unlink()
    run(
        *("qemu-img", "convert", "-O", "raw", "--object"),
        f"tls-creds-x509,id=tls,endpoint=client,dir={keys / 'client'}",
        *("--image-opts", f"driver=nbd,host={host},port={port},tls-creds=tls", tmp_path / "copy"),
    )
    assert (tmp_path / "copy").read_bytes() == (layout / "raw").read_bytes()


def test_others_see_nothing(encrypted: str, keys: Path) -> None:
    plain = encrypted.replace("nbds", "nbd")
    for address in (plain, f"{encrypted}?tls-certificates={keys / 'stranger'}"):
        ran = subprocess.run(
            ["nbdinfo", "--json", address], capture_output=True, text=True, check=False
        )
        assert (ran.returncode, ran.stdout.strip()) != (0, "")
        assert "oci:out" not in ran.stdout + ran.stderr
        assert ran.returncode


def test_nothing_sent_before_tls_counts_as_sent_through_it(encrypted: str) -> None:
    """A request that somebody in between puts behind STARTTLS is taken for a TLS record."""
    _, _, port = encrypted.rpartition(":")
    with socket.create_connection(("127.0.0.1", int(port)), timeout=60) as connection:
        connection.recv(18)
        option = b"IHAVEOPT" + (5).to_bytes(4, "big") + bytes(4)
        listing = b"IHAVEOPT" + (3).to_bytes(4, "big") + bytes(4)
        connection.sendall((3).to_bytes(4, "big") + option + listing)
        data = b""
        with contextlib.suppress(ConnectionError):
            while piece := connection.recv(4096):
                data += piece
        assert b"oci:out" not in data
        assert data[:20].endswith((1).to_bytes(4, "big") + bytes(4))  # STARTTLS was accepted
