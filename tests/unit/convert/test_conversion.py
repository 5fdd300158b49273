# SPDX-License-Identifier: Apache-2.0
"""Whole conversions between layouts: equal bytes everywhere, no work twice, nothing half done."""

from __future__ import annotations

import io
import json
import multiprocessing
import operator
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import (
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import msgspec
import pytest

from firstread.convert.attach import attach
from firstread.convert.conversion import ConvertOptions, convert
from firstread.convert.layercache import LayerCache
from firstread.convert.layertask import LayerTask
from firstread.convert.outcome import Conversion
from firstread.convert.plan import MAX_CHUNKS_PER_FILE
from firstread.convert.record import ENCODER, Entry, LayerRecord, Parameters, encode_entries
from firstread.convert.worker import run_task
from firstread.errors import (
    DigestError,
    FirstreadError,
    ImageError,
    LimitError,
    NodeError,
    NotFoundError,
    SectorCountError,
    UnsupportedError,
    UsageError,
)
from firstread.oci.model import (
    MAX_MANIFEST_SIZE,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Index,
    describe,
    encode,
    sha256_digest,
)
from firstread.oci.reference import Reference, parse_reference
from firstread.oci.resolve import ResolvedImage, resolve
from firstread.registry.open import open_destination, open_source
from firstread.registry.options import AccessOptions
from firstread.sectors.format import DEFAULT_SECTOR_SIZE
from firstread.testing.images import (
    File,
    Image,
    Layer,
    Sparse,
    Symlink,
    Whiteout,
    feature_image,
    write_index,
    write_layout,
)
from firstread.testing.packed import SMALL, converted, pack
from firstread.testing.patience import PATIENCE_S
from firstread.testing.registry import DockerRegistry, ScriptedRegistry
from firstread.units import MiB

BASE = Layer([File("base", random.Random(1).randbytes(300_000)), Symlink("link", "base")])
MIDDLE = Layer([File("middle", b"middle" * 30_000)], "zstd")
TOP = Layer([File("top", b"top" * 3000), Whiteout("middle")])
EMPTY = Layer([Symlink("only", "names")])
IMAGE = Image([BASE, MIDDLE, EMPTY, TOP])
OPTIONS = ConvertOptions(parameters=SMALL, jobs=2)


@dataclass
class Shop:
    """A source and a destination in a directory."""

    directory: Path
    options: ConvertOptions = OPTIONS

    def reference(self, name: str) -> Reference:
        return parse_reference(f"oci:{self.directory}/{name}:latest")

    def convert(self, image: Image | None = IMAGE, **options: Any) -> Conversion:
        """Convert `image`, or what is there, from ``in`` to ``out``."""
        executor = options.pop("executor", None)
        if image is not None:
            write_layout(image, self.directory / "in")
        return convert(
            self.reference("in"),
            self.reference("out"),
            replace(self.options, **options),
            executor=executor,
        )

    def result(self) -> ResolvedImage:
        with open_source(self.reference("out")) as repository:
            return resolve(repository)

    def blob(self, digest: str, name: str = "in") -> Path:
        return self.directory / name / "blobs" / "sha256" / digest.removeprefix("sha256:")

    def forget(self, *layers: Layer) -> None:
        """Remove `layers` from the source: whoever reads them fails."""
        for layer in layers:
            self.blob(sha256_digest(layer.blob)).unlink()

    def stamps(self) -> dict[str, int]:
        return {
            path.name: path.stat().st_mtime_ns for path in self.blob("x", "out").parent.iterdir()
        }


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def _opened() -> tuple[int, int]:
    """Return how many threads and descriptors this process has."""
    return threading.active_count(), len(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No thread, no descriptor and no file of a conversion is left."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    resource_tracker.ensure_running()  # of multiprocessing; it has a descriptor
    before = _opened()
    yield
    until = time.monotonic() + PATIENCE_S
    while any(map(operator.gt, _opened(), before)) and time.monotonic() < until:
        time.sleep(0.01)  # threads of a server end behind their clients
    assert not any(map(operator.gt, _opened(), before))
    assert list(scratch.iterdir()) == []
    assert not list(tmp_path.glob("*/.firstread-*"))


# -- results ----------------------------------------------------------------------------------


def test_a_result(shop: Shop) -> None:
    result = shop.convert()
    image = shop.result()
    assert result.digest == image.descriptor.digest
    assert [layer.how for layer in result.layers] == ["packed"] * 4
    assert [layer.sectors for layer in result.layers] == [5, 3, 0, 1]
    assert [layer.digest for layer in image.manifest.layers[1:]] == [
        layer.blob for layer in result.layers
    ]
    assert result.uploaded_blobs == 4 + 1 + 1  # and metadata, config
    assert result.size == sum(layer.size for layer in image.manifest.layers)
    assert result.content_size == sum(len(layer.tar) for layer in IMAGE.layers)
    assert result.sectors == 6  # what only the hidden file has is in the blob, and has no slot
    assert result.inodes == 5
    _, manifest = converted(IMAGE)
    assert [layer.digest for layer in manifest.layers] == [
        layer.digest for layer in image.manifest.layers
    ]


PINNED = {  # encoder -> digest of the manifest
    "zstd-1.5.7": "sha256:af286027c6e0f03c649a85e35f74abf96386ad912be8aafe104867f10e903858",
}


def test_pinned_manifest(shop: Shop) -> None:
    """Changing this is a format break: all that is converted again would be new to every node."""
    assert ENCODER in PINNED, "another zstd library: pin its digest beside the others"
    plain = Image([Layer(layer.items, "none") for layer in IMAGE.layers])  # of no other library
    assert shop.convert(plain).digest == PINNED[ENCODER]


@pytest.mark.parametrize("count", [1, 2])
def test_an_image_without_data(shop: Shop, count: int) -> None:
    result = shop.convert(Image([EMPTY] * count))
    assert (result.sectors, len(shop.result().manifest.layers)) == (0, 2)


def test_an_image_without_layers(shop: Shop) -> None:
    result = shop.convert(Image([]))
    assert (result.sectors, result.inodes, len(shop.result().manifest.layers)) == (0, 1, 1)
    assert len(shop.result().config["rootfs"]["diff_ids"]) == 1
    assert shop.convert(Image([])).unchanged


def written_otherwise(
    shop: Shop, config: dict[str, Any], manifest: Callable[[dict[str, Any]], object] = id
) -> None:
    """Put an image of one layer there, with other fields in its config and another manifest."""
    given = {key.lower() for key in config}
    plain = json.loads(Image([BASE]).config_blob)
    raw = encode({key: value for key, value in plain.items() if key not in given} | config)
    told = json.loads(Image([BASE]).manifest())
    told["config"] |= {"digest": sha256_digest(raw), "size": len(raw)}
    manifest(told)
    write_layout(Image([BASE]), shop.directory / "in")
    with open_destination(shop.reference("in"), AccessOptions()) as place:
        place.put_blob(describe(raw, OCI_CONFIG), io.BytesIO(raw))
        place.put_manifest(encode(told), OCI_MANIFEST, "latest")


ROOTFS = {"type": "layers", "diff_ids": [BASE.diff_id]}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"rootfS": ROOTFS}, {}),
        ({"RootFS": {"Diff_IDs": ROOTFS["diff_ids"], "Type": None}}, {}),
        ({"config": {"cmd": ["x"], "ENV": ["A=1"]}}, {"config": {"Cmd": ["x"], "Env": ["A=1"]}}),
        ({"config": {"Labels": {"a": None}}}, {"config": {"Labels": {"a": ""}}}),
        ({"config": {"Cmd": ["x"], "cmd": ["y"], "Own": 1}}, {"config": {"Cmd": ["x"], "Own": 1}}),
        ({"OS": "linux", "os": "linux", "Architecture": "amd64"}, {"architecture": "amd64"}),
        ({"History": [None]}, {}),
    ],
)
def test_a_config_as_go_reads_it(
    shop: Shop, config: dict[str, Any], expected: dict[str, Any]
) -> None:
    written_otherwise(shop, config)
    shop.convert(None)
    made = json.loads(shop.result().config_bytes)
    assert len({key.lower() for key in made}) == len(made)
    assert {key: made[key] for key in expected} == expected
    assert [len(made["rootfs"]["diff_ids"]), len(made["history"])] == [2, 2]


