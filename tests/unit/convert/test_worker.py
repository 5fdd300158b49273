# SPDX-License-Identifier: Apache-2.0
"""Tasks of layers: what crosses to a worker, what comes back, and what stays in the registry.

The engine here is a thread that pickles everything, as any engine between processes does.
"""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from firstread.convert.conversion import ConvertOptions, convert
from firstread.convert.job import temporary_file_error
from firstread.convert.layertags import LAYER_TYPE, layer_tag
from firstread.convert.layertask import MAX_TASK_SIZE, LayerTask, credentials_file
from firstread.convert.outcome import Conversion
from firstread.convert.record import Parameters
from firstread.convert.tasks import layer_tasks
from firstread.convert.worker import run_task
from firstread.errors import (
    AuthError,
    DigestError,
    FirstreadError,
    ImageError,
    NodeError,
    NotFoundError,
    UsageError,
)
from firstread.oci.model import OCI_LAYER, OCI_MANIFEST, describe, sha256_digest
from firstread.oci.reference import parse_reference
from firstread.registry.credentials import Credentials
from firstread.registry.logins import Logins
from firstread.registry.open import open_destination
from firstread.registry.options import AccessOptions
from firstread.testing.command import firstread
from firstread.testing.images import File, Image, Layer
from firstread.testing.packed import SMALL
from firstread.testing.registry import PASSWORD, USERNAME, DockerRegistry, ScriptedRegistry

BASE = Layer([File(f"f{number}", b"%d" % number * 400) for number in range(2000)])
TOP = Layer([File("top", b"top" * 3000)])
IMAGE = Image([BASE, TOP])
ACCESS = AccessOptions(retries=0, retry_base=0.01, mirrors=False)
OPTIONS = ConvertOptions(
    parameters=SMALL, source_options=ACCESS, destination_options=ACCESS, static=False
)


class Pickling(ThreadPoolExecutor):
    """Passes everything through a pickle, and keeps what it saw."""

    def __init__(self) -> None:
        super().__init__(2)
        self.tasks: list[str] = []
        self.results: list[str] = []

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return super().submit(self._run, pickle.dumps((function, args, kwargs)))

    def _run(self, data: bytes) -> Any:
        function, (text,), kwargs = pickle.loads(data)
        self.tasks.append(text)
        try:
            result = pickle.loads(pickle.dumps(function(text, **kwargs)))
        except FirstreadError as exc:
            raise pickle.loads(pickle.dumps(exc)) from None
        self.results.append(result)
        return result


class Answering(Pickling):
    """An engine that gives one answer to all, or raises it."""

    def __init__(self, answer: object) -> None:
        super().__init__()
        self._answer = answer

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        if isinstance(self._answer, Exception):
            future.set_exception(self._answer)
        else:
            future.set_result(self._answer)
        return future


@pytest.fixture
def registry() -> Iterator[ScriptedRegistry]:
    with ScriptedRegistry() as running:
        push(running, "in")
        yield running


def push(registry: ScriptedRegistry, tag: str, image: Image = IMAGE) -> None:
    for blob in image.blobs():
        registry.add_blob(blob)
    manifest = image.manifest()
    for name in (tag, sha256_digest(manifest)):
        registry.manifests[name] = (OCI_MANIFEST, manifest)


def run(
    registry: ScriptedRegistry | DockerRegistry,
    executor: ThreadPoolExecutor,
    *,
    source: str = "a/in:in",
    out: str = "a/out:out",
    **options: Any,
) -> Conversion:
    return convert(
        parse_reference(f"{registry.host}/{source}"),
        parse_reference(f"{registry.host}/{out}"),
        replace(OPTIONS, **options),
        executor=executor,
    )


def tasks(registry: ScriptedRegistry, **options: Any) -> list[LayerTask]:
    return layer_tasks(
        parse_reference(f"{registry.host}/a/in:in"),
        parse_reference(f"{registry.host}/a/out:out"),
        replace(OPTIONS, **options),
    )


def a_task(registry: ScriptedRegistry, **changes: Any) -> str:
    """Return the task of the first layer, with changes."""
    return json.dumps(json.loads(tasks(registry)[0].encode()) | changes)


def test_only_descriptors_come_back(registry: ScriptedRegistry) -> None:
    with Pickling() as engine:
        made = run(registry, engine)
    here = convert(
        parse_reference(f"{registry.host}/a/in:in"),
        parse_reference(f"{registry.host}/a/here:here"),
        OPTIONS,
    )
    assert (made.digest, made.uploaded_blobs) == (here.digest, 4)
    assert [layer.how for layer in made.layers] == ["packed", "packed"]
    assert len(engine.results) == 2
    assert max(map(len, engine.results)) < 1500  # the record of BASE has 2,000 entries
    assert max(map(len, engine.tasks)) < 1500


