# SPDX-License-Identifier: Apache-2.0
"""Lists of what refers to a manifest: the registry's own, the tag's, and a layout's."""

from __future__ import annotations

import io
import json
import shlex
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstread.errors import (
    FirstreadError,
    ImageError,
    LimitError,
    SourceError,
    TransportError,
    UsageError,
)
from firstread.layouts.layoutwriter import LayoutDestination
from firstread.oci.model import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    describe,
    embedded,
    encode,
    parse_index,
)
from firstread.oci.reference import parse_reference
from firstread.oci.referrers import MAX_ENTRIES, describe_referrer, referrers_tag, with_entry
from firstread.oci.repository import Destination, Repository
from firstread.registry import referrerlists as referrers
from firstread.registry.answer import Answer
from firstread.registry.health import MAX_DECLINED, Declined, KnownEndpoints
from firstread.registry.open import open_destination, open_source
from firstread.registry.options import AccessOptions
from firstread.registry.referrerlists import COSTS, NO_API_S, next_page
from firstread.registry.remote import RemoteDestination
from firstread.testing.registry import DockerRegistry, ScriptedRegistry

TYPE = "application/vnd.example.thing.v1"
OTHER = "application/vnd.example.other.v1"
ORIGINAL = encode(Manifest(config=describe(b"{}", OCI_CONFIG), layers=[describe(b"x", OCI_CONFIG)]))
SUBJECT = describe(ORIGINAL, OCI_MANIFEST)
FAST = AccessOptions(retries=2, retry_base=0.001)


def thing(name: str, artifact_type: str | None = TYPE) -> bytes:
    return encode(
        Manifest(
            artifact_type=artifact_type,
            config=describe(b"{}", OCI_CONFIG),
            layers=[describe(b"x", OCI_CONFIG)],
            subject=SUBJECT,
            annotations={"name": name},
        )
    )


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(referrers, "SETTLE_S", 0.01)


def place_of(registry: ScriptedRegistry | DockerRegistry) -> Destination:
    return open_destination(parse_reference(f"{registry.host}/app:1"), FAST)


def source(registry: ScriptedRegistry, name: str, declined: Declined) -> Repository:
    """Open an image of the registry where `declined` is known."""
    known = KnownEndpoints()
    known.declined = declined
    return open_source(parse_reference(f"{registry.host}/{name}"), FAST, known)