def test_a_manifest_as_go_reads_it(shop: Shop) -> None:
    def told(manifest: dict[str, Any]) -> None:
        manifest["Layers"], manifest["CONFIG"] = manifest.pop("layers"), manifest.pop("config")
        manifest["annotations"] = {"a": None}

    written_otherwise(shop, {}, told)
    assert shop.convert(None).inodes == 3
    assert (shop.result().manifest.annotations or {})["a"] == ""


def test_annotations_that_leave_no_room(shop: Shop) -> None:
    long = {"annotations": {"a": "x" * (MAX_MANIFEST_SIZE - 1000)}}
    written_otherwise(shop, {}, lambda manifest: manifest.update(long))
    with pytest.raises(LimitError, match="the manifest of the converted image has 4195"):
        shop.convert(None)


def test_a_layer_that_an_image_has_twice(shop: Shop) -> None:
    result = shop.convert(Image([BASE, TOP, BASE]))
    assert [layer.blob for layer in result.layers][::2] == [result.layers[0].blob] * 2
    assert len(shop.result().manifest.layers) == 3
    assert result.uploaded_blobs == 4


def test_the_same_layer_in_two_images_is_one_blob(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one = Shop(tmp_path / "a").convert(Image([BASE, TOP]))
    two = Shop(tmp_path / "b").convert(Image([MIDDLE, EMPTY, BASE]))
    assert one.layers[0].blob == two.layers[2].blob


def test_one_platform_of_an_index(shop: Shop) -> None:
    images = {
        "linux/amd64": Image([BASE], platform="linux/amd64"),
        "linux/arm64": Image([TOP], platform="linux/arm64"),
    }
    write_index(images, shop.directory / "in")
    from firstread.oci.platform import parse_platform

    result = shop.convert(None, platform=parse_platform("linux/arm64"))
    assert [layer.diff_id for layer in result.layers] == [TOP.diff_id]
    assert shop.result().config["architecture"] == "arm64"


# -- determinism ------------------------------------------------------------------------------


def test_digests_depend_on_nothing_around(tmp_path: Path) -> None:
    """Hash seed, time zone, umask, number of jobs, memory of earlier work: nothing counts."""
    write_layout(feature_image(), tmp_path / "in")
    script = (
        "import os, sys; os.umask(int(sys.argv.pop(1), 8)); "
        "from firstread.cli.main import main; main()"
    )

    def digest(number: int, umask: str, jobs: int, **env: str) -> str:
        command = [sys.executable, "-c", script, umask, "convert", "--json", "--jobs", f"{jobs}"]
        places = [f"oci:{tmp_path}/in:latest", f"oci:{tmp_path}/out{number}:latest"]
        ran = subprocess.run(
            [*command, *places],
            env={**os.environ, "FIRSTREAD_CACHE": str(tmp_path / "cache"), **env},
            capture_output=True,
            check=True,
        )
        made: str = json.loads(ran.stdout)["digest"]
        return made

    digests = {
        digest(1, "022", 1, PYTHONHASHSEED="1", TZ="UTC"),
        digest(2, "077", 3, PYTHONHASHSEED="2", TZ="Pacific/Chatham", LC_ALL="C"),
        digest(3, "000", 2, PYTHONHASHSEED="0", FIRSTREAD_CACHE=str(tmp_path / "none")),
    }
    assert len(digests) == 1


def test_other_processes_give_the_same(tmp_path: Path) -> None:
    """`run_task` takes and gives text; the layouts are opened over there."""
    digests = set()
    for name in ("threads", "processes", "mine"):
        (tmp_path / name).mkdir()
    digests.add(Shop(tmp_path / "threads").convert().digest)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context) as executor:
        digests.add(Shop(tmp_path / "processes").convert(executor=executor).digest)
    with ThreadPoolExecutor(3) as executor:
        digests.add(Shop(tmp_path / "mine").convert(executor=executor).digest)
    assert len(digests) == 1


