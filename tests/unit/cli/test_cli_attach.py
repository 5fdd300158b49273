# SPDX-License-Identifier: Apache-2.0
"""``convert --attach``: one name for an original and its conversion."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from firstread.oci.model import OCI_INDEX, OCI_MANIFEST, parse_index
from firstread.oci.platform import host_platform
from firstread.oci.referrers import referrers_tag
from firstread.sectors.format import ARTIFACT_TYPE
from firstread.testing.command import Ran, firstread
from firstread.testing.images import File, Image, Layer, digest_of, write_index, write_layout
from firstread.testing.registry import ScriptedRegistry

HERE = str(host_platform())
IMAGE = Image(
    [Layer([File("a", b"a" * 5000)]), Layer([File("b", b"b" * 9000)])], {"Env": ["X=1"]}, HERE
)
SMALL = ("--sector-size=64KiB", "--frame-size=16KiB")


@pytest.fixture(params=["layout", "api", "tag"])
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    """An ordinary image, in each kind of place."""
    if request.param == "layout":
        write_layout(IMAGE, "in", "1")
        yield "oci:in:1"
        return
    with ScriptedRegistry(referrers=request.param == "api") as registry:
        push(registry, "1")
        yield f"docker://{registry.host}/app:1"


def push(registry: ScriptedRegistry, tag: str, *images: Image) -> None:
    """Put an image, or an index of several, into a registry."""
    entries = []
    for image in images or (IMAGE,):
        for blob in image.blobs():
            registry.add_blob(blob)
        data = image.manifest()
        registry.manifests.update(dict.fromkeys((tag, digest_of(data)), (OCI_MANIFEST, data)))
        os, _, rest = image.platform.partition("/")
        entries.append(
            {
                "mediaType": OCI_MANIFEST,
                "digest": digest_of(data),
                "size": len(data),
                "platform": {"os": os, "architecture": rest.partition("/")[0]},
            }
        )
    if images:
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
        registry.manifests[tag] = (OCI_INDEX, json.dumps(index).encode())


def attach(*arguments: str) -> dict[str, Any]:
    ran = firstread("convert", "--attach", *SMALL, "--json", *arguments)
    assert (ran.code, ran.stderr) == (0, ""), ran
    result: dict[str, Any] = ran.json
    return result


def inspected(name: str) -> Ran:
    return firstread("inspect", "--json", name)


def test_the_original_name_finds_it(name: str) -> None:
    ran = inspected(name)
    assert (ran.code, ran.json["error"]) == (3, "UnsupportedError")
    assert "convert --attach" in ran.json["hint"]
    done = attach(name)
    (image,) = done["images"]
    original = digest_of(IMAGE.manifest())
    assert (image["attached_to"], image["source_digest"]) == (original, original)
    assert (image["platform"], done["skipped"], done["source"]) == (HERE, [], name)
    assert done["chosen"] == [image["digest"]]
    found = inspected(name).json
    assert (found["digest"], found["source_digest"]) == (image["digest"], original)
    place = name.rpartition(":")[0]
    assert inspected(f"{place}@{original}").json["digest"] == image["digest"]
    ran = firstread("verify", "--source", name, name)
    assert (ran.code, ran.stderr) == (0, ""), ran
    assert firstread("extract", name, "out").code == 0
    assert Path("out/b").read_bytes() == b"b" * 9000


def test_attaching_again_sends_nothing(name: str) -> None:
    first = attach(name)["images"][0]
    second = attach(name)["images"][0]
    assert (first["unchanged"], second["unchanged"]) == (False, True)
    assert second["digest"] == first["digest"]
    assert second["uploaded_blobs"] == 0
    assert {layer["how"] for layer in second["layers"]} == {"known"}


def test_attaching_is_reproducible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = set()
    for number, api in enumerate((True, False)):
        monkeypatch.setenv("FIRSTREAD_CACHE", str(tmp_path / f"cache{number}"))
        with ScriptedRegistry(referrers=api) as registry:
            push(registry, "1")
            digests.add(attach(f"{registry.host}/app:1")["images"][0]["digest"])
    write_layout(IMAGE, "in", "1")
    digests.add(attach("oci:in:1", "--no-cache")["images"][0]["digest"])
    assert len(digests) == 1


def test_a_second_machine_reads_no_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It knows the layers from the attached conversion."""
    with ScriptedRegistry(referrers=True) as registry:
        push(registry, "1")
        name = f"{registry.host}/app:1"
        first = attach(name)["images"][0]
        monkeypatch.setenv("FIRSTREAD_CACHE", str(tmp_path / "another"))
        registry.seen.clear()
        assert attach(name)["images"][0]["digest"] == first["digest"]
        assert not [seen for seen in registry.seen if seen.method in ("PUT", "POST", "PATCH")]
        layers = {digest_of(layer.blob) for layer in IMAGE.layers}
        assert not [seen for seen in registry.asked() if seen.rpartition("/")[2] in layers]