@pytest.fixture(params=["api", "pages", "unfiltered", "tag", "docker", "layout"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Destination]:
    """Every kind of place that keeps lists."""
    kind = request.param
    if kind == "layout":
        with LayoutDestination(parse_reference(f"oci:{tmp_path}/l:1")) as layout:
            yield prepared(layout)
        return
    registry = (
        DockerRegistry()
        if kind == "docker"
        else ScriptedRegistry(
            referrers=kind != "tag",
            page=1 if kind == "pages" else 0,
            filters=kind != "unfiltered",
        )
    )
    with registry as running, place_of(running) as opened:
        yield prepared(opened)


def prepared(place: Destination) -> Destination:
    for blob in (b"{}", b"x"):
        place.put_blob(describe(blob, OCI_CONFIG), io.BytesIO(blob))
    place.put_manifest(ORIGINAL, OCI_MANIFEST, "1")
    return place


def names(place: Repository, artifact_type: str = TYPE) -> list[str]:
    return sorted(entry.digest for entry in place.referrers(SUBJECT.digest, artifact_type))


def test_attached_images_are_listed(place: Destination) -> None:
    assert names(place) == []
    first, second = (place.put_referrer(thing(name), OCI_MANIFEST) for name in "ab")
    other = place.put_referrer(thing("c", OTHER), OCI_MANIFEST)
    assert names(place) == sorted([first.digest, second.digest])
    assert names(place, OTHER) == [other.digest]
    assert place.referrers("sha256:" + "0" * 64, TYPE) == []
    assert place.get_manifest(first.digest)[1] == thing("a")
    assert place.get_manifest() == (SUBJECT, ORIGINAL)  # the original is what it was


@pytest.mark.parametrize("api", [True, False], ids=["api", "tag"])
def test_a_list_that_breaks_off_is_asked_for_again(api: bool) -> None:
    with ScriptedRegistry(referrers=api) as registry, place_of(registry) as place:
        made = prepared(place).put_referrer(thing("a"), OCI_MANIFEST)
        registry.script(f"GET /{'referrers' if api else 'manifests'}/sha256 hangup 50")
        assert names(place) == [made.digest]
        assert registry.unused() == []


def test_putting_it_again_changes_nothing(place: Destination) -> None:
    for _ in range(2):
        made = place.put_referrer(thing("a"), OCI_MANIFEST)
        assert names(place) == [made.digest]


def test_it_can_have_a_name_as_well(place: Destination) -> None:
    made = place.put_referrer(thing("a"), OCI_MANIFEST, "lazy")
    assert place.get_manifest("lazy")[0].digest == made.digest
    assert names(place) == [made.digest]
    assert place.get_manifest("1") == (SUBJECT, ORIGINAL)


def test_a_manifest_without_a_subject_is_refused(place: Destination) -> None:
    with pytest.raises(UsageError, match="no subject"):
        place.put_referrer(ORIGINAL, OCI_MANIFEST)


def test_the_only_image_of_a_layout_is_still_found_without_a_name(tmp_path: Path) -> None:
    with LayoutDestination(parse_reference(f"oci:{tmp_path}/l")) as layout:
        layout.put_manifest(ORIGINAL, OCI_MANIFEST, None)
        layout.put_referrer(thing("a"), OCI_MANIFEST)
        assert layout.get_manifest()[0] == SUBJECT
        entries = json.loads((tmp_path / "l/index.json").read_bytes())["manifests"]
        assert [entry.get("artifactType") for entry in entries] == [None, TYPE]


# -- the tag ---------------------------------------------------------------------------------------


def test_the_tag_carries_small_manifests() -> None:
    """So that a reader needs no request for them."""
    with ScriptedRegistry() as registry, place_of(registry) as place:
        place.put_referrer(thing("a"), OCI_MANIFEST)
        (entry,) = place.referrers(SUBJECT.digest, TYPE)
        assert embedded(entry) == thing("a")
        media_type, data = registry.manifests[referrers_tag(SUBJECT.digest)]
        assert media_type == OCI_INDEX
        assert parse_index(data).manifests == [entry]


def test_the_tag_keeps_what_others_wrote() -> None:
    theirs = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "x-unknown": 7,
        "manifests": [
            {"mediaType": OCI_MANIFEST, "digest": "sha256:" + "1" * 64, "size": 3, "x": "y"}
        ],
    }
    entry = describe(b"mine", OCI_MANIFEST)
    changed = with_entry(json.dumps(theirs).encode(), entry)
    assert changed is not None
    made = json.loads(changed)
    assert made["x-unknown"] == 7
    assert made["manifests"][0] == theirs["manifests"][0]  # type: ignore[index]
    assert made["manifests"][1]["digest"] == entry.digest
    assert with_entry(changed, entry) is None
    null = json.dumps(theirs | {"manifests": None}).encode()  # as Go writes no entries
    alone = with_entry(null, entry)
    assert alone is not None
    assert parse_index(alone).manifests == [entry]


def test_a_tag_that_is_something_else_is_not_overwritten() -> None:
    with ScriptedRegistry() as registry, place_of(registry) as place:
        tag = referrers_tag(SUBJECT.digest)
        registry.manifests[tag] = (OCI_MANIFEST, ORIGINAL)
        with pytest.raises(ImageError, match=r"sha256-[0-9a-f]{64} is no list") as caught:
            place.put_referrer(thing("a"), OCI_MANIFEST)
        assert "remove the tag" in (caught.value.hint or "")
        assert registry.manifests[tag] == (OCI_MANIFEST, ORIGINAL)


def test_a_full_list_is_refused() -> None:
    entries = [describe(str(n).encode(), OCI_MANIFEST) for n in range(MAX_ENTRIES)]
    with pytest.raises(LimitError):
        with_entry(encode(Index(manifests=entries)), SUBJECT)


