# SPDX-License-Identifier: Apache-2.0
"""Optimizing a converted image gives what converting its original with the trace gives."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from firstread.convert.attach import attach
from firstread.convert.conversion import ConvertOptions, convert
from firstread.convert.optimize import OptimizeOptions, optimize
from firstread.convert.outcome import Optimization
from firstread.convert.platforms import convert_all
from firstread.errors import ImageError, UnsupportedError, UsageError
from firstread.oci.model import OCI_INDEX, OCI_MANIFEST, Index, describe, encode
from firstread.oci.platform import parse_platform
from firstread.oci.reference import Reference, parse_reference
from firstread.oci.resolve import ResolvedImage, document_of, resolve
from firstread.registry.open import open_destination, open_source
from firstread.sectors.attached import resolve_converted
from firstread.sectors.image import HOT, PARAMETERS, RECORD, SOURCE_DIGEST
from firstread.testing.images import (
    File,
    Image,
    Layer,
    Symlink,
    Whiteout,
    write_index,
    write_layout,
)
from firstread.testing.packed import SMALL
from firstread.testing.registry import DockerRegistry
from firstread.testing.starts import trace_of
from firstread.traces.attachedtraces import attach_trace
from firstread.traces.tracefile import Trace

LARGE = random.Random(1).randbytes(300_000)
BASE = Layer([File("large", LARGE), Symlink("link", "large"), File("zeros", bytes(200_000))])
TOP = Layer([File("top", b"top" * 9000), File("hidden", b"h" * 5000), Whiteout("zeros")])
EMPTY = Layer([Symlink("only", "names")])
IMAGE = Image([BASE, EMPTY, TOP, EMPTY], {"Cmd": ["/top"]})
FIRST = trace_of(("large", 70, 2), ("top", 0, 3), ("large", 0, 1))
SECOND = trace_of(("top", 2, 1), ("large", 30, 9))
OPTIONS = ConvertOptions(parameters=SMALL)


class Shop:
    """An original and converted images in layouts of one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        write_layout(IMAGE, directory / "in")

    def reference(self, name: str) -> Reference:
        return parse_reference(name if "/" in name else f"oci:{self.directory}/{name}:latest")

    def convert(self, name: str = "out", *traces: Trace) -> str:
        options = replace(OPTIONS, traces=traces)
        return convert(self.reference("in"), self.reference(name), options).digest

    def optimize(self, name: str, to: str | None, *traces: Trace) -> Optimization:
        destination = None if to is None else self.reference(to)
        return optimize(self.reference(name), destination, traces, OptimizeOptions())

    def image(self, name: str) -> ResolvedImage:
        with open_source(self.reference(name)) as repository:
            return resolve(repository)

    def change(self, name: str, **changes: object) -> None:
        """Publish a changed manifest under the name of an image."""
        manifest = msgspec.structs.replace(self.image(name).manifest, **changes)
        with open_destination(self.reference(name)) as repository:
            repository.put_manifest(encode(manifest), OCI_MANIFEST, "latest")


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def test_the_result_is_that_of_a_conversion(shop: Shop) -> None:
    expected = shop.convert("expected", FIRST)
    plain = shop.convert()
    done = shop.optimize("out", None, FIRST)
    assert done.digest == expected != plain
    assert shop.image("out").config_bytes == shop.image("expected").config_bytes
    assert done.uploaded_blobs == 3  # hot sectors, metadata, config
    assert done.hot is not None
    assert (done.hot.sectors, done.hot.reads, done.hot.files) == (1, 3, 2)


def test_zeros_that_a_trace_reads_are_no_data(shop: Shop) -> None:
    """Such traces are of another version of the image, or of other sectors."""
    write_layout(Image([Layer([File("a", bytes(SMALL.sector_size * 2) + LARGE)])]), shop.directory)
    image, trace = f"oci:{shop.directory}:latest", trace_of(("a", 0, 80))
    plain, expected = (parse_reference(f"oci:{shop.directory}/{name}:latest") for name in "xy")
    convert(parse_reference(image), plain, OPTIONS)
    made = convert(parse_reference(image), expected, replace(OPTIONS, traces=[trace]))
    assert optimize(plain, None, [trace], OptimizeOptions()).digest == made.digest


def test_another_trace_begins_from_the_original_chunks(shop: Shop) -> None:
    expected = shop.convert("expected", SECOND)
    shop.convert("out", FIRST)
    assert shop.optimize("out", None, SECOND).digest == expected
    again = shop.optimize("out", None, SECOND)
    assert (again.digest, again.unchanged, again.uploaded_blobs) == (expected, True, 0)


def test_several_traces_are_merged(shop: Shop) -> None:
    expected = shop.convert("expected", FIRST, SECOND)
    shop.convert()
    assert shop.optimize("out", None, FIRST, SECOND).digest == expected