def test_the_original_is_not_touched() -> None:
    with ScriptedRegistry(referrers=False) as registry:
        push(registry, "1")
        before = dict(registry.manifests)
        done = attach(f"{registry.host}/app:1")["images"][0]
        assert {name: registry.manifests[name] for name in before} == before
        tag = referrers_tag(digest_of(IMAGE.manifest()))
        new = {name for name in registry.manifests if name not in before and ":" not in name}
        assert new == {tag}
        (entry,) = parse_index(registry.manifests[tag][1]).manifests
        assert (entry.digest, entry.artifact_type) == (done["digest"], ARTIFACT_TYPE)


def test_a_layout_keeps_its_only_image() -> None:
    """Opening the layout without a tag still finds the original, and its conversion."""
    write_layout(IMAGE, "in", "1")
    done = attach("oci:in")["images"][0]
    assert inspected("oci:in").json["digest"] == done["digest"]


def test_dest_is_another_name_for_it(name: str) -> None:
    place = name.rpartition(":")[0]
    done = attach(name, f"{place}:lazy")["images"][0]
    for other in (name, f"{place}:lazy"):
        assert inspected(other).json["digest"] == done["digest"]
    again = attach(name, f"{place}:lazy")["images"][0]
    assert (again["digest"], again["unchanged"]) == (done["digest"], True)
    assert inspected(name).json["digest"] == done["digest"]


def test_convert_says_that_nodes_choose_another_conversion(name: str) -> None:
    one, two = (attach(name, f"--level={level}") for level in (1, 9))
    digests = sorted(done["images"][0]["digest"] for done in (one, two))
    assert len(set(digests)) == 2
    assert two["chosen"] == [digests[0]]
    assert inspected(name).json["digest"] == digests[0]
    late = "9" if two["images"][0]["digest"] == digests[1] else "1"
    ran = firstread("convert", "--attach", *SMALL, f"--level={late}", name)
    assert f"nodes take another conversion attached to it: {digests[0]}" in ran.stdout


# -- indexes ---------------------------------------------------------------------------------------

FOREIGN = "linux/s390x"
FOREIGN_IMAGE = Image([Layer([File("c", b"c" * 100)])], {}, FOREIGN)
WINDOWS = Image([Layer([File("d", b"d" * 100)])], {}, "windows/amd64")


def test_each_image_of_an_index_gets_its_own() -> None:
    with ScriptedRegistry() as registry:
        push(registry, "1", IMAGE, FOREIGN_IMAGE, WINDOWS)
        name = f"{registry.host}/app:1"
        before = registry.manifests["1"]
        done = attach(name)
        assert [image["platform"] for image in done["images"]] == [HERE, FOREIGN]
        originals = [digest_of(image.manifest()) for image in (IMAGE, FOREIGN_IMAGE)]
        assert [image["attached_to"] for image in done["images"]] == originals
        assert [(s["platform"], s["reason"]) for s in done["skipped"]] == [
            ("windows/amd64", "it is for windows")
        ]
        assert registry.manifests["1"] == before
        assert inspected(name).json["digest"] == done["images"][0]["digest"]
        again = attach(name)
        assert [image["unchanged"] for image in again["images"]] == [True, True]
        ran = firstread("convert", "--attach", *SMALL, name)
        assert "windows/amd64: left alone, since it is for windows\n" in ran.stdout
        assert ran.stdout.count("  attached  to sha256:") == 2


def test_one_platform_of_an_index() -> None:
    write_index({HERE: IMAGE, FOREIGN: FOREIGN_IMAGE}, "in", "1")
    done = attach("oci:in:1", "--platform", FOREIGN)
    assert [image["platform"] for image in done["images"]] == [FOREIGN]
    assert inspected("oci:in:1").code == 3  # nothing for this machine