class _Interferer:
    """Loses our entry the first times, as a client that read the list before would."""

    def __init__(self, registry: ScriptedRegistry, place: Destination, times: int) -> None:
        assert isinstance(place, RemoteDestination)
        transport = place.endpoints()[0][1].transport
        request = transport.request
        tag = referrers_tag(SUBJECT.digest)
        theirs = with_entry(None, describe(b"theirs", OCI_MANIFEST))
        assert theirs is not None
        self.left = times

        def interfere(method: str, url: str, **arguments: object) -> object:
            answer = request(method, url, **arguments)  # type: ignore[arg-type]
            if method == "PUT" and url.endswith(tag) and self.left:
                self.left -= 1
                registry.manifests[tag] = (OCI_INDEX, theirs)
            return answer

        transport.request = interfere  # type: ignore[method-assign,assignment]


def test_a_lost_entry_is_put_back() -> None:
    with ScriptedRegistry() as registry, place_of(registry) as place:
        others = _Interferer(registry, place, 3)
        made = place.put_referrer(thing("a"), OCI_MANIFEST)
        data = registry.manifests[referrers_tag(SUBJECT.digest)][1]
        assert [entry.digest for entry in parse_index(data).manifests] == [
            describe(b"theirs", OCI_MANIFEST).digest,
            made.digest,
        ]
        assert others.left == 0


def test_an_entry_that_is_always_lost_is_an_error() -> None:
    with ScriptedRegistry() as registry, place_of(registry) as place:
        _Interferer(registry, place, 1000)
        with pytest.raises(SourceError, match="others keep on changing"):
            place.put_referrer(thing("a"), OCI_MANIFEST)


def test_many_at_once_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(referrers, "SETTLE_S", 0.2)
    failed: list[FirstreadError] = []
    with ScriptedRegistry() as registry:

        def attach(name: str) -> None:
            try:
                with place_of(registry) as place:
                    place.put_referrer(thing(name), OCI_MANIFEST)
            except FirstreadError as exc:
                failed.append(exc)

        threads = [threading.Thread(target=attach, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert failed == []
        with place_of(registry) as place:
            assert len(names(place)) == 4


# -- what registries answer ------------------------------------------------------------------------


@pytest.mark.parametrize("attached", [True, False])
@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 405, 406, 410, 418, 422, 451, 501])
def test_a_registry_without_the_api(status: int, attached: bool) -> None:
    with ScriptedRegistry() as registry, place_of(registry) as place:
        prepared(place)
        if attached:
            place.put_referrer(thing("a"), OCI_MANIFEST)
        registry.script(f"GET /referrers/ status {status} x9")
        for _ in range(3):
            assert len(names(place)) == attached
        assert len(registry.asked("/referrers/")) == 1  # it is remembered


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_front_that_sends_to_a_page_elsewhere(status: int) -> None:
    """As GHCR's does; the page answers 429 and asks for a minute of peace."""
    page = ScriptedRegistry("* / status 429 Retry-After=60 x9")
    with page, ScriptedRegistry() as registry, place_of(registry) as place:
        made = prepared(place).put_referrer(thing("a"), OCI_MANIFEST)
        registry.script(f"GET /referrers/ status {status} Location=http://{page.host}/page x9")
        assert names(place) == [made.digest]
        assert names(place) == [made.digest]
        assert page.asked() == []
        assert len(registry.asked("/referrers/")) == 1


def test_a_redirect_within_the_registry_is_followed() -> None:
    with ScriptedRegistry(referrers=True) as registry, place_of(registry) as place:
        made = prepared(place).put_referrer(thing("a"), OCI_MANIFEST)
        there = f"/v2/app/referrers/{SUBJECT.digest}"
        registry.script(f"GET /v2/app/referrers/ status 307 Location={there}?n=1")
        assert names(place) == [made.digest]
        assert registry.unused() == []


