# SPDX-License-Identifier: Apache-2.0
"""Every kind of place as source and as destination, and images of several platforms."""

from __future__ import annotations

import pytest

from firstread.testing.command import firstread
from firstread.testing.images import (
    File,
    Image,
    Layer,
    write_docker_archive,
    write_index,
    write_layout,
)

AMD = Image([Layer([File("a", b"amd64")])])
ARM = Image([Layer([File("a", b"arm64")])], platform="linux/arm64")


@pytest.fixture(autouse=True)
def places() -> None:
    write_layout(AMD, "in")
    write_docker_archive(AMD, "docker.tar")
    write_index({"linux/amd64": AMD, "linux/arm64": ARM}, "index")


@pytest.mark.parametrize("destination", ["oci:out", "oci:out:1", "oci:in:1", "oci-archive:a.tar:1"])
@pytest.mark.parametrize("source", ["oci:in:latest", "docker-archive:docker.tar"])
def test_places(source: str, destination: str) -> None:
    ran = firstread("convert", source, destination)
    assert (ran.code, ran.stderr) == (0, "")
    assert ran.stdout.splitlines()[0] == destination
    ran = firstread("verify", destination, "--source", "oci:in:latest")
    assert (ran.code, ran.stderr) == (0, "")


def test_the_original_keeps_its_tag() -> None:
    firstread("convert", "oci:in:latest", "oci:in:lazy")
    again = firstread("convert", "oci:in:latest", "oci:in:lazy", "--json")
    assert (again.code, again.json["unchanged"]) == (0, True)


def test_the_platform_is_chosen() -> None:
    assert firstread("convert", "oci:index", "oci:out:amd", "--platform=amd64").code == 0
    assert firstread("convert", "oci:index", "oci:out:arm", "--platform", "linux/arm64").code == 0
    for tag, platform, code in (("amd", "amd64", 0), ("arm", "arm64", 0), ("arm", "amd64", 3)):
        ran = firstread("verify", f"oci:out:{tag}", "--source", "oci:index", "--platform", platform)
        assert ran.code == code
    assert firstread("inspect", "oci:out").stderr == (
        "firstread: oci:out: there are several images here\n  choose one of: amd, arm\n"
    )


def test_a_missing_platform() -> None:
    ran = firstread("convert", "oci:index", "oci:out", "--platform", "linux/riscv64")
    assert (ran.code, ran.stdout) == (3, "")
    assert ran.stderr == (
        "firstread: oci:index: there is no image for linux/riscv64\n"
        "  choose one with --platform: linux/amd64, linux/arm64\n"
    )