def test_errors_come_from_other_processes(shop: Shop) -> None:
    write_layout(Image([BASE, TOP]), shop.directory / "in")
    shop.forget(BASE)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        with pytest.raises(NotFoundError) as caught:
            shop.convert(None, executor=executor)
        assert caught.value.layer == sha256_digest(BASE.blob)


def test_a_worker_that_dies(shop: Shop) -> None:
    class Broken(Executor):
        def submit(self, *_: Any, **__: Any) -> Future[Any]:
            future: Future[Any] = Future()
            future.set_exception(BrokenExecutor("killed"))
            return future

    with pytest.raises(NodeError, match="process") as caught:
        shop.convert(executor=Broken())
    assert "--jobs" in (caught.value.hint or "")


class Recorder(ThreadPoolExecutor):
    """Remembers the tasks that it was given."""

    def __init__(self) -> None:
        super().__init__(2)
        self.tasks: list[LayerTask] = []

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        assert function is run_task
        (text,) = args
        self.tasks.append(LayerTask.decode(text))
        return super().submit(function, text, **kwargs)


@pytest.mark.parametrize("sector_size", [64 * 1024, 4 * MiB, 16 * MiB, 64 * MiB])
def test_memory_does_not_grow_with_the_sectors(shop: Shop, sector_size: int) -> None:
    with Recorder() as executor:
        options = replace(OPTIONS, jobs=8, parameters=Parameters(sector_size, 64 * 1024))
        Shop(shop.directory, options).convert(Image([EMPTY, Layer([])]), executor=executor)
    (job, *_) = executor.tasks
    assert 1 <= job.in_flight <= 9
    assert sector_size > 16 * MiB or (job.in_flight + 2) * sector_size <= 96 * MiB