def test_a_registry_that_demands_its_own_login_is_asked_with_it() -> None:
    with (
        ScriptedRegistry(referrers=True, auth="token") as registry,
        source(registry, "app:1", Declined()) as place,
    ):
        registry.manifests[SUBJECT.digest] = (OCI_MANIFEST, ORIGINAL)
        assert names(place) == []
        assert len(registry.asked("/referrers/")) == 2  # without and with the token
        assert registry.asked("/manifests/sha256-") == []


@pytest.mark.parametrize("fault", ["blackhole 30", "status 429 Retry-After=60", "status 500"])
def test_a_list_that_does_not_come_is_asked_for_at_the_tag(
    monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(referrers, "QUESTION_S", 0.5)
    declined = Declined()
    with ScriptedRegistry() as registry:
        with place_of(registry) as place:
            made = prepared(place).put_referrer(thing("a"), OCI_MANIFEST)
        registry.script(f"GET /referrers/ {fault} x9")
        for name in ("app:1", "other:1"):  # a registry is not asked again for another image
            with source(registry, name, declined) as place:
                assert names(place) == [made.digest]
        assert len(registry.asked("/referrers/")) <= 2
        assert len(registry.asked("/v2/other/referrers/")) == 0


def test_a_tag_that_does_not_come_is_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(referrers, "QUESTION_S", 0.5)
    declined = Declined()
    with ScriptedRegistry("GET /manifests/sha256- blackhole 30 x9") as registry:
        for name in ("app:1", "app:1", "other:1"):
            with (
                source(registry, name, declined) as place,
                pytest.raises(TransportError),
            ):
                names(place)
        assert len(registry.asked("/manifests/sha256-")) == 1
        assert len(registry.asked("/referrers/")) == 1


def test_what_took_long_is_remembered_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(referrers, "QUESTION_S", 0.5)
    monkeypatch.setattr(referrers, "UNANSWERED_S", 0.0)
    now = [0.0]
    declined = Declined(lambda: now[0])
    with (
        ScriptedRegistry("GET /referrers/ blackhole 30 x9") as registry,
        source(registry, "app:1", declined) as place,
    ):
        for seconds, asked in ((0.0, 1), (0.4 * COSTS, 1), (1e6, 2)):
            now[0] = seconds
            with pytest.raises(TransportError):
                names(place)
            assert len(registry.asked("/referrers/")) == asked


def test_knowledge_of_a_registry_is_forgotten() -> None:
    now = [0.0]
    declined = Declined(lambda: now[0])
    with ScriptedRegistry() as registry, source(registry, "app:1", declined) as place:
        for seconds, asked in ((0, 1), (NO_API_S - 1, 1), (NO_API_S + 1, 2)):
            now[0] = seconds
            assert names(place) == []
            assert len(registry.asked("/referrers/")) == asked


def test_memory_is_bounded() -> None:
    declined = Declined()
    for number in range(3 * MAX_DECLINED):
        declined.note(str(number), 60.0)
    assert len(declined._until) == MAX_DECLINED
    assert declined.reason(str(3 * MAX_DECLINED - 1)) == ""


def test_a_page_for_browsers_is_no_list() -> None:
    with ScriptedRegistry() as registry, place_of(registry) as place:
        made = place.put_referrer(thing("a"), OCI_MANIFEST)
        registry.script("GET /referrers/ body '<html>welcome</html>'")
        assert names(place) == [made.digest]
        assert registry.unused() == []


@pytest.mark.parametrize("body", ["", "{}", "null", "[1]", "<html>", '{"schemaVersion":2}'])
def test_a_wrong_list_of_the_right_type(body: str) -> None:
    """A bad list says nothing of other repositories, which its writer may not even know."""
    declined = Declined()
    with ScriptedRegistry(referrers=True) as registry:
        with place_of(registry) as destination:
            made = prepared(destination).put_referrer(thing("a"), OCI_MANIFEST)
        with source(registry, "app:1", declined) as place:
            at_tag = with_entry(None, describe_referrer(thing("a"), OCI_MANIFEST)[1])
            assert at_tag is not None
            registry.manifests[referrers_tag(SUBJECT.digest)] = (OCI_INDEX, at_tag)
            registry.script(f"GET /referrers/ body {shlex.quote(body)} Content-Type={OCI_INDEX}")
            assert names(place) == [made.digest]
            assert registry.asked("/manifests/sha256-") != []
        with source(registry, "other:1", declined) as place:
            assert names(place) == [made.digest]
        assert len(registry.asked("/v2/other/referrers/")) == 1


@pytest.mark.parametrize("target", ["http://[", "https://", "http://h:x/", f"https://{'a' * 300}/"])
def test_a_redirect_to_no_address_is_no_list(target: str) -> None:
    with ScriptedRegistry() as registry, place_of(registry) as place:
        made = prepared(place).put_referrer(thing("a"), OCI_MANIFEST)
        registry.script(f"GET /referrers/ status 303 Location={target}")
        assert names(place) == [made.digest]


def test_the_rest_of_a_list_is_asked_of_the_registry_only() -> None:
    with ScriptedRegistry() as page, ScriptedRegistry(referrers=True, page=1) as registry:
        with place_of(registry) as place:
            for name in "ab":
                place.put_referrer(thing(name), OCI_MANIFEST)
            registry.script(
                f"""
                GET /referrers/ as 200
                GET /referrers/ status 303 Location=http://{page.host}/page
                """
            )
            with pytest.raises(SourceError):
                names(place)
        assert page.asked() == []


def test_the_api_that_fails_is_no_empty_list() -> None:
    with ScriptedRegistry("GET /referrers/ status 500 x9", referrers=True) as registry:
        with place_of(registry) as place:
            for _ in range(3):
                with pytest.raises(SourceError, match="cannot list"):
                    names(place)
        assert len(registry.asked("/referrers/")) == 2


def test_a_list_without_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(referrers, "MAX_PAGES", 3)
    with ScriptedRegistry(referrers=True, page=1) as registry, place_of(registry) as place:
        for name in "abcd":
            place.put_referrer(thing(name), OCI_MANIFEST)
        registry.seen.clear()
        with pytest.raises(LimitError, match="too long"):
            names(place)
        assert len(registry.asked("/referrers/")) == 3


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("", None),
        ('</v2/x?n=1>; rel="next"', "/v2/x?n=1"),
        ("<https://a/b>; rel=next", "https://a/b"),
        ('<a>; title="t"; rel="next"', "a"),
        ('<a>; rel="prev", <b>; rel="next"', "b"),
        ('<a>; rel="prev"', None),
        ("<a>;rel=nextish", None),
        ("<" * 100_000, None),
        ("<>;" * 100_000, None),
    ],
)
def test_links(link: str, expected: str | None) -> None:
    assert next_page(link) == expected


