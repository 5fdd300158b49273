# SPDX-License-Identifier: Apache-2.0
"""The names of ``sync``: patterns, destinations, files of names, notifications, the queue."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from firstread.errors import BusyError, ImageError, LimitError, NodeError, UsageError
from firstread.oci.model import DOCKER_MANIFEST, OCI_INDEX
from firstread.oci.reference import Reference, parse_reference
from firstread.sync.conversiontarget import Work
from firstread.sync.mapping import parse_mapping
from firstread.sync.notifications import MAX_EVENTS, parse_notification
from firstread.sync.pattern import Pattern, parse_pattern, parse_source
from firstread.sync.pushqueue import PushQueue
from firstread.sync.sources import Wanted, read_names
from firstread.sync.syncing import sort_out

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("pattern", "fitting", "others"),
    [
        ("r.example/team/*:v*", ["team/app:v1", "team/a/b:v"], ["team/app:1", "tea/app:v1"]),
        ("r.example/*:*", ["a:b", "a/b/c:latest"], []),
        ("r.example/app-?:1", ["app-a:1"], ["app-ab:1", "app-a:2"]),
        ("docker://r.example/team/*", ["team/app:latest"], ["team/app:v1"]),
        ("localhost:5000/*/app:?", ["x/app:1"], ["app:1"]),
        ("r.example/app:1", ["app:1"], ["app:2"]),
    ],
)
def test_a_pattern_fits(pattern: str, fitting: list[str], others: list[str]) -> None:
    found = parse_pattern(pattern)
    assert [n for n in fitting if not found.fits(parse_reference(f"{found.host}/{n}"))] == []
    assert [n for n in others if found.fits(parse_reference(f"{found.host}/{n}"))] == []
    assert not found.fits(parse_reference("other.example/team/app:v1"))


def test_a_pattern_of_docker_hub() -> None:
    assert parse_pattern("team/*:v*") == Pattern("docker.io", "team/*", "v*")
    assert parse_pattern("index.docker.io/team/*:v*").host == "docker.io"
    assert parse_pattern("nginx:1.*").fits(parse_reference("nginx:1.27"))


@pytest.mark.parametrize(
    "tag", [f"sha256-{HEX}", f"sha256-{HEX}.sig", f"sha512-{HEX}.att", f"firstread-layer-{HEX}"]
)
def test_what_names_no_image_fits_no_pattern(tag: str) -> None:
    assert not parse_pattern("r.example/*:*").fits_tag(tag)


@pytest.mark.parametrize(
    "text",
    ["*.example/a:b", "r.example/A*", "r.example/[a]*:b", "oci:*:a", "r.example/*@b", "a b*"],
)
def test_bad_patterns(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_source(text)
    assert text in caught.value.message


def test_a_source_without_wildcards_is_an_image() -> None:
    assert parse_source(f"r.example/a@sha256:{HEX}") == parse_reference(f"r.example/a@sha256:{HEX}")
    with pytest.raises(UsageError, match="not in a registry"):
        parse_source("oci:in:1")


@pytest.mark.parametrize(
    ("text", "source", "destination"),
    [
        ("m.example/lazy/*", "r.example/team/app:v1", "m.example/lazy/team/app:v1"),
        ("r.example/*:*-lazy", "r.example/team/app:v1", "r.example/team/app:v1-lazy"),
        ("docker://m.example:5000/*:lazy-*", "app:1", "m.example:5000/library/app:lazy-1"),
    ],
)
def test_a_destination(text: str, source: str, destination: str) -> None:
    assert parse_mapping(text).of(parse_reference(source)) == parse_reference(destination)


@pytest.mark.parametrize(
    "text",
    [
        "m.example/lazy",
        "m.example/lazy:v1",
        "m.example/*/*",
        "m.example/*:v1",
        "oci:a/*",
        "?/*",
    ],
)
def test_bad_destinations(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_mapping(text)
    assert text in caught.value.message
    assert "mirror.example/lazy/*" in (caught.value.hint or "")


def test_an_image_without_a_tag_or_with_too_long_a_name_has_no_destination() -> None:
    mapping = parse_mapping("m.example/lazy/*:*-lazy")
    for name in (f"r.example/a@sha256:{HEX}", f"r.example/a:{'t' * 128}"):
        with pytest.raises(UsageError) as caught:
            mapping.of(parse_reference(name))
        assert "r.example/a" in str(caught.value)


def test_conditions() -> None:
    name = parse_reference("r.example/team/app:v1")
    patterns = [parse_pattern("r.example/*:v*")]
    assert Wanted().has(name)
    assert Wanted(only=patterns).has(name)
    assert not Wanted(only=patterns).has(parse_reference("r.example/team/app:1"))
    assert not Wanted(excluded=patterns).has(name)


def test_a_file_of_names(tmp_path: Path) -> None:
    path = tmp_path / "names"
    path.write_text("# all\n\nr.example/a:1  # one\r\n  r.example/*:v*\n")
    assert [str(each) for each in read_names(path)] == ["docker://r.example/a:1", "r.example/*:v*"]
    path.write_text("r.example/a:1\nA B\n")
    with pytest.raises(UsageError, match=f"{path}, line 2: 'A B' is not the name of an image"):
        read_names(path)
    path.write_bytes(b"\xff\n")
    with pytest.raises(UsageError, match="line 1"):
        read_names(path)
    path.write_text("#\n")
    with pytest.raises(UsageError, match="names no image"):
        read_names(path)
    with pytest.raises(NodeError):
        read_names(tmp_path)


def work(name: str, digest: str = HEX) -> Work:
    reference = parse_reference(name)
    source = replace(reference, digest=f"sha256:{digest}")
    return Work(reference, source, parse_mapping("m.example/*").of(reference))


def test_a_destination_has_one_image() -> None:
    first, second = work("a.example/app:v1"), work("b.example/app:v1")
    todo, refused = sort_out([second, first], [])
    assert todo == [first]
    (row,) = refused
    assert (row.image, row.result) == ("docker://b.example/app:v1", "failed")
    assert row.error is not None
    assert "docker://a.example/app:v1 has the same destination" in row.error.message
    # An image that has the destination keeps it.
    there = second.missing()
    assert sort_out([first], [there])[0] == []
    assert sort_out([second], [there])[0] == [second]
    attached = replace(first, destination=None)
    assert sort_out([attached, replace(second, destination=None)], [])[1] == []


# Notifications.


def event(**target: str) -> dict[str, Any]:
    known = {"mediaType": DOCKER_MANIFEST, "repository": "team/app", "digest": f"sha256:{HEX}"}
    return {"id": "1", "action": "push", "target": known | target, "request": {"host": "evil"}}


def names(document: object) -> list[tuple[str, str]]:
    pushed = parse_notification(json.dumps(document).encode(), "r.example")
    return [(str(each.name), each.digest) for each in pushed]


def test_an_envelope_of_distribution() -> None:
    events = [
        event(tag="v1"),
        event(),  # by digest alone
        event(mediaType="application/octet-stream", tag="v2"),  # a blob
        event(tag="v3") | {"action": "pull"},
        event(tag="v4", mediaType=OCI_INDEX),
        event(tag="v1", digest="sha256:later"),
        event(tag="v 5"),
        event(tag="v6", repository="../app"),
        event(tag="v7", repository="A"),
    ]
    assert names({"events": events}) == [
        ("docker://r.example/team/app:v1", "sha256:later"),
        ("docker://r.example/team/app:v4", f"sha256:{HEX}"),
    ]


def harbor(kind: str, *tags: str) -> dict[str, Any]:
    resources = [{"digest": f"sha256:{HEX}", "tag": tag, "resource_url": "x"} for tag in tags]
    repository = {"name": "app", "namespace": "team", "repo_full_name": "team/app"}
    data = {"resources": resources, "repository": repository}
    return {"type": kind, "occur_at": 1, "operator": "admin", "event_data": data}


def test_an_event_of_harbor() -> None:
    assert names(harbor("PUSH_ARTIFACT", "v1", f"sha256:{HEX}")) == [
        ("docker://r.example/team/app:v1", f"sha256:{HEX}")
    ]
    assert names(harbor("PULL_ARTIFACT", "v1")) == []


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'{"events":3}', b"\xff", b"[" * 100_000, b'{"type":1}']
)
def test_bad_notifications(data: bytes) -> None:
    with pytest.raises(ImageError):
        parse_notification(data, "r.example")


def test_a_notification_of_too_many_events() -> None:
    for document in (
        {"events": [event()] * (MAX_EVENTS + 1)},
        harbor("x", *"a" * (MAX_EVENTS + 1)),
    ):
        with pytest.raises(LimitError):
            names(document)


# The queue.

A, B, C = (parse_reference(f"r.example/{name}:1") for name in "abc")


def test_repeated_pushes_are_one() -> None:
    queue = PushQueue()
    assert [queue.put(A, "d1"), queue.put(A, "d1"), queue.put(B), queue.put(A, "d2")] == [
        True, False, True, False,
    ]  # fmt: skip
    first = queue.take()
    assert (first.name, first.digest, len(queue), queue.running) == (A, "d2", 1, 1)
    assert not queue.put(A, "d2")  # it is being converted
    assert queue.put(A, "d3")
    assert queue.take().name == B  # nobody converts A twice at a time
    taken: list[Reference] = []
    thread = threading.Thread(target=lambda: taken.append(queue.take().name))
    thread.start()
    queue.done(first)
    thread.join()
    assert taken == [A]


def test_an_image_that_fails_for_a_moment_is_tried_again() -> None:
    queue = PushQueue()
    queue.put(A, "d1")
    queue.put(B)
    first, second = queue.take(), queue.take()
    queue.done(first, again_s=0.05)
    queue.done(second, again_s=3600.0)
    again = queue.take()  # waits
    assert (again.name, again.digest, again.attempt) == (A, "d1", 1)
    queue.put(B, "d2")  # a new push does not wait
    assert queue.take()[:3] == (B, "d2", 0)
    queue.put(A, "d3")
    queue.done(again, again_s=3600.0)
    assert queue.take()[:3] == (A, "d3", 0)


def test_a_full_queue_takes_what_it_has_already() -> None:
    queue = PushQueue(most=2)
    queue.put(A)
    queue.put(B)
    assert not queue.put(A, "d")
    with pytest.raises(BusyError):
        queue.put(C)