def test_work_that_a_worker_did_is_found_by_its_tag(registry: ScriptedRegistry) -> None:
    """By another worker, and by another machine that converts without an engine."""
    task = a_task(registry)
    first = json.loads(run_task(task))
    registry.seen.clear()
    second = json.loads(run_task(task))
    how = "dev.firstread.how"
    assert (first["annotations"].pop(how), second["annotations"].pop(how)) == ("uploaded", "known")
    assert first == second
    assert registry.asked("GET /v2/a/in/") == registry.asked("POST") == registry.asked("PUT") == []
    here = convert(
        parse_reference(f"{registry.host}/a/in:in"),
        parse_reference(f"{registry.host}/a/out:out"),
        OPTIONS,
    )
    assert [layer.how for layer in here.layers] == ["known", "packed"]


def test_without_reuse_a_worker_packs_again(registry: ScriptedRegistry) -> None:
    (task, _) = tasks(registry)
    run_task(task.encode())
    answer = json.loads(run_task(msgspec.structs.replace(task, reuse=False).encode()))
    assert answer["annotations"]["dev.firstread.how"] == "packed"
    with Pickling() as engine:
        assert run(registry, engine, reuse=False).uploaded_blobs == 3  # TOP, metadata, config
    assert all(not LayerTask.decode(task).reuse for task in engine.tasks)


def test_a_registry_that_takes_no_such_tag_takes_the_image(registry: ScriptedRegistry) -> None:
    registry.script("PUT firstread-layer- status 403 x*")
    with Pickling() as engine:
        run(registry, engine)
    assert "out" in registry.manifests


@pytest.mark.parametrize(
    "change",
    [
        {"layers": []},
        {"layers": [{"mediaType": "a/b", "digest": f"sha256:{'0' * 64}", "size": 1}]},
        {"artifactType": "a/b"},
        {"annotations": {"dev.firstread.parameters": "others"}},
        {"mediaType": "application/vnd.oci.image.index.v1+json"},
        {"blob": {"size": 7}},
        {"blob": {"digest": f"sha256:{'0' * 64}"}},
        {"blob": {"annotations": {}}},
    ],
    ids="-".join,
)
def test_a_tag_that_says_something_else(registry: ScriptedRegistry, change: dict[str, Any]) -> None:
    """Anybody who may push there can say anything; the layer is packed again, or refused."""
    (task, *_) = tasks(registry)
    run_task(task.encode())
    tag = layer_tag(task.diff_id, task.parameters)
    media_type, data = registry.manifests[tag]
    document = json.loads(data)
    assert document["artifactType"] == LAYER_TYPE
    document["layers"][0] |= change.get("blob", {})
    document |= {name: value for name, value in change.items() if name != "blob"}
    registry.manifests[tag] = (media_type, json.dumps(document).encode())
    with Pickling() as engine:
        made = run(registry, engine)
    assert "known" not in {layer.how for layer in made.layers}


# -- what a task may say, and to whom ----------------------------------------------------------


