# SPDX-License-Identifier: Apache-2.0
"""Which attached image is taken for an original, and which are not."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from firstread.errors import SourceError, UnsupportedError
from firstread.oci.model import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    describe,
    encode,
)
from firstread.oci.platform import Platform, host_platform
from firstread.oci.reference import parse_reference
from firstread.oci.referrers import referrers_tag
from firstread.oci.repository import Repository
from firstread.registry import referrerlists as referrers
from firstread.registry.health import KnownEndpoints
from firstread.registry.hosts import Endpoint
from firstread.registry.open import open_destination, open_endpoints, open_source
from firstread.registry.options import AccessOptions
from firstread.sectors.attached import (
    MAX_CANDIDATES,
    all_attached,
    find_attached,
    resolve_converted,
)
from firstread.sectors.format import ARTIFACT_TYPE, METADATA_MEDIA_TYPE, SECTORS_MEDIA_TYPE
from firstread.sectors.hotnote import NO_TRACE
from firstread.sectors.image import GENERATION, HOT, PARAMETERS, SOURCE_DIGEST
from firstread.testing.registry import ScriptedRegistry

CONFIG = b'{"os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'
ORIGINAL = encode(
    Manifest(config=describe(CONFIG, OCI_CONFIG), layers=[describe(b"x", OCI_CONFIG)])
)
SUBJECT = describe(ORIGINAL, OCI_MANIFEST)
FAST = AccessOptions(retries=0)


def manifest(**changes: Any) -> Manifest:
    good = Manifest(
        artifact_type=ARTIFACT_TYPE,
        config=msgspec.structs.replace(describe(CONFIG, OCI_CONFIG), data=CONFIG),
        layers=[describe(b"m", METADATA_MEDIA_TYPE), describe(b"s", SECTORS_MEDIA_TYPE)],
        subject=SUBJECT,
        annotations={SOURCE_DIGEST: SUBJECT.digest, PARAMETERS: "v1 sector=4096"},
    )
    return msgspec.structs.replace(good, **changes)


GOOD = encode(manifest())
OTHER = "sha256:" + "0" * 64

BAD: dict[str, Manifest] = {
    "another subject": manifest(subject=Descriptor(media_type=OCI_MANIFEST, digest=OTHER, size=1)),
    "no subject": manifest(subject=None),
    "another source": manifest(annotations={SOURCE_DIGEST: OTHER, PARAMETERS: "v1 x"}),
    "no annotations": manifest(annotations=None),
    "another version": manifest(annotations={SOURCE_DIGEST: SUBJECT.digest, PARAMETERS: "v2 x"}),
    "another type": manifest(artifact_type="application/vnd.example.v1"),
    "an ordinary image": manifest(layers=[describe(b"x", OCI_CONFIG)]),
    "unknown layers": manifest(
        layers=[describe(b"m", METADATA_MEDIA_TYPE), describe(b"s", OCI_CONFIG)]
    ),
    "metadata without end": manifest(
        layers=[Descriptor(media_type=METADATA_MEDIA_TYPE, digest=OTHER, size=2**50)]
    ),
}


def listed(data: bytes, **changes: Any) -> Descriptor:
    entry = msgspec.structs.replace(describe(data, OCI_MANIFEST), artifact_type=ARTIFACT_TYPE)
    return msgspec.structs.replace(entry, **changes)


@pytest.fixture
def registry() -> Any:
    with ScriptedRegistry() as running:
        running.add_blob(CONFIG)
        store(running, ORIGINAL, "1")
        yield running


def store(registry: ScriptedRegistry, data: bytes, tag: str | None = None) -> None:
    entry = (OCI_INDEX if b'"manifests"' in data else OCI_MANIFEST, data)
    registry.manifests[describe(data, OCI_MANIFEST).digest] = entry
    if tag is not None:
        registry.manifests[tag] = entry


def say(registry: ScriptedRegistry, *entries: Descriptor) -> None:
    """Make the list of what refers to the original say this."""
    index = encode(Index(manifests=list(entries)))
    registry.manifests[referrers_tag(SUBJECT.digest)] = (OCI_INDEX, index)


def place_of(registry: ScriptedRegistry, name: str = "app:1") -> Repository:
    return open_source(parse_reference(f"{registry.host}/{name}"), FAST)


def test_it_is_found(registry: ScriptedRegistry) -> None:
    store(registry, GOOD)
    say(registry, listed(GOOD))
    with place_of(registry) as place:
        found = find_attached(place, SUBJECT)
        assert found is not None
        assert (found.descriptor, found.data) == (describe(GOOD, OCI_MANIFEST), GOOD)
        assert resolve_converted(place).descriptor == found.descriptor


def test_nothing_is_attached(registry: ScriptedRegistry) -> None:
    with place_of(registry) as place:
        assert find_attached(place, SUBJECT) is None
        with pytest.raises(UnsupportedError, match="ordinary image") as caught:
            resolve_converted(place)
    assert "convert --attach" in (caught.value.hint or "")


@pytest.mark.parametrize("name", BAD)
def test_unacceptable_images_are_passed_over(registry: ScriptedRegistry, name: str) -> None:
    bad = encode(BAD[name])
    store(registry, bad)
    store(registry, GOOD)
    with place_of(registry) as place:
        say(registry, listed(bad))
        assert find_attached(place, SUBJECT) is None
        say(registry, listed(bad), listed(GOOD))
        found = find_attached(place, SUBJECT)
        assert found is not None
        assert found.data == GOOD


HOT_TEXT = f"v1 granule=4096 reads=1 trace={SUBJECT.digest}"


@pytest.mark.parametrize("told", ["by the list", "embedded", "by the manifests"])
def test_one_with_hot_sectors_of_a_trace_is_preferred(
    registry: ScriptedRegistry, told: str
) -> None:
    many = [
        manifest(annotations={**(manifest().annotations or {}), "n": str(number)})
        for number in range(50)
    ]
    hot = [_noted(one, HOT_TEXT) for one in many[:2]]
    best = min(describe(encode(one), OCI_MANIFEST).digest for one in hot)
    static = (_noted(one, HOT_TEXT.replace(SUBJECT.digest, NO_TRACE)) for one in many)
    first = next(one for one in static if describe(encode(one), OCI_MANIFEST).digest < best)
    everything = [*many[:5], first, *hot]
    entries = []
    for one in everything:
        data = encode(one)
        store(registry, data)
        entry = listed(data, annotations=one.annotations if told == "by the list" else None)
        entries.append(msgspec.structs.replace(entry, data=data if told == "embedded" else None))
    say(registry, *entries)
    with place_of(registry) as place:
        found = find_attached(place, SUBJECT)
        assert found is not None
        assert found.descriptor.digest == best
        if told == "by the list":
            assert len(registry.asked("/manifests/sha256:")) == 1
        assert len(list(all_attached(place, SUBJECT))) == len(everything) == MAX_CANDIDATES


def _noted(image: Manifest, text: str) -> Manifest:
    return msgspec.structs.replace(image, annotations={**(image.annotations or {}), HOT: text})


@pytest.mark.parametrize("text", ["", "-1", "1e9", "9999999", "9" * 9000, "\u0663"])
def test_of_several_with_hot_sectors_the_highest_generation_is_taken(
    registry: ScriptedRegistry, text: str
) -> None:
    """Numbers are compared, not texts; what is no number is as good as none."""
    plain = {**(manifest().annotations or {}), HOT: HOT_TEXT}
    many = [
        encode(manifest(annotations=annotations))
        for annotations in (
            *({**plain, GENERATION: number} for number in ("7", "12", "9", text)),
            plain,
            {SOURCE_DIGEST: SUBJECT.digest, PARAMETERS: "v1 x", GENERATION: "99"},
        )
    ]
    for data in many:
        store(registry, data)
    say(registry, *map(listed, many))
    with place_of(registry) as place:
        found = [found.data for found in all_attached(place, SUBJECT)]
    assert found[:3] == [many[1], many[2], many[0]]
    assert found[5] == many[5]


def _lies(entry: Descriptor) -> dict[str, Descriptor]:
    change = msgspec.structs.replace
    return {
        "missing": change(entry, digest=OTHER),
        "other bytes are embedded": change(entry, data=b"{}"),
        "another size": change(entry, size=3, data=GOOD),
        "an index": change(entry, media_type=OCI_INDEX, data=GOOD),
        "an unknown kind": change(entry, media_type="text/html", data=GOOD),
    }


@pytest.mark.parametrize("name", _lies(listed(GOOD)))
def test_entries_that_lie_never_raise(registry: ScriptedRegistry, name: str) -> None:
    say(registry, _lies(listed(GOOD))[name])
    with place_of(registry) as place:
        assert find_attached(place, SUBJECT) is None


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'{"schemaVersion":2,"manifests":7}', ORIGINAL, b"\xff" * 9]
)
def test_a_list_that_is_none_never_raises(registry: ScriptedRegistry, data: bytes) -> None:
    registry.manifests[referrers_tag(SUBJECT.digest)] = (OCI_INDEX, data)
    with place_of(registry) as place:
        assert find_attached(place, SUBJECT) is None


def test_a_registry_that_fails_is_no_answer(registry: ScriptedRegistry) -> None:
    registry.script("GET /referrers/ status 503 x9")
    with place_of(registry) as place, pytest.raises(SourceError):
        find_attached(place, SUBJECT)


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(
    "script",
    [
        "GET /referrers/ status 429 Retry-After=60 x9",
        "GET /referrers/ blackhole 30 x9",
        "GET /referrers/ hangup 0 x9",
        "GET /manifests/sha256- status 429 Retry-After=60 x9",
        "GET /manifests/sha256- blackhole 30 x9",
        "GET /manifests/sha256- status 403 x9",
        "GET /manifests/sha256- status 500 x9",
    ],
)
def test_an_ordinary_image_stays_one_whatever_comes_of_the_question(
    registry: ScriptedRegistry,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    mirrored: bool,
    indexed: bool,
) -> None:
    monkeypatch.setattr(referrers, "QUESTION_S", 0.3)
    if indexed:
        data = index_of(SUBJECT)
        registry.manifests["1"] = (OCI_INDEX, data)
    registry.script(script)
    known = KnownEndpoints()
    place: Repository = open_destination(parse_reference(f"{registry.host}/app:1"), FAST)
    if mirrored:
        endpoint = Endpoint("http", registry.host)
        place = open_endpoints(place.reference, [endpoint], FAST, known)
    with place:
        for _ in range(2):
            with pytest.raises(UnsupportedError, match="ordinary image") as caught:
                resolve_converted(place)
        assert "convert --attach" in (caught.value.hint or "")
        if "status 403" not in script:
            assert "does not say now what is attached" in (caught.value.hint or "")
        # And what is asked next is asked, and does not wait for anything.
        assert place.get_manifest(SUBJECT.digest)[1] == ORIGINAL
    for document in known.documents():
        assert document["state"] == "healthy"


def test_a_converted_image_is_found_where_the_api_does_not_answer(
    registry: ScriptedRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(referrers, "QUESTION_S", 0.3)
    store(registry, GOOD)
    say(registry, listed(GOOD))
    registry.script("GET /referrers/ blackhole 30 x9")
    with place_of(registry) as place:
        assert resolve_converted(place).manifest_bytes == GOOD


def test_of_several_the_lowest_digest_is_taken(registry: ScriptedRegistry) -> None:
    many = [
        encode(manifest(annotations={SOURCE_DIGEST: SUBJECT.digest, PARAMETERS: f"v1 level={n}"}))
        for n in range(5)
    ]
    for data in many:
        store(registry, data)
    expected = sorted(describe(data, OCI_MANIFEST).digest for data in many)
    with place_of(registry) as place:
        for order in (many, many[::-1]):
            say(registry, *(listed(data) for data in order))
            found = [found.descriptor.digest for found in all_attached(place, SUBJECT)]
            assert found == expected


def test_no_more_than_some_are_read(registry: ScriptedRegistry) -> None:
    say(registry, *(listed(str(n).encode()) for n in range(500)))
    with place_of(registry) as place:
        registry.seen.clear()
        assert find_attached(place, SUBJECT) is None
        assert len(registry.asked("/manifests/sha256:")) == MAX_CANDIDATES


def test_a_list_without_types(registry: ScriptedRegistry) -> None:
    """skopeo 1.9 drops types, and embedded manifests, when it copies a list."""
    store(registry, GOOD)
    signature = encode(manifest(artifact_type=None, annotations=None))
    store(registry, signature)
    told = {"artifact_type": None, "annotations": manifest().annotations}
    say(registry, listed(signature, artifact_type=None), listed(GOOD, **told))
    with place_of(registry) as place:
        registry.seen.clear()
        found = find_attached(place, SUBJECT)
        assert found is not None
        assert found.data == GOOD
        assert len(registry.asked("/manifests/sha256:")) == 1


# -- requests --------------------------------------------------------------------------------------


def index_of(*entries: Descriptor) -> bytes:
    return encode(
        Index(
            manifests=[msgspec.structs.replace(e, platform=host_platform()) for e in entries],
        )
    )


@pytest.mark.parametrize("api", [True, False], ids=["api", "tag"])
@pytest.mark.parametrize("indexed", [True, False], ids=["index", "manifest"])
def test_three_requests_find_it(api: bool, indexed: bool) -> None:
    """And one more fetches the metadata: its config is in the manifest."""
    with ScriptedRegistry(referrers=api) as registry:
        store(registry, ORIGINAL, "1")
        if indexed:
            store(registry, index_of(SUBJECT), "1")
        blobs = (CONFIG, b"m", b"s")
        for blob in blobs:
            registry.add_blob(blob)
        with open_destination(parse_reference(f"{registry.host}/app:1"), FAST) as destination:
            destination.put_referrer(GOOD, OCI_MANIFEST)
        registry.seen.clear()
        with place_of(registry) as place:
            assert resolve_converted(place).manifest == manifest()
        asked = [seen.split("/")[3] for seen in registry.asked()]
        assert asked == ["manifests", "referrers", "manifests"]


def test_a_converted_image_is_not_looked_up(registry: ScriptedRegistry) -> None:
    data = encode(manifest(subject=None, artifact_type=None))
    store(registry, data, "2")
    registry.seen.clear()
    with place_of(registry, "app:2") as place:
        assert resolve_converted(place).descriptor.digest == describe(data, OCI_MANIFEST).digest
    assert registry.asked() == ["GET /v2/app/manifests/2"]


def test_an_index_of_converted_images(registry: ScriptedRegistry) -> None:
    data = encode(manifest(subject=None, artifact_type=None))
    store(registry, data)
    store(registry, index_of(describe(data, OCI_MANIFEST)), "2")
    with place_of(registry, "app:2") as place:
        assert resolve_converted(place).descriptor.digest == describe(data, OCI_MANIFEST).digest


def test_indexes_side_by_side(registry: ScriptedRegistry) -> None:
    """A conversion that was attached is found again."""
    other = Platform(os="linux", architecture="s390x")
    inner = [
        encode(Index(manifests=[msgspec.structs.replace(SUBJECT, platform=other)])),
        index_of(SUBJECT),
    ]
    for data in inner:
        store(registry, data)
    entries = [describe(data, OCI_INDEX) for data in inner]
    store(registry, encode(Index(manifests=entries)), "2")
    say(registry, listed(GOOD))
    store(registry, GOOD)
    with place_of(registry, "app:2") as place:
        assert resolve_converted(place).manifest == manifest()


def test_an_index_of_ordinary_images_is_looked_up_once(registry: ScriptedRegistry) -> None:
    store(registry, index_of(SUBJECT), "2")
    registry.seen.clear()
    with place_of(registry, "app:2") as place, pytest.raises(UnsupportedError):
        resolve_converted(place)
    assert len(registry.asked("/referrers/")) == 1
