# SPDX-License-Identifier: Apache-2.0
"""Conversions on a Dask cluster of real processes, which die in the middle of their work."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from pathlib import Path

import msgspec
import pytest

from firstread.convert.conversion import ConvertOptions, convert
from firstread.convert.outcome import Conversion
from firstread.convert.tasks import layer_tasks
from firstread.convert.worker import run_task
from firstread.engines.daskcluster import DaskExecutor
from firstread.errors import EngineError, NodeError, NotFoundError
from firstread.oci.model import OCI_MANIFEST, sha256_digest
from firstread.oci.reference import parse_reference
from firstread.registry.options import AccessOptions
from firstread.testing.cluster import Cluster
from firstread.testing.command import firstread
from firstread.testing.images import File, Image, Layer
from firstread.testing.packed import SMALL
from firstread.testing.patience import PATIENCE_S
from firstread.testing.registry import PASSWORD, USERNAME, ScriptedRegistry

pytestmark = pytest.mark.filterwarnings("ignore")  # of Dask and its event loop

OPTIONS = ConvertOptions(
    parameters=SMALL,
    source_options=AccessOptions(mirrors=False),
    destination_options=AccessOptions(mirrors=False),
    static=False,
)
EVIL = "raise ModuleNotFoundError(\"No module named 'firstread'\")\n"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def cluster(home: Path) -> Iterator[Cluster]:
    environment = {"DOCKER_CONFIG": str(home), "FIRSTREAD_SECRETS_DIR": str(home)}
    with Cluster(2, environment) as running:
        yield running


@pytest.fixture
def engine(cluster: Cluster) -> Iterator[DaskExecutor]:
    with DaskExecutor(f"tcp://{cluster.address}", reconnect_s=PATIENCE_S) as executor:
        yield executor


@pytest.fixture
def registry() -> Iterator[ScriptedRegistry]:
    with ScriptedRegistry() as running:
        yield running


def image(*seeds: int) -> Image:
    return Image([Layer([File(f"f{n}", random.Random(n).randbytes(200_000))]) for n in seeds])


def push(registry: ScriptedRegistry, tag: str, pushed: Image) -> None:
    for blob in pushed.blobs():
        registry.add_blob(blob)
    manifest = pushed.manifest()
    for name in (tag, sha256_digest(manifest)):
        registry.manifests[name] = (OCI_MANIFEST, manifest)


def run(registry: ScriptedRegistry, engine: DaskExecutor | None, name: str) -> Conversion:
    return convert(
        parse_reference(f"{registry.host}/a/in:{name}"),
        parse_reference(f"{registry.host}/a/out:{name}-out"),
        OPTIONS,
        executor=engine,
    )


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Running(threading.Thread):
    """A conversion in a thread of its own."""

    def __init__(self, registry: ScriptedRegistry, engine: DaskExecutor, name: str) -> None:
        super().__init__(daemon=True)
        self._arguments = (registry, engine, name)
        self.made: Future[Conversion] = Future()
        self.start()

    def run(self) -> None:
        try:
            self.made.set_result(run(*self._arguments))
        except BaseException as exc:  # noqa: BLE001
            self.made.set_exception(exc)


def test_the_same_image_as_here(
    registry: ScriptedRegistry, cluster: Cluster, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIRSTREAD_CACHE", str(home / "cache"))
    push(registry, "a", image(1, 2, 3))
    places = [f"{registry.host}/a/{name}:{name}" for name in ("a", "b")]
    ran = firstread("convert", *places, "--engine", cluster.engine, "--json", "--no-hot")
    assert ran.code == 0, ran
    here = firstread("convert", places[0], f"{registry.host}/a/c:c", "--json", "--no-hot")
    assert ran.json["digest"] == here.json["digest"]
    assert [layer["how"] for layer in ran.json["layers"]] == ["packed"] * 3
    registry.seen.clear()
    again = firstread("convert", *places, "--engine", cluster.engine, "--json", "--no-hot")
    assert again.json["unchanged"]
    assert registry.asked("POST") == registry.asked("GET /v2/a/a/blobs/sha256:")[1:] == []


def test_images_at_the_same_time_share_a_task(
    registry: ScriptedRegistry, engine: DaskExecutor
) -> None:
    shared = image(11, 12)
    push(registry, "x", shared)
    push(registry, "y", Image([*shared.layers, *image(13).layers]))
    running = [Running(registry, engine, name) for name in "xy"]
    made = [each.made.result(PATIENCE_S) for each in running]
    assert sum(layer.how == "packed" for each in made for layer in each.layers) == 3
    for layer in shared.layers:
        assert len(registry.asked(f"GET /v2/a/in/blobs/{sha256_digest(layer.blob)}")) == 1


def test_conversions_that_share_a_layer_do_not_share_a_missing_source(
    registry: ScriptedRegistry, engine: DaskExecutor
) -> None:
    push(registry, "m", image(15))
    with ScriptedRegistry() as other:
        push(other, "m", image(15))
        places = [
            (
                parse_reference(f"{source.host}/a/in:m"),
                parse_reference(f"{registry.host}/a/o{number}:o"),
            )
            for number, source in enumerate((other, registry))
        ]
        tasks = [layer_tasks(*each, OPTIONS)[0] for each in places]
        texts = [msgspec.structs.replace(task, alone=False).encode() for task in tasks]
        other.blobs.clear()
        first, second = (engine.submit(run_task, text) for text in texts)
        with pytest.raises(NotFoundError):
            first.result(PATIENCE_S)
        assert "dev.firstread.record" in second.result(PATIENCE_S)


def test_a_worker_that_is_killed_in_the_middle(
    registry: ScriptedRegistry, engine: DaskExecutor, cluster: Cluster
) -> None:
    pushed = image(21)
    push(registry, "k", pushed)
    blob = sha256_digest(pushed.layers[0].blob)
    registry.script(f"GET {blob} trickle 1000")
    running = Running(registry, engine, "k")
    wait_for(lambda: registry.asked(f"GET /v2/a/in/blobs/{blob}"))
    (busy,) = cluster.busy()
    cluster.kill_worker(busy)
    made = running.made.result(PATIENCE_S)
    assert made.layers[0].how == "packed"
    assert len(registry.asked(f"GET /v2/a/in/blobs/{blob}")) == 2
    assert registry.open_uploads() == 0
    assert "k-out" in registry.manifests
    cluster.add_worker()


def test_a_scheduler_that_is_killed_and_comes_back(
    registry: ScriptedRegistry, engine: DaskExecutor, cluster: Cluster
) -> None:
    pushed = image(31, 32)
    push(registry, "s", pushed)
    blob = sha256_digest(pushed.layers[0].blob)
    registry.script(f"GET {blob} trickle 1000")
    running = Running(registry, engine, "s")
    wait_for(lambda: registry.asked(f"GET /v2/a/in/blobs/{blob}"))
    cluster.kill_scheduler()
    assert "s-out" not in registry.manifests
    cluster.start_scheduler()
    for _ in range(2):  # the others end when they lose it
        cluster.add_worker()
    assert len(running.made.result(PATIENCE_S).layers) == 2
    assert "s-out" in registry.manifests


def test_a_worker_without_the_package(registry: ScriptedRegistry, tmp_path: Path) -> None:
    (tmp_path / "firstread").mkdir()
    (tmp_path / "firstread/__init__.py").write_text(EVIL)
    push(registry, "p", image(41))
    with (
        Cluster(0) as other,
        DaskExecutor(f"tcp://{other.address}", workers_s=0.5) as engine,
    ):
        with pytest.raises(EngineError, match="has had no worker for") as caught:
            run(registry, engine, "p")
        assert caught.value.image
        other.add_worker({"PYTHONPATH": str(tmp_path)})
        other.wait_for_workers(1)
        with pytest.raises(NodeError, match="cannot load firstread: No module"):
            run(registry, engine, "p")
    assert "p-out" not in registry.manifests


def test_a_scheduler_that_stays_away(registry: ScriptedRegistry) -> None:
    push(registry, "g", image(51))
    with Cluster(0) as other, DaskExecutor(f"tcp://{other.address}", reconnect_s=1) as engine:
        running = Running(registry, engine, "g")
        wait_for(lambda: engine.waiting)
        other.kill_scheduler()
        with pytest.raises(EngineError, match=r"scheduler at .* is lost"):
            running.made.result(PATIENCE_S)
        with pytest.raises(EngineError, match=r"scheduler at .* is lost"):
            run(registry, engine, "g")


def test_a_task_that_nobody_waits_for_is_cancelled(
    registry: ScriptedRegistry, cluster: Cluster, engine: DaskExecutor
) -> None:
    push(registry, "c", image(61))
    source, destination = (
        parse_reference(f"{registry.host}/a/{name}:c") for name in ("in", "out2")
    )
    (task,) = layer_tasks(source, destination, OPTIONS)
    registry.script("GET /blobs/ trickle 1000")
    first, second = (engine.submit(run_task, task.encode()) for _ in range(2))
    wait_for(cluster.busy)
    assert first.cancel()
    assert engine.waiting == 1
    assert second.cancel()
    assert engine.waiting == 0
    with pytest.raises(CancelledError):
        second.result(0)


def test_no_secret_reaches_the_cluster(cluster: Cluster, home: Path) -> None:
    with ScriptedRegistry(auth="basic") as registry:
        push(registry, "in", image(71))
        login = {"auths": {registry.host: {"username": USERNAME, "password": PASSWORD}}}
        (home / "mine.json").write_text(json.dumps(login))
        places = (f"{registry.host}/a:in", f"{registry.host}/a:out")
        command = ("convert", *places, "--authfile", home / "mine.json", "--engine", cluster.engine)
        refused = firstread(*command, "--no-cache")
        assert (refused.code, refused.stdout) == (4, "")
        assert "on " in refused.stderr
        assert "out" not in registry.manifests
        (home / "named").write_text(json.dumps(login))
        taken = firstread(*command, "--no-cache", "--worker-credentials", "secret:named")
        assert taken.code == 0, taken
        stdin = firstread(*command, "--username", USERNAME, "--password-stdin")
        assert stdin.code == 2
    log = cluster.log() + refused.stderr + taken.stderr
    assert "firstread-layer-" in log  # it has the keys and arguments of tasks that failed
    assert "secret:named" not in PASSWORD
    for secret in (PASSWORD, "mine.json"):
        assert secret not in log