def test_a_task_is_one_document(registry: ScriptedRegistry) -> None:
    (task, other) = tasks(registry)
    assert LayerTask.decode(task.encode()) == task
    assert task.key != other.key
    moved = msgspec.structs.replace(task, source=str(other.source) + "x")
    assert moved.key == task.key  # the same layer, of another image
    shared = msgspec.structs.replace(task, alone=False)
    elsewhere = msgspec.structs.replace(shared, destination=f"docker://{registry.host}/b:c")
    assert shared.key == elsewhere.key  # the registry mounts it
    assert msgspec.structs.replace(elsewhere, alone=True).key != task.key


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"version": "0.0.9"}, NodeError, "firstread is .* here, the task is for 0.0.9"),
        ({"surprise": 1}, UsageError, "unknown field"),
        ({"layer": {}}, UsageError, "missing required field"),
        ({"jobs": 10**9}, UsageError, "<= 1024"),
        ({"diff_id": "sha256:1"}, UsageError, "diff_id"),
        ({"source": "http://x/y"}, UsageError, "not supported"),
        ({"credentials": "relative/path"}, UsageError, "names no credentials"),
        ({"credentials": "secret:../etc"}, UsageError, "names no credentials"),
        ({"x": "y" * MAX_TASK_SIZE}, UsageError, "longer than"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_task_that_is_refused(
    registry: ScriptedRegistry, change: dict[str, Any], error: type[FirstreadError], says: str
) -> None:
    task = a_task(registry, **change)
    registry.seen.clear()
    with pytest.raises(error, match=says):
        run_task(task)
    assert registry.seen == []


def test_another_zstd_library_is_refused(registry: ScriptedRegistry) -> None:
    parameters = msgspec.to_builtins(Parameters(encoder="zstd-1.0.0"))
    with pytest.raises(NodeError, match=r"here, the task is for zstd-1\.0\.0"):
        run_task(a_task(registry, parameters=parameters))


@pytest.mark.parametrize("text", ["", "[]", "{", "\udcff", "[" * 2000])
def test_a_text_that_is_no_task(text: str) -> None:
    with pytest.raises(UsageError, match="not the task of a layer"):
        run_task(text)


def test_no_secret_is_in_a_task(registry: ScriptedRegistry, tmp_path: Path) -> None:
    logins = Logins()
    logins.put(registry.host, Credentials("user", "pa55word"))
    access = replace(ACCESS, logins=logins, auth_file=tmp_path / "mine.json")
    access = replace(access, worker_credentials="secret:registry", credentials_dir=tmp_path)
    (tmp_path / "mine.json").write_text("{}")
    with Pickling() as engine:
        run(registry, engine, source_options=access, destination_options=access)
    text = "".join(engine.tasks)
    assert "secret:registry" in text
    for secret in ("pa55word", "mine.json", str(tmp_path), "user"):
        assert secret not in text


def test_a_worker_logs_in_with_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("FIRSTREAD_SECRETS_DIR", str(tmp_path / "secrets"))
    with ScriptedRegistry(auth="basic") as registry:
        push(registry, "in")
        logins = Logins()
        logins.put(registry.host, Credentials(USERNAME, PASSWORD))
        mine = replace(ACCESS, logins=logins)
        places = {"source_options": mine, "destination_options": mine}
        task = tasks(registry, **places)[0]
        with pytest.raises(AuthError, match=r"on .*: ") as caught:
            run_task(task.encode())
        assert caught.value.layer == task.layer.digest
        secret = tmp_path / "secrets/registry"
        secret.mkdir(parents=True)
        login = {"auths": {registry.host: {"username": USERNAME, "password": PASSWORD}}}
        (secret / ".dockerconfigjson").write_text(json.dumps(login))
        run_task(msgspec.structs.replace(task, credentials="secret:registry").encode())
        (secret / ".dockerconfigjson").rename(tmp_path / "file.json")
        file = str(tmp_path / "file.json")
        run_task(msgspec.structs.replace(task, credentials=file).encode())
        gone = msgspec.structs.replace(task, credentials=f"{file}.gone")
        with pytest.raises(NodeError, match=r"on .*: .*file\.json\.gone"):
            run_task(gone.encode())


def test_where_a_secret_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert credentials_file("/x/y.json") == Path("/x/y.json")
    assert credentials_file("secret:a") == Path("/run/secrets/a")
    monkeypatch.setenv("FIRSTREAD_SECRETS_DIR", str(tmp_path))
    (tmp_path / "b").mkdir()
    (tmp_path / "b/config.json").touch()
    assert credentials_file("secret:b") == tmp_path / "b/config.json"


# -- workers that cannot -----------------------------------------------------------------------


def test_a_worker_without_room(registry: ScriptedRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/proc/nothing")
    with Pickling() as engine, pytest.raises(NodeError, match=r"on .*: cannot write a temp") as hit:
        run(registry, engine)
    assert "TMPDIR" in (hit.value.hint or "")
    assert "out" not in registry.manifests
    assert registry.open_uploads() == 0


def test_a_damaged_layer_is_the_images_fault(registry: ScriptedRegistry) -> None:
    registry.script(f"GET {sha256_digest(BASE.blob)} flip x*")
    with Pickling() as engine, pytest.raises((DigestError, ImageError)) as caught:
        run(registry, engine)
    assert caught.value.layer == sha256_digest(BASE.blob)
    assert not caught.value.message.startswith("on ")
    assert str(caught.value).startswith(f"docker://{registry.host}/a/in:in: ")
    assert "out" not in registry.manifests


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (ModuleNotFoundError("No module named 'firstread'"), "cannot load firstread"),
        (ValueError("token=abcdefgh"), "a worker failed: ValueError: token="),
        ("no JSON", "not the descriptor"),
        ("{}", "not the descriptor"),
        (None, "not the descriptor"),
        (7, "not the descriptor"),
    ],
)
def test_an_engine_that_fails(registry: ScriptedRegistry, answer: object, says: str) -> None:
    with Answering(answer) as engine, pytest.raises(NodeError, match=says) as caught:
        run(registry, engine)
    assert "abcdefgh" not in str(caught.value)
    assert caught.value.image == f"docker://{registry.host}/a/in:in"