def test_the_rest_of_a_list_stays_on_its_host() -> None:
    with ScriptedRegistry(referrers=True) as registry, place_of(registry) as place:
        place.put_referrer(thing("a"), OCI_MANIFEST)
        elsewhere = {"Link": '<http://evil.example/>; rel="next"'}
        answer = Answer(200, elsewhere, b"", f"http://{registry.host}/")
        with pytest.raises(SourceError, match="another host"):
            referrers.following_page(answer)


# -- data in a descriptor --------------------------------------------------------------------------


def test_embedded_bytes_are_believed_only_if_they_are_right() -> None:
    right = describe(b"abc", OCI_CONFIG)

    def carrying(data: bytes | None) -> Descriptor:
        return Descriptor(media_type=OCI_CONFIG, digest=right.digest, size=right.size, data=data)

    assert [embedded(carrying(data)) for data in (b"abc", b"abd", b"ab", b"", None)] == [
        b"abc",
        None,
        None,
        None,
        None,
    ]


def test_an_embedded_blob_is_not_fetched() -> None:
    with ScriptedRegistry() as registry, place_of(registry) as place:
        plain = describe(b"abc", OCI_CONFIG)
        carrying = Descriptor(
            media_type=OCI_CONFIG, digest=plain.digest, size=plain.size, data=b"abc"
        )
        assert place.read_blob(carrying, 10) == b"abc"
        assert registry.seen == []