def test_the_largest_layer_comes_first(shop: Shop) -> None:
    with Recorder() as executor:
        shop.convert(executor=executor)
    sizes = [task.layer.size for task in executor.tasks]
    assert sizes == sorted(sizes, reverse=True)


def test_an_image_with_too_many_small_sectors_gets_larger_ones(shop: Shop) -> None:
    size = DEFAULT_SECTOR_SIZE * MAX_CHUNKS_PER_FILE * 3 // 2
    image = Image(
        [BASE, Layer([Sparse("large", size=size, data={DEFAULT_SECTOR_SIZE: b"x" * 4096})])]
    )
    with pytest.raises(SectorCountError, match="chunks"):
        shop.convert(image, parameters=Parameters())
    result = shop.convert(None, parameters=Parameters(), auto_sector_size=True)
    assert result.sector_size == 2 * DEFAULT_SECTOR_SIZE
    chosen = Parameters(2 * DEFAULT_SECTOR_SIZE)
    assert shop.convert(None, parameters=chosen).digest == result.digest


def test_the_usual_sector_size_is_the_default(shop: Shop) -> None:
    result = shop.convert(auto_sector_size=True)
    assert result.sector_size == DEFAULT_SECTOR_SIZE
    assert shop.convert(
        parameters=Parameters(frame_size=SMALL.frame_size, level=SMALL.level)
    ).unchanged


# -- no work twice ----------------------------------------------------------------------------


@pytest.fixture(params=["cache", "destination"])
def remembering(request: pytest.FixtureRequest, tmp_path: Path) -> Shop:
    """Remembers what is packed in one place only."""
    if request.param == "cache":
        cache = LayerCache(tmp_path / "cache")
        return Shop(tmp_path, replace(OPTIONS, cache=cache, reuse=False))
    return Shop(tmp_path)


def test_a_second_conversion_reads_no_layer_and_sends_no_blob(remembering: Shop) -> None:
    first = remembering.convert()
    stamps = remembering.stamps()
    remembering.forget(*IMAGE.layers)
    again = remembering.convert(None)
    assert again.digest == first.digest
    assert [layer.how for layer in again.layers] == ["known"] * 4
    assert again.uploaded_blobs == 0
    if remembering.options.reuse:
        assert again.unchanged
        assert remembering.stamps() == stamps
    assert [msgspec.structs.replace(layer, how="") for layer in again.layers] == [
        msgspec.structs.replace(layer, how="") for layer in first.layers
    ]


def test_only_the_layer_that_changed_is_packed(remembering: Shop) -> None:
    remembering.convert()
    other = Layer([File("other", b"x" * 9000)])
    write_layout(Image([BASE, MIDDLE, EMPTY, other]), remembering.directory / "in")
    remembering.forget(BASE, MIDDLE, EMPTY)
    result = remembering.convert(None)
    assert [layer.how for layer in result.layers] == ["known", "known", "known", "packed"]
    assert result.uploaded_blobs == 3  # its blob, metadata, config
    assert not result.unchanged