def test_an_error_that_two_conversions_share_names_each_image(registry: ScriptedRegistry) -> None:
    error = NotFoundError("gone")
    with Answering(error) as engine:
        for name in ("in", "in2"):
            push(registry, name)
            with pytest.raises(NotFoundError, match=f"a/in:{name}: gone"):
                run(registry, engine, source=f"a/in:{name}")


# -- several repositories ----------------------------------------------------------------------


class Sharing(Pickling):
    """Runs one task for each key, as `DaskExecutor` does."""

    def __init__(self) -> None:
        super().__init__()
        self.futures: dict[str, Future[Any]] = {}

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        key = LayerTask.decode(args[0]).key
        if key not in self.futures:
            self.futures[key] = super().submit(function, *args, **kwargs)
        return self.futures[key]


def test_a_layer_for_two_repositories_is_packed_once() -> None:
    with DockerRegistry() as registry, Sharing() as engine:
        upload(registry, "a/in:in")
        first = run(registry, engine)
        registry.forget()
        second = run(registry, engine, out="b/out:out")
        assert (len(engine.tasks), first.digest) == (2, second.digest)
        assert registry.counts.requests_of("PATCH") == 2  # metadata and config
        assert registry.counts.requests_of("/a/in/blobs/sha256:") == 1  # the config
        registry.forget()
        assert run(registry, engine).unchanged
        assert registry.counts.requests_of("POST") == 0


def test_a_registry_that_mounts_nothing_gets_the_layer_again(registry: ScriptedRegistry) -> None:
    with ScriptedRegistry(mounts=False) as other, Sharing() as engine:
        push(other, "in")
        other.script("PUT firstread-layer- status 403 x*")  # all its repositories share tags
        run(other, engine)
        run(other, engine, out="b/out2:out2")
        assert [LayerTask.decode(task).alone for task in engine.tasks].count(True) == 2
        assert "out2" in other.manifests


def upload(registry: DockerRegistry, name: str, image: Image = IMAGE) -> None:
    reference = parse_reference(f"{registry.host}/{name}")
    with open_destination(reference) as repository:
        for blob in image.blobs():
            repository.put_blob(describe(blob, OCI_LAYER), io.BytesIO(blob))
        repository.put_manifest(image.manifest(), OCI_MANIFEST, reference.tag)


# -- the command -------------------------------------------------------------------------------


def test_tasks_as_commands(
    registry: ScriptedRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIRSTREAD_CACHE", str(tmp_path))
    places = (f"{registry.host}/a/in:in", f"{registry.host}/a/out:out")
    printed = firstread("convert", *places, "--tasks")
    assert (printed.code, printed.stderr) == (0, "")
    named = firstread("convert", *places, "--tasks", "--worker-credentials", "secret:x")
    assert {task["credentials"] for task in json.loads(named.stdout)} == {"secret:x"}
    for task in json.loads(printed.stdout):
        ran = command(json.dumps(task), monkeypatch, tmp_path)
        assert (ran.code, ran.stderr) == (0, "")
        assert json.loads(ran.stdout)["digest"] in registry.blobs
    assert json.loads(firstread("convert", *places, "--tasks").stdout) == []
    ran = firstread("convert", *places, "--json")
    assert {layer["how"] for layer in ran.json["layers"]} == {"known"}


def test_a_command_without_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = command(" \n", monkeypatch, tmp_path)
    assert ran.code == 2
    assert "there is no task on stdin" in ran.stderr
    ran = command("{}", monkeypatch, tmp_path)
    assert ran.code == 2
    assert "docs/cluster.md" in ran.stderr


def command(text: str, monkeypatch: pytest.MonkeyPatch, directory: Path) -> Any:
    (directory / "task").write_text(text)
    with (directory / "task").open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        return firstread("convert-layer")


def test_the_error_of_a_file_beside_a_destination_names_its_place(tmp_path: Path) -> None:
    beside = temporary_file_error(OSError(errno.EROFS, "Read-only file system", "/srv/layout"))
    assert str(beside) == "cannot write to '/srv/layout': Read-only file system"
    assert "TMPDIR" not in (beside.hint or "")
    scratch = os.path.join(tempfile.gettempdir(), "firstread-x")
    other = temporary_file_error(OSError(errno.ENOSPC, "No space left on device", scratch))
    assert "a temporary file" in str(other)
    assert "TMPDIR" in (other.hint or "")
