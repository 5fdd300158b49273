# SPDX-License-Identifier: Apache-2.0
"""Parsers of answers from registries, archives and logins.

Invariant: any bytes give a valid value or one of the documented errors; never another exception,
and never more memory than the input's bounds allow.
"""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from firstread.errors import FirstreadError, ImageError, UsageError
from firstread.layouts.layoutwriter import updated_index
from firstread.layouts.tarindex import TarIndex
from firstread.oci.model import (
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    Index,
    Manifest,
    describe,
    diff_ids,
    encode,
    parse_config,
    parse_manifest,
)
from firstread.oci.platform import host_platform
from firstread.oci.referrers import with_entry
from firstread.oci.resolve import choose
from firstread.registry.backoff import pause_s
from firstread.registry.bearer import parse_challenge
from firstread.registry.endpoint import follow, origin
from firstread.registry.faults import retry_after
from firstread.registry.hosts import Endpoint, parse_hosts
from firstread.registry.referrerlists import next_page

fuzz = settings(max_examples=300, deadline=None)

SHA = "sha256:" + "0" * 64
DESCRIPTOR = {"mediaType": OCI_LAYER, "digest": SHA, "size": 1}
IMAGE = {
    "schemaVersion": 2,
    "mediaType": OCI_MANIFEST,
    "config": DESCRIPTOR | {"mediaType": OCI_CONFIG},
    "layers": [DESCRIPTOR],
    "annotations": {"a": "b"},
}
INDEX = {
    "schemaVersion": 2,
    "manifests": [DESCRIPTOR | {"platform": {"os": "linux", "architecture": "amd64"}}],
}

leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(max_size=20),
    st.sampled_from([SHA, OCI_MANIFEST, OCI_LAYER, "linux"]),
)
documents = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*IMAGE, *INDEX, *DESCRIPTOR, "platform", "rootfs", "diff_ids", "x"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@st.composite
def mutated(draw: st.DrawFn, document: Any) -> Any:
    """Return `document` with one value somewhere in it replaced."""
    if isinstance(document, dict) and document and draw(st.integers(0, 3)):
        key = draw(st.sampled_from(sorted(document)))
        return document | {key: draw(mutated(document[key]))}
    if isinstance(document, list) and document and draw(st.integers(0, 3)):
        return [draw(mutated(document[0])), *document[1:]]
    return draw(documents)


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Return `data` with some bytes replaced, and perhaps its end missing."""
    out = bytearray(data)
    for _ in range(draw(st.integers(0, 4))):
        out[draw(st.integers(0, len(out) - 1))] = draw(st.integers(0, 255))
    return bytes(out[: draw(st.integers(0, len(out)))]) if draw(st.booleans()) else bytes(out)


texts = st.one_of(
    st.binary(max_size=200),
    documents.map(lambda document: json.dumps(document).encode()),
    mutated(IMAGE).map(lambda document: json.dumps(document).encode()),
    mutated(INDEX).map(lambda document: json.dumps(document).encode()),
    damaged(json.dumps(IMAGE).encode()),
    damaged(json.dumps(INDEX).encode()),
)
types = st.sampled_from([None, "", "text/plain", OCI_MANIFEST]) | st.text(max_size=10)


@fuzz
@given(texts, types)
def test_manifests(data: bytes, media_type: str | None) -> None:
    try:
        document = parse_manifest(data, media_type)
        if isinstance(document, Index):
            choose(document, host_platform())
    except ImageError:
        return
    assert parse_manifest(encode(document), document.media_type) == document


@fuzz
@given(texts)
def test_configs(data: bytes) -> None:
    try:
        ids = diff_ids(parse_config(data))
    except ImageError:
        return
    assert all(digest.startswith("sha") for digest in ids)


@fuzz
@given(texts, st.none() | st.text(max_size=5))
def test_an_index_json_that_is_updated(data: bytes, tag: str | None) -> None:
    manifest = Manifest(config=describe(b"", OCI_CONFIG), layers=[])
    content = encode(manifest)
    try:
        new = updated_index(data, describe(content, OCI_MANIFEST), content, tag)
    except ImageError:
        return
    index = parse_manifest(new)
    assert isinstance(index, Index)
    assert describe(content, OCI_MANIFEST).digest in [entry.digest for entry in index.manifests]


@fuzz
@given(texts)
def test_a_list_of_referrers_that_is_added_to(data: bytes) -> None:
    entry = describe(b"new", OCI_MANIFEST)
    try:
        new = with_entry(data, entry)
    except ImageError:
        return
    index = parse_manifest(new if new is not None else data)
    assert isinstance(index, Index)
    assert entry.digest in [known.digest for known in index.manifests]


@fuzz
@given(st.text())
def test_links_of_pages(link: str) -> None:
    target = next_page(link)
    assert target is None or f"<{target}>" in link


def example_archive() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("index.json", "x" * 120, "ü"):
            info = tarfile.TarInfo(name)
            info.size = 600
            archive.addfile(info, io.BytesIO(bytes(600)))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "index.json"
        archive.addfile(link)
    return out.getvalue()


@st.composite
def damaged_headers(draw: st.DrawFn) -> bytes:
    """Return an archive whose headers are odd, but have the right checksum."""
    out = bytearray(example_archive())
    for start in range(0, len(out) - 1024, 512):
        if out[start + 257 : start + 262] == b"ustar" and draw(st.booleans()):
            place, size = draw(
                st.sampled_from([(0, 100), (124, 12), (156, 1), (157, 100), (345, 9)])
            )
            odd = st.sampled_from(
                [b"-0000000777\0", b"\x80" * size, b"7" * size, b"../", b"", b"1_0"]
            )
            value = draw(odd | st.binary(max_size=size))
            out[start + place : start + place + size] = value[:size].ljust(size, b"\0")
            out[start + 148 : start + 156] = b" " * 8
            out[start + 148 : start + 156] = b"%06o\0 " % sum(out[start : start + 512])
    return bytes(out)


@fuzz
@given(st.one_of(st.binary(max_size=2000), damaged(example_archive()), damaged_headers()))
def test_archives(data: bytes) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        try:
            index = TarIndex(file.fileno())
        except ImageError:
            return
        for name in ("index.json", "link"):
            member = index.find(name)
            assert member is None or member.offset + member.size <= len(data)


@fuzz
@given(st.text(max_size=100) | st.from_regex(r'(Bearer|Basic) ([a-z]+="?[^"]*"?,?)*'))
def test_challenges(header: str) -> None:
    challenge = parse_challenge(header)
    assert challenge is None or challenge.scheme in ("basic", "bearer")


@fuzz
@given(st.text(max_size=60), st.integers(0, 10**9))
def test_retry_after(value: str, attempt: int) -> None:
    asked = retry_after({"Retry-After": value})
    assert asked >= 0
    wait = pause_s(attempt, 0.1, 10, asked)
    assert wait is None or 0 <= wait <= 10


@fuzz
@given(st.text(max_size=60) | st.from_regex(r"https?://[^\s]{0,30}"))
def test_locations(target: str) -> None:
    try:
        url = follow("https://r.io/v2/", target)
    except FirstreadError:
        return
    scheme, host, port = origin(url)
    assert scheme in ("http", "https")
    assert host != "r.io" or scheme == "https" or port != 443


HOSTS_WORDS = """server host capabilities ca client skip_verify header override_path dial_timeout
https://m.io m.io:5000 [::1 X-A"""
HOSTS_KEYS = st.sampled_from(HOSTS_WORDS.split())
HOSTS_VALUES = st.recursive(
    st.sampled_from(["pull", "https://m.io/a", "http://[", "1m", "\x00", "secret\n", 1, True, ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(HOSTS_KEYS, inner, max_size=4),
    max_leaves=10,
)


def toml(value: Any) -> str:
    """Return a value as TOML writes it; its JSON is TOML but for tables."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)


@fuzz
@given(st.dictionaries(HOSTS_KEYS, HOSTS_VALUES, max_size=5), st.binary(max_size=40), st.booleans())
def test_hosts_toml(tables: dict[str, Any], noise: bytes, noisy: bool) -> None:
    lines = [f"{json.dumps(key)} = {toml(value)}" for key, value in tables.items()]
    data = "\n".join(lines).encode() + (noise if noisy else b"")
    default = Endpoint("https", "r.io")
    try:
        found = parse_hosts(data, Path("/c"), "r.io", default)
    except UsageError:
        return
    assert found
    for endpoint in found:
        assert endpoint.scheme in ("http", "https")
        assert origin(endpoint.base + endpoint.path.lstrip("/"))
        assert endpoint.capabilities