def test_a_record_in_the_cache_of_a_blob_that_is_elsewhere(tmp_path: Path) -> None:
    """A cache is shared by destinations; a blob that this one lacks is packed again."""
    cache = LayerCache(tmp_path / "cache")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        result = Shop(tmp_path / name, replace(OPTIONS, cache=cache)).convert()
        assert [layer.how for layer in result.layers] == ["packed"] * 4


def push(shop: Shop, registry: str, name: str, image: Image | None = None) -> Conversion:
    """Convert to a repository of a registry what is in ``in``."""
    if image is not None:
        write_layout(image, shop.directory / "in")
    to = parse_reference(f"docker://{registry}/{name}:1")
    return convert(shop.reference("in"), to, shop.options)


def test_a_registry_mounts_what_another_repository_of_it_has(tmp_path: Path) -> None:
    shop = Shop(tmp_path, replace(OPTIONS, cache=LayerCache(tmp_path / "cache")))
    with DockerRegistry() as registry:
        first = push(shop, registry.host, "a/one", IMAGE)
        shop.forget(*IMAGE.layers)
        for name in ("a/two", "b/three"):
            registry.forget()
            again = push(shop, registry.host, name)
            assert again.digest == first.digest
            assert [layer.how for layer in again.layers] == ["known"] * 4
            assert registry.counts.requests_of("PATCH") == 2  # metadata, config


def test_what_a_registry_does_not_mount_is_packed_again(tmp_path: Path) -> None:
    shop = Shop(tmp_path, replace(OPTIONS, cache=LayerCache(tmp_path / "cache")))
    with ScriptedRegistry(mounts=False) as registry, ScriptedRegistry() as other:
        push(shop, registry.host, "a/one", IMAGE)
        for place, name, tried in (
            (registry, "a/one", 0),  # it has lost them itself
            (registry, "a/two", 4),
            (other, "a/two", 0),
        ):
            place.blobs.clear()
            place.seen.clear()
            again = push(shop, place.host, name)
            assert [layer.how for layer in again.layers] == ["packed"] * 4
            mounts = [seen.query for seen in place.seen if seen.query.startswith("mount=")]
            assert len(mounts) == tried
            assert all(query.endswith("&from=a/one") for query in mounts)
            assert place.open_uploads() == 0


def test_a_blob_in_a_forbidden_repository_is_packed_again(tmp_path: Path) -> None:
    shop = Shop(tmp_path, replace(OPTIONS, cache=LayerCache(tmp_path / "cache")))
    with ScriptedRegistry("POST /a/two/blobs/uploads/ status 403") as registry:
        push(shop, registry.host, "a/one", IMAGE)
        registry.blobs.clear()
        again = push(shop, registry.host, "a/two")
        assert [layer.how for layer in again.layers] == ["packed"] * 4
        uploads = [seen for seen in registry.seen if "/a/two/blobs/uploads/" in seen.path]
        posts = [seen.query for seen in uploads if seen.method == "POST"]
        assert [query[:6] for query in posts[:2]] == ["mount=", ""]


