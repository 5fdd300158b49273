# SPDX-License-Identifier: Apache-2.0
"""Names of images: what people type, what it means, and that the canonical text means the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstread.errors import UsageError
from firstread.oci.reference import Reference, parse_reference

SHA = "sha256:" + "a1" * 32
SHA512 = "sha512:" + "b2" * 64


@pytest.mark.parametrize(
    ("text", "host", "repository", "tag", "digest"),
    [
        pytest.param("debian", "docker.io", "library/debian", "latest", None, id="familiar"),
        pytest.param("debian:12", "docker.io", "library/debian", "12", None, id="familiar-tag"),
        pytest.param("me/app", "docker.io", "me/app", "latest", None, id="familiar-user"),
        pytest.param("docker.io/debian", "docker.io", "library/debian", "latest", None, id="hub"),
        pytest.param(
            "index.docker.io/a/b", "docker.io", "a/b", "latest", None, id="old-name-of-hub"
        ),
        pytest.param("docker://quay.io/a/b:1", "quay.io", "a/b", "1", None, id="transport"),
        pytest.param("localhost/x", "localhost", "x", "latest", None, id="localhost"),
        pytest.param("localhost:5000/x:t", "localhost:5000", "x", "t", None, id="localhost-port"),
        pytest.param(
            "localhost:5000", "docker.io", "library/localhost", "5000", None, id="no-slash-is-tag"
        ),
        pytest.param("host:5000/a/b/c", "host:5000", "a/b/c", "latest", None, id="port"),
        pytest.param("host/a", "docker.io", "host/a", "latest", None, id="word-is-no-host"),
        pytest.param("[::1]:5000/x:t", "[::1]:5000", "x", "t", None, id="ipv6-port"),
        pytest.param("[fe80::1]/x", "[fe80::1]", "x", "latest", None, id="ipv6"),
        pytest.param("127.0.0.1:5000/x", "127.0.0.1:5000", "x", "latest", None, id="ipv4"),
        pytest.param(f"quay.io/a@{SHA}", "quay.io", "a", None, SHA, id="digest"),
        pytest.param(f"quay.io/a:t@{SHA}", "quay.io", "a", "t", SHA, id="tag-and-digest"),
        pytest.param(f"quay.io/a@{SHA512}", "quay.io", "a", None, SHA512, id="sha512"),
        pytest.param("a__b/c---d.e", "docker.io", "a__b/c---d.e", "latest", None, id="separators"),
        pytest.param(
            "docker:dind", "docker.io", "library/docker", "dind", None, id="image-called-docker"
        ),
    ],
)
def test_registry_names(
    text: str, host: str, repository: str, tag: str | None, digest: str | None
) -> None:
    reference = parse_reference(text)
    assert reference == Reference("docker", host, repository, "", tag, digest)
    assert parse_reference(str(reference)) == reference


@pytest.mark.parametrize(
    ("text", "path", "tag", "digest"),
    [
        pytest.param("oci:dir", "dir", None, None, id="relative"),
        pytest.param("oci:/a/b:latest", "/a/b", "latest", None, id="tag"),
        pytest.param("oci:/a/b:c/d", "/a/b:c/d", None, None, id="colon-in-directory"),
        pytest.param("oci:/a/b:c/d:t", "/a/b:c/d", "t", None, id="colon-in-directory-and-tag"),
        pytest.param("oci:/a/b:c:t", "/a/b:c", "t", None, id="last-colon"),
        pytest.param("oci:/a/b:c:", "/a/b:c", None, None, id="colon-at-the-end-is-no-tag"),
        pytest.param("oci:/a/12:30:", "/a/12:30", None, None, id="a-time"),
        pytest.param("oci::t", ":t", None, None, id="a-path-of-colons"),
        pytest.param(f"oci:/a@{SHA}", "/a", None, SHA, id="digest"),
        pytest.param(f"oci:/a:t@{SHA}", "/a", "t", SHA, id="tag-and-digest"),
        pytest.param("oci:/a b/ü:t", "/a b/ü", "t", None, id="any-characters"),
        pytest.param("oci:/a@b", "/a@b", None, None, id="at-in-path"),
    ],
)
def test_layout_names(text: str, path: str, tag: str | None, digest: str | None) -> None:
    reference = parse_reference(text)
    assert reference == Reference("oci", "", "", path, tag, digest)
    assert parse_reference(str(reference)) == reference


def test_archive_names() -> None:
    assert parse_reference("oci-archive:/x.tar:v1").transport == "oci-archive"
    archive = parse_reference("docker-archive:/x.tar:busybox:1")
    assert (archive.transport, archive.path, archive.tag) == (
        "docker-archive",
        "/x.tar:busybox",
        "1",
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "docker://",
        "docker:///x",
        "Debian",
        "a:b:c",
        "a@",
        "a:",
        "a@sha256:12",
        f"a@md5:{'0' * 32}",
        "a//b",
        "a/-b",
        "host:/x",
        "host:99999/x",
        "host:٣/x",
        f"host:{'9' * 5000}/x",
        "[::g]/x",
        "[::1/x",
        "::1/x",
        "http://host/x",
        "https://host/x",
        "dir:/x",
        "docker-daemon:x:y",
        "containers-storage:x",
        "oci:",
        "oci-archive:",
        "a b",
        "a\n",
        "ä",
        "x/" + "a" * 254,
        "a:" + "t" * 129,
    ],
)
def test_invalid_references(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_reference(text)
    assert repr(text) in str(caught.value)


def test_a_hint_for_upper_case() -> None:
    with pytest.raises(UsageError) as caught:
        parse_reference("quay.io/MyApp")
    assert caught.value.hint == "a repository is written in lower case"


paths = st.text(
    st.one_of(st.sampled_from(":@/a1._-"), st.characters(exclude_characters="\0")), min_size=1
)
tags = st.from_regex(r"\A[A-Za-z0-9_][A-Za-z0-9._-]{0,10}\Z")


@given(
    st.sampled_from(["oci", "oci-archive", "docker-archive"]),
    paths,
    st.none() | tags,
    st.sampled_from([None, SHA]),
)
def test_every_path_has_a_text(
    transport: str, path: str, tag: str | None, digest: str | None
) -> None:
    reference = Reference(transport, "", "", path, tag, digest)  # type: ignore[arg-type]
    assert parse_reference(str(reference)) == reference


@given(st.text(max_size=60))
def test_any_text_is_a_name_or_a_usage_error(text: str) -> None:
    try:
        reference = parse_reference(text)
    except UsageError:
        return
    assert parse_reference(str(reference)) == reference