def test_the_original_is_not_needed(shop: Shop) -> None:
    expected = shop.convert("expected", FIRST)
    shop.convert()
    (shop.directory / "in").rename(shop.directory / "gone")
    assert shop.optimize("out", None, FIRST).digest == expected


def test_a_destination_elsewhere_gets_all_blobs(shop: Shop) -> None:
    expected = shop.convert("expected", FIRST)
    plain = shop.convert()
    assert shop.optimize("out", "copy", FIRST).digest == expected
    assert shop.image("out").descriptor.digest == plain
    with open_source(shop.reference("copy")) as repository:
        layers = shop.image("copy").manifest.layers
        assert all(map(repository.has_blob, layers))


def test_an_attached_image_gets_a_neighbour_that_nodes_prefer(shop: Shop) -> None:
    here = shop.reference("in")
    before = shop.image("in").descriptor
    plain = attach(here, OPTIONS).images[0].digest
    done = shop.optimize("in", None, FIRST)
    assert done.attached_to == before.digest
    assert done.chosen == done.digest != plain
    assert shop.image("in").descriptor == before
    with open_source(here) as repository:
        found = resolve_converted(repository)
        assert found.descriptor.digest == done.digest
        assert HOT in (found.manifest.annotations or {})
    assert attach(here, replace(OPTIONS, traces=[FIRST])).images[0].digest == done.digest


def test_nodes_take_the_trace_that_came_last(shop: Shop) -> None:
    here = shop.reference("in")
    attach(here, OPTIONS)
    traces = [trace_of(("large", block, 2)) for block in range(6)]
    for trace in traces:  # the order of digests alone would be right once in 720 times
        done = shop.optimize("in", None, trace)
        assert done.chosen == done.digest
    again = shop.optimize("in", None, traces[-1])
    assert (again.digest, again.unchanged) == (done.digest, True)
    older = shop.optimize("in", None, traces[0])
    assert older.chosen == older.digest
    named = attach(here, replace(OPTIONS, traces=[traces[1]])).images[0]
    assert attach(here, OPTIONS).chosen == [named.digest]  # no trace, no say
    copied = shop.optimize("in", "copy", traces[2])
    assert copied.digest == shop.convert("expected", traces[2])  # a name of its own needs no number


def test_a_name_of_an_attached_image_moves(shop: Shop) -> None:
    named = parse_reference(f"oci:{shop.directory}/in:named")
    attach(shop.reference("in"), OPTIONS, destination=named)
    done = optimize(named, None, [FIRST], OptimizeOptions())
    assert done.attached_to == shop.image("in").descriptor.digest
    with open_source(named) as repository:
        assert resolve(repository).descriptor.digest == done.digest


def test_an_index_lists_the_result_in_place_of_the_image(shop: Shop) -> None:
    images = {"linux/amd64": IMAGE, "linux/arm64": Image([BASE])}
    write_index(images, shop.directory / "in")
    convert_all(shop.reference("in"), shop.reference("out"), OPTIONS)
    amd64, arm64 = index_of(shop, "out").manifests
    options = OptimizeOptions(platform=parse_platform("linux/amd64"))
    done = optimize(shop.reference("out"), None, [FIRST], options)
    renewed, other = index_of(shop, "out").manifests
    assert (renewed.digest, renewed.platform) == (done.digest, amd64.platform)
    assert renewed.annotations == amd64.annotations
    assert other == arm64
    assert done.destination == str(shop.reference("out"))
    with open_source(shop.reference("out")) as repository:
        found = resolve_converted(repository, options.platform)
    assert found.descriptor.digest == done.digest
    assert HOT in (found.manifest.annotations or {})
    again = optimize(shop.reference("out"), None, [FIRST], options)
    assert (again.digest, again.unchanged) == (done.digest, True)
    copied = optimize(shop.reference("out"), shop.reference("copy"), [SECOND], options)
    assert shop.image("copy").descriptor.digest == copied.digest
    assert index_of(shop, "out").manifests == [renewed, other]


def test_an_index_within_an_index_is_refused(shop: Shop) -> None:
    shop.convert()
    inner = describe(encode(shop.image("out").manifest), OCI_MANIFEST)
    with open_destination(shop.reference("out")) as repository:
        for _ in range(2):
            data = encode(Index(manifests=[inner]))
            inner = repository.put_manifest(data, OCI_INDEX, "latest")
    with pytest.raises(UsageError, match="an index within the index"):
        shop.optimize("out", None, FIRST)


def index_of(shop: Shop, name: str) -> Index:
    with open_source(shop.reference(name)) as repository:
        document = document_of(*repository.get_manifest())
    assert isinstance(document, Index)
    return document