def test_what_the_destination_knows_is_put_into_the_cache(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    shop.convert()
    cache = LayerCache(tmp_path / "cache")
    shop.convert(None, cache=cache)
    assert cache.get(BASE.diff_id, SMALL) == pack(BASE)[0]


def test_nothing_known_is_used_if_not_wanted(remembering: Shop) -> None:
    first = remembering.convert()
    again = remembering.convert(None, cache=None, reuse=False)
    assert [layer.how for layer in again.layers] == ["packed"] * 4
    assert (again.digest, again.uploaded_blobs) == (first.digest, 0)


def test_damage_is_repaired_if_nothing_known_is_used(shop: Shop) -> None:
    first = shop.convert()
    image = shop.result()
    blobs = [image.manifest.config, *image.manifest.layers]
    whole = {blob.digest: shop.blob(blob.digest, "out").read_bytes() for blob in blobs}
    for blob in blobs:
        damage(shop.blob(blob.digest, "out"), blob.size // 2)
    again = shop.convert(None, reuse=False)
    assert again.uploaded_blobs == first.uploaded_blobs == len(blobs)
    assert {blob.digest: shop.blob(blob.digest, "out").read_bytes() for blob in blobs} == whole


def test_other_parameters_are_other_work(shop: Shop) -> None:
    shop.convert()
    other = replace(OPTIONS, parameters=Parameters(128 * 1024, 16 * 1024))
    result = Shop(shop.directory, other).convert()
    assert [layer.how for layer in result.layers] == ["packed"] * 4


def test_finished_layers_are_remembered_though_another_fails(tmp_path: Path) -> None:
    shop = Shop(tmp_path, replace(OPTIONS, cache=LayerCache(tmp_path / "cache"), jobs=1))
    write_layout(IMAGE, tmp_path / "in")
    shop.forget(EMPTY)  # the smallest: it comes last
    with pytest.raises(NotFoundError):
        shop.convert(None)
    result = shop.convert(IMAGE)
    assert result.layers[0].how == "known"


def test_a_record_that_lies_is_an_error_that_says_what_to_do(shop: Shop) -> None:
    """Records can come from anybody who may push; they cannot break a conversion."""
    lie = LayerRecord(BASE.diff_id, SMALL.key, [], encode_entries([Entry(b"x", 0o100644, size=5)]))
    cache = LayerCache(shop.directory / "cache")
    shop.convert()
    good = pack(BASE)[0]
    cache.put(msgspec.structs.replace(good, record=lie.encode()), BASE.diff_id, SMALL)
    with pytest.raises(ImageError) as caught:
        shop.convert(None, cache=cache)
    assert "--no-cache" in (caught.value.hint or "")
    assert shop.convert(None, reuse=False).layers[0].how == "packed"


# -- failure ----------------------------------------------------------------------------------


def damage(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("jobs", [1, 4])
@pytest.mark.parametrize("layer", [BASE, MIDDLE, TOP])
def test_a_damaged_layer(shop: Shop, layer: Layer, jobs: int) -> None:
    write_layout(IMAGE, shop.directory / "in")
    damage(shop.blob(sha256_digest(layer.blob)), -12)
    with pytest.raises(ImageError) as caught:
        shop.convert(None, jobs=jobs)
    assert caught.value.layer == sha256_digest(layer.blob)
    assert caught.value.image == str(shop.reference("in"))
    with pytest.raises(NotFoundError), open_source(shop.reference("out")) as out:
        resolve(out)


def test_a_diff_id_that_is_wrong(shop: Shop) -> None:
    class Lying(Layer):
        @property
        def diff_id(self) -> str:
            return "sha256:" + "0" * 64

    with pytest.raises(DigestError) as caught:
        shop.convert(Image([BASE, Lying(TOP.items)]))
    assert caught.value.layer == sha256_digest(TOP.blob)


def test_layers_that_do_not_fit_together(shop: Shop) -> None:
    from firstread.testing.images import Hardlink

    bad = Layer([Hardlink("a", "nowhere")])
    with pytest.raises(ImageError, match="'nowhere'") as caught:
        shop.convert(Image([BASE, bad]))
    assert caught.value.layer == sha256_digest(bad.blob)


def test_the_old_image_keeps_its_tag_until_the_new_one_is_complete(shop: Shop) -> None:
    first = shop.convert()
    write_layout(Image([BASE, EMPTY, Layer([File("x", b"x" * 70_000)])]), shop.directory / "in")
    damage(shop.blob(sha256_digest(Layer([File("x", b"x" * 70_000)]).blob)), -12)
    with pytest.raises(ImageError):
        shop.convert(None)
    assert shop.result().descriptor.digest == first.digest


def _no_config(shop: Shop, image: ResolvedImage) -> None:
    shop.blob(image.manifest.config.digest, "out").unlink()


def _no_blob(shop: Shop, image: ResolvedImage) -> None:
    shop.blob(image.manifest.layers[1].digest, "out").unlink()


def _no_manifest(shop: Shop, image: ResolvedImage) -> None:
    shop.blob(image.descriptor.digest, "out").unlink()


def _ordinary(shop: Shop, _: ResolvedImage) -> None:
    shutil.rmtree(shop.directory / "out")
    write_layout(IMAGE, shop.directory / "out")


@pytest.mark.parametrize("spoil", [_no_config, _no_blob, _no_manifest, _ordinary])
def test_a_broken_image_at_the_destination_is_replaced(
    shop: Shop, spoil: Callable[[Shop, ResolvedImage], None]
) -> None:
    first = shop.convert()
    spoil(shop, shop.result())
    again = shop.convert()
    assert again.digest == first.digest
    image = shop.result()
    for blob in [image.manifest.config, *image.manifest.layers]:
        assert shop.blob(blob.digest, "out").stat().st_size == blob.size


def test_a_converted_image_is_no_source(shop: Shop) -> None:
    shop.convert()
    with pytest.raises(UnsupportedError, match="converted already"):
        convert(shop.reference("out"), shop.reference("twice"), OPTIONS)


def test_source_and_destination_are_two(shop: Shop) -> None:
    write_layout(IMAGE, shop.directory / "in")
    with pytest.raises(UsageError, match="same image"):
        convert(shop.reference("in"), shop.reference("in"), OPTIONS)


@pytest.mark.parametrize(
    ("name", "source", "tag"),
    [
        pytest.param("latest", "", "latest", id="the only one"),
        pytest.param("latest", "@{digest}", "latest", id="by its digest"),
        pytest.param("latest", ":v0@{digest}", "latest", id="by its digest, with another tag"),
        pytest.param("docker.io/app:v1", ":v1", "docker.io/app:v1", id="by the end of its name"),
        pytest.param("docker.io/app:v1", "", "docker.io/app:v1", id="a whole name"),
    ],
)
def test_the_original_keeps_its_name(tmp_path: Path, name: str, source: str, tag: str) -> None:
    write_layout(IMAGE, tmp_path / "in", name)
    before = (tmp_path / "in" / "index.json").read_bytes()
    original = json.loads(before)["manifests"][0]["digest"]
    place = f"oci:{tmp_path}/in"
    here, there = (
        parse_reference(place + text) for text in (source.format(digest=original), f":{tag}")
    )
    with pytest.raises(UsageError, match="same image"):
        convert(here, there, OPTIONS)
    if ":" not in tag:  # attach takes no other
        with pytest.raises(UsageError, match="same image"):
            attach(here, OPTIONS, destination=there)
    assert (tmp_path / "in" / "index.json").read_bytes() == before
    assert convert(here, parse_reference(f"{place}:lazy"), OPTIONS).source_digest == original


def test_a_second_name_of_the_original_may_be_taken(shop: Shop) -> None:
    write_layout(IMAGE, shop.directory / "in")
    first, second = (parse_reference(f"oci:{shop.directory}/in:{tag}") for tag in ("latest", "v2"))
    with open_destination(second, AccessOptions()) as place:
        descriptor, data = place.get_manifest("latest")
        place.put_manifest(data, descriptor.media_type, "v2")
    assert convert(first, second, OPTIONS).source_digest == descriptor.digest
    with open_source(first) as place:
        assert place.get_manifest()[0].digest == descriptor.digest


def test_an_index_of_the_same_image_is_replaced(shop: Shop) -> None:
    first = shop.convert()
    with open_destination(shop.reference("out"), AccessOptions()) as place:
        index = Index(manifests=[place.get_manifest()[0]])
        place.put_manifest(encode(index), OCI_INDEX, "latest")
    again = shop.convert()
    assert (again.digest, again.unchanged) == (first.digest, False)
    with open_source(shop.reference("out")) as place:
        assert place.get_manifest()[0].digest == first.digest
    assert shop.convert().unchanged


def test_a_destination_that_cannot_be_written(shop: Shop) -> None:
    write_layout(IMAGE, shop.directory / "in")
    (shop.directory / "out").write_text("a file")
    with pytest.raises(FirstreadError) as caught:
        shop.convert(None)
    assert caught.value.exit_code in (2, 5)


def test_progress_counts_what_is_read(shop: Shop) -> None:
    class Counter:
        def __init__(self) -> None:
            self.totals: dict[str, int] = {}
            self.read: dict[str, int] = {}
            self.how: dict[str, str] = {}

        def layers(self, layers: list[tuple[str, int]]) -> None:
            self.totals = dict(layers)

        def advance(self, layer: str, count: int) -> None:
            self.read[layer] = self.read.get(layer, 0) + count

        def sent(self, layer: str, count: int) -> None:
            pass

        def done(self, layer: str, how: str) -> None:
            self.how[layer] = how

    write_layout(IMAGE, shop.directory / "in")
    progress = Counter()
    convert(shop.reference("in"), shop.reference("out"), OPTIONS, progress=progress)
    assert progress.read == progress.totals
    assert set(progress.how) == set(progress.totals)
    assert set(progress.how.values()) == {"packed"}
