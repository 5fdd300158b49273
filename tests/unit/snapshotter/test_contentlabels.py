# SPDX-License-Identifier: Apache-2.0
"""The labels of containerd's contents, as its own clients write them."""

from __future__ import annotations

import pytest

from firstread.oci.model import OCI_CONFIG, Manifest, describe
from firstread.oci.reference import parse_reference
from firstread.snapshotter.contentlabels import MAX_LABEL, SOURCE, references, source


def test_a_manifest_keeps_config_and_layers() -> None:
    config, low, high = (describe(data, OCI_CONFIG) for data in (b"c", b"l", b"h"))
    assert references(Manifest(config=config, layers=[low, high])) == {
        "containerd.io/gc.ref.content.config": config.digest,
        "containerd.io/gc.ref.content.l.0": low.digest,
        "containerd.io/gc.ref.content.l.1": high.digest,
    }


@pytest.mark.parametrize(
    ("image", "host"),
    [
        ("r.example/a/b:1", "r.example"),
        ("r.example:5000/a/b", "r.example"),
        ("127.0.0.1:5000/a/b", "127.0.0.1"),
        ("[fd00::17]:5000/a/b", "fd00::17"),
    ],
)
def test_a_source_has_no_port(image: str, host: str) -> None:
    assert source(parse_reference(image), {}) == {f"{SOURCE}{host}": "a/b"}


@pytest.mark.parametrize(
    ("known", "made"), [("", "m"), ("m", "m"), ("a,z", "a,m,z"), ("m,z", "m,z")]
)
def test_a_source_joins_those_that_are_known(known: str, made: str) -> None:
    name = f"{SOURCE}r.example"
    labels = {name: known, f"{SOURCE}other.example": "x"}
    assert source(parse_reference("r.example/m"), labels) == {name: made}


def test_a_source_that_containerd_would_refuse_is_left_out() -> None:
    known = {f"{SOURCE}r.example": "a" * (MAX_LABEL - len(f"{SOURCE}r.example") - 2)}
    assert source(parse_reference("r.example/m"), known)
    known = {name: f"{value}a" for name, value in known.items()}
    assert source(parse_reference("r.example/m"), known) == {}