def test_the_name_of_the_original_is_not_taken(shop: Shop) -> None:
    named = parse_reference(f"oci:{shop.directory}/in:named")
    attach(shop.reference("in"), OPTIONS, destination=named)
    with pytest.raises(UsageError, match="same image"):
        optimize(named, shop.reference("in"), [FIRST], OptimizeOptions())


def test_a_trace_of_another_image_is_an_error(shop: Shop) -> None:
    shop.convert("out", FIRST)
    before = shop.image("out")
    with pytest.raises(UsageError, match="nothing in the trace fits"):
        shop.optimize("out", None, trace_of(("gone", 0, 1), ("top", 900, 1)))
    assert shop.image("out") == before


def test_the_attached_traces_are_taken_if_none_is_named(shop: Shop) -> None:
    here = shop.reference("in")
    attach(here, OPTIONS)
    with pytest.raises(UsageError, match="no trace is attached to the image"):
        shop.optimize("in", "out")
    assert not (shop.directory / "out").exists()
    with open_destination(replace(here, tag=None)) as repository:
        original = shop.image("in").descriptor
        made = {
            attach_trace(repository, [original.digest], trace)[1].digest: trace
            for trace in (FIRST, SECOND)
        }
    done = shop.optimize("in", None)
    again = shop.optimize("in", None, *(made[digest] for digest in sorted(made)))
    assert (again.digest, again.unchanged) == (done.digest, True)


def test_a_trace_of_the_converted_image_alone_is_found(shop: Shop) -> None:
    shop.convert()
    with open_destination(shop.reference("out")) as repository:
        attach_trace(repository, [shop.image("out").descriptor.digest], FIRST)
    assert shop.optimize("out", None).digest == shop.convert("expected", FIRST)


def test_an_ordinary_image_is_refused(shop: Shop) -> None:
    with pytest.raises(UnsupportedError, match="ordinary image"):
        shop.optimize("in", "out", FIRST)


def test_an_archive_needs_another_name(shop: Shop) -> None:
    archive = parse_reference(f"oci-archive:{shop.directory}/archive")
    convert(shop.reference("in"), archive, OPTIONS)
    with pytest.raises(UsageError, match="an archive is not changed"):
        optimize(archive, None, [FIRST], OptimizeOptions())
    expected = shop.convert("expected", FIRST)
    assert optimize(archive, shop.reference("out"), [FIRST], OptimizeOptions()).digest == expected


def test_a_layer_twice_that_counts_twice_is_refused(shop: Shop) -> None:
    """Such an image has the blob once, so its records do not say which layer is on top."""
    write_layout(Image([BASE, TOP, BASE]), shop.directory / "in")
    shop.convert()
    with pytest.raises(UnsupportedError, match="do not give its tree") as caught:
        shop.optimize("out", None, FIRST)
    assert "convert its original again" in (caught.value.hint or "")


@pytest.mark.parametrize("name", [PARAMETERS, SOURCE_DIGEST])
def test_a_missing_annotation_is_named(shop: Shop, name: str) -> None:
    shop.convert()
    annotations = dict(shop.image("out").manifest.annotations or {})
    del annotations[name]
    shop.change("out", annotations=annotations)
    with pytest.raises(ImageError, match="the image does not"):
        shop.optimize("out", None, FIRST)


def test_a_damaged_record_is_named(shop: Shop) -> None:
    shop.convert()
    metadata, first, *rest = shop.image("out").manifest.layers
    record = (first.annotations or {})[RECORD]
    annotations = {**(first.annotations or {}), RECORD: record[:-1] + "x"}
    damaged = msgspec.structs.replace(first, annotations=annotations)
    shop.change("out", layers=[metadata, damaged, *rest])
    with pytest.raises(ImageError, match="layer record") as caught:
        shop.optimize("out", None, FIRST)
    assert caught.value.layer == first.digest


# -- a registry ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def registry() -> Iterator[DockerRegistry]:
    with DockerRegistry() as running:
        yield running


def test_a_registry_takes_hot_sectors_and_metadata_alone(
    shop: Shop, registry: DockerRegistry
) -> None:
    name = f"{registry.host}/app:1"
    convert(shop.reference("in"), shop.reference(name), OPTIONS)
    expected = shop.convert("expected", FIRST)
    registry.forget()
    done = shop.optimize(name, None, FIRST)
    assert done.digest == expected
    uploads = registry.counts.requests_of("POST /v2/app/blobs/uploads/")
    assert uploads == done.uploaded_blobs == 3
    assert registry.counts.requests_of("GET /v2/app/manifests/") == 1


def test_a_registry_mounts_the_blobs_for_another_repository(
    shop: Shop, registry: DockerRegistry
) -> None:
    convert(shop.reference("in"), shop.reference(f"{registry.host}/from:1"), OPTIONS)
    registry.forget()
    done = shop.optimize(f"{registry.host}/from:1", f"{registry.host}/to:2", FIRST)
    assert done.uploaded_blobs == 3