def test_an_index_without_convertible_images() -> None:
    write_index({"windows/amd64": WINDOWS, "windows/arm64": WINDOWS}, "in", "1")
    write_index(
        {"windows/amd64": WINDOWS, "darwin/arm64": Image(WINDOWS.layers, {}, "darwin/arm64")},
        "in",
        "2",
    )
    ran = firstread("convert", "--attach", "oci:in:2")
    assert (ran.code, ran.stdout) == (3, "")
    assert ran.stderr == (
        "firstread: oci:in:2: the index has no image that can be converted\n"
        "  windows/amd64: it is for windows; darwin/arm64: it is for darwin\n"
    )


# -- refusals --------------------------------------------------------------------------------------

WRONG: dict[str, tuple[list[str], int, str, str]] = {
    "an archive": (
        ["oci-archive:x.tar"],
        2,
        "oci-archive:x.tar: nothing can be attached to an image in oci-archive:",
        "name an image in a registry (docker://) or in an OCI layout (oci:)",
    ),
    "its own name": (
        ["oci:in:1", "oci:in:1"],
        2,
        "oci:in:1: source and destination are the same image",
        "give the destination another tag, or the original image would lose its own",
    ),
    "another place": (
        ["oci:in:1", "oci:out:1"],
        2,
        "oci:out:1 is not in the same place as oci:in:1",
        "an attached image lies beside its original: leave DEST out, or give it another tag of"
        " the same repository",
    ),
    "a name for two": (
        ["oci:in:both", "oci:in:lazy"],
        2,
        "oci:in:both: oci:in:lazy can name one image only, and oci:in:both has 2",
        "choose one with --platform",
    ),
    "what is converted": (
        ["oci:in:lazy"],
        3,
        "oci:in:lazy: this image is converted already",
        "name the original image as the source",
    ),
    "nothing": (
        ["oci:in:none"],
        4,
        "oci:in:none: there is no image 'none' here",
        "there are: 1, both, lazy",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_refusals_to_attach(case: str) -> None:
    arguments, code, message, hint = WRONG[case]
    write_layout(IMAGE, "in", "1")
    write_index({HERE: IMAGE, FOREIGN: FOREIGN_IMAGE}, "in", "both")
    if case in ("what is converted", "nothing"):
        assert firstread("convert", *SMALL, "oci:in:1", "oci:in:lazy").code == 0
    ran = firstread("convert", "--attach", *arguments)
    assert ran.stderr == f"firstread: {message}\n  {hint}\n"
    assert (ran.code, ran.stdout) == (code, "")


def test_a_registry_that_accepts_it_and_lists_nothing() -> None:
    """It claims to keep the list itself, but has none."""
    with ScriptedRegistry(referrers=True) as registry:
        push(registry, "1")
        registry.script("GET /referrers/ status 404 x9")
        ran = firstread("convert", "--attach", *SMALL, f"{registry.host}/app:1")
        assert ran.code == 4
        assert "but does not list it" in ran.stderr


def test_a_tag_that_is_something_else() -> None:
    with ScriptedRegistry() as registry:
        push(registry, "1")
        tag = referrers_tag(digest_of(IMAGE.manifest()))
        registry.manifests[tag] = registry.manifests["1"]
        ran = firstread("convert", "--attach", *SMALL, f"{registry.host}/app:1")
        assert ran.code == 3
        assert f"tag {tag} is no list of referrers" in ran.stderr
        assert registry.manifests[tag] == registry.manifests["1"]


def test_the_document_names_the_fields() -> None:
    from tests.unit.cli.test_cli_output import documented

    write_layout(IMAGE, "in", "1")
    done = attach("oci:in:1")
    assert {f for f in documented("convert --attach") if "[]" not in f} == set(done)
    fields = {f for f in documented("convert") if "[]" not in f}
    assert set(done["images"][0]) == fields


@pytest.mark.parametrize(
    "answer", ["status 303 Location={page}", "status 422", "status 429 Retry-After=60", "hangup 0"]
)
def test_a_front_that_answers_for_the_list_does_not_hold_it_up(answer: str) -> None:
    page = ScriptedRegistry("* / status 429 Retry-After=60 x9")
    with page, ScriptedRegistry() as registry:
        push(registry, "1")
        fault = answer.format(page=f"http://{page.host}/welcome")
        registry.script(f"GET /referrers/ {fault} x99")
        done = attach(f"docker://{registry.host}/app:1")
        assert done["chosen"] == [image["digest"] for image in done["images"]]
        assert page.asked() == []
        assert inspected(f"docker://{registry.host}/app:1").code == 0
