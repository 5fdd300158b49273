# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and similar signals end the command at once, at any point, with nothing half done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from firstread.testing.command import program, without_progress
from firstread.testing.features import content
from firstread.testing.images import File, Image, Layer, digest_of, manifest_type
from firstread.testing.patience import PATIENCE_S
from firstread.testing.scripted import ScriptedRegistry

IMAGE = Image([Layer([File("a", content("a", 500_000))])])
LAYER = digest_of(IMAGE.layers[0].blob)
FOREVER = 60  # seconds

WHERE = {
    "the manifest": ("GET /manifests/", f"slow {FOREVER}"),
    "a layer": (f"GET /blobs/{LAYER}", f"slow {FOREVER}"),
    "a wait before the next attempt": (
        f"GET /blobs/{LAYER}",
        f"status 429 Retry-After={FOREVER} x9",
    ),
    "the upload": ("PATCH /uploads/", f"slow {FOREVER}"),
}


@pytest.mark.parametrize("arguments", [(), ("--json",)], ids=["human", "json"])
@pytest.mark.parametrize(("request_line", "fault"), WHERE.values(), ids=WHERE.keys())
def test_an_interrupt(request_line: str, fault: str, arguments: tuple[str, ...]) -> None:
    with ScriptedRegistry(f"{request_line} {fault}") as registry:
        registry.manifests["latest"] = (manifest_type(), IMAGE.manifest())
        for data in IMAGE.blobs():
            registry.add_blob(data)
        destination = f"{registry.host}/lazy:1" if "uploads" in request_line else "oci:out:1"
        process = subprocess.Popen(
            program("convert", f"{registry.host}/app", destination, *arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        method, part = request_line.split()
        wait_for_request(registry, method, part)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=PATIENCE_S)
        stderr = without_progress(stderr)
        assert list(registry.manifests) == ["latest"], "there is a tag"
    assert process.returncode == 130
    if arguments:
        assert json.loads(stdout) == {
            "error": "InterruptError",
            "message": "interrupted",
            "hint": None,
            "image": None,
            "layer": None,
            "exit_code": 130,
            "retryable": False,
        }
        assert stderr == "\n"  # ends the line that the terminal shows ^C in
    else:
        assert (stdout, stderr) == ("", "\nfirstread: interrupted\n")
    assert not Path("out/index.json").exists(), "there is a tag"


@pytest.mark.parametrize(
    ("module", "code", "message"),
    [("click", -signal.SIGINT, ""), ("msgspec", 130, "\nfirstread: interrupted\n")],
    ids=["before the verb", "by the verb"],
)
def test_an_interrupt_while_modules_are_imported(
    tmp_path: Path, module: str, code: int, message: str
) -> None:
    slow = f"import time; print('begun', flush=True); time.sleep({FOREVER})"
    (tmp_path / f"{module}.py").write_text(slow)
    with subprocess.Popen(
        program("status"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, stdout, stderr) == (code, "", message)


def wait_for_request(registry: ScriptedRegistry, method: str, part: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not any(seen.startswith(method) for seen in registry.asked(part)):
        assert time.monotonic() < deadline, registry.asked()
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("destination", ["oci:out:1", "oci-archive:out/image.tar"])
def test_other_signals_leave_as_little(number: signal.Signals, destination: str) -> None:
    """CI ends a job in this way, and so does a closing terminal."""
    code, stderr = ended_by([number], destination)
    assert (code, stderr) == (128 + number, f"firstread: ended by {number.name}\n")
    assert not list(Path("out").rglob("*"))
    assert not Path("out").exists() or not destination.startswith("oci:")


def test_nohup_holds() -> None:
    code, stderr = ended_by([signal.SIGHUP, signal.SIGTERM], "oci:out:1", before="nohup")
    assert code == 128 + signal.SIGTERM
    assert stderr.endswith("firstread: ended by SIGTERM\n")


def ended_by(
    numbers: list[signal.Signals], destination: str, *, before: str | None = None
) -> tuple[int, str]:
    """Send signals to a conversion that waits for a layer; return its exit code and stderr."""
    with ScriptedRegistry(f"GET /blobs/{LAYER} slow {FOREVER}") as registry:
        registry.manifests["latest"] = (manifest_type(), IMAGE.manifest())
        for data in IMAGE.blobs():
            registry.add_blob(data)
        process = subprocess.Popen(
            [
                *([before] if before else []),
                *program("convert", f"{registry.host}/app", destination),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_for_request(registry, "GET", f"/blobs/{LAYER}")
        for number in numbers:
            process.send_signal(number)
        stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert stdout == ""
    return process.returncode, without_progress(stderr)
