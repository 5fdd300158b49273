# SPDX-License-Identifier: Apache-2.0
"""Whole images through lazy mounts, compared with their sources; and the cost."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from firstread.testing.caches import drop_caches
from firstread.testing.daemon import Daemon, tree_of
from firstread.testing.features import Expected
from firstread.testing.images import feature_tree
from firstread.testing.lazymount import output
from firstread.testing.observe import differences, observe
from firstread.testing.plainimage import PlainImage, put_plain_image
from firstread.testing.registry import DockerRegistry

pytestmark = pytest.mark.privileged


@pytest.fixture(scope="module")
def unpacked_debian(debian: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory into which umoci has unpacked the original."""
    bundle = tmp_path_factory.mktemp("unpacked") / "bundle"
    command = ["umoci", "unpack", "--image", f"{debian}:latest", str(bundle)]
    subprocess.run(command, check=True, capture_output=True)
    return bundle / "rootfs"


def check_whole(daemon: Daemon, place: Path, expected: dict[bytes, Expected]) -> None:
    """Compare all of a cold mount, and check that every sector was fetched once."""
    status = daemon.mounted(place)
    assert (status["present"], status["events"], status["bytes_fetched"]) == (0, 0, 0)
    assert not differences(expected, tree_of(place))

    status = daemon.mounted(place)
    assert status["present"] == status["sectors"]
    assert status["self_sufficient"]
    assert 0 < status["events"] <= status["sectors"]
    assert status["requests"] <= status["sectors"]
    assert (status["failed_reads"], status["fetch_errors"]) == (0, 0)
    check_warm(daemon, place, expected)


def check_warm(daemon: Daemon, place: Path, expected: dict[bytes, Expected]) -> None:
    """Read all of it from the disk: no event, no request, no CPU time of the daemon."""
    # The read-ahead grows some time after a start, whatever is read.
    before, used = {**daemon.mounted(place), "read_ahead_kib": None}, daemon.cpu_s()
    drop_caches()
    assert not differences(expected, tree_of(place))
    assert daemon.cpu_s() - used <= 0.05  # the cost of asking for the status
    assert {**daemon.mounted(place), "read_ahead_kib": None} == before


def test_the_image_with_every_feature(daemon: Daemon, lazy_features: str) -> None:
    check_whole(daemon, daemon.mount(lazy_features), feature_tree())


def test_a_real_image_from_a_real_registry(
    daemon: Daemon, lazy_debian: str, unpacked_debian: Path
) -> None:
    expected = observe(unpacked_debian)
    with DockerRegistry() as registry:
        image = f"{registry.host}/lazy/debian:12"
        copy = ("skopeo", "copy", "--dest-tls-verify=false", "--preserve-digests", "-q")
        subprocess.run([*copy, lazy_debian, f"docker://{image}"], check=True)
        registry.forget()

        place = daemon.mount(image)
        assert registry.counts.requests_of() <= 3
        check_whole(daemon, place, expected)

        status, counts = daemon.mounted(place), registry.counts
        blobs = [key for key in counts.requests if "/blobs/" in key]
        largest = max(blobs, key=lambda key: counts.bytes[key])
        assert counts.requests[largest] == status["requests"]
        # Each sector crossed the network once: the blob has nothing else but its layer record.
        assert counts.bytes[largest] == status["bytes_fetched"]


def test_each_touched_sector_raises_one_event(
    daemon: Daemon, plain: tuple[str, PlainImage]
) -> None:
    reference, image = plain
    place = daemon.mount(reference)
    for number in (1, 5, 3, 5):
        reader = daemon.reading(place / f"f{number}", 1000, 50)
        assert output(reader) == image.summary(number, 1000, 50)
    daemon.wait(lambda: daemon.mounted(place)["wanted"] == 0)
    status = daemon.mounted(place)
    assert (status["events"], status["present"]) == (3, 3)
    assert status["requests_by_cause"] == {"demand": 3}
    assert status["first_read_p50_s"] <= status["first_read_p99_s"] < 1.0


def test_two_images_share_common_sectors(
    daemon: Daemon, tmp_path: Path, plain: tuple[str, PlainImage]
) -> None:
    reference, _ = plain
    other = f"oci:{tmp_path}/other:latest"
    contents = put_plain_image(other, count=8, first=104)  # its first four are the other's last
    first, second = daemon.mount(reference, "first"), daemon.mount(other, "second")
    tree_of(first)
    daemon.wait(lambda: daemon.mounted(first)["self_sufficient"])
    assert daemon.mounted(second)["present"] == 4
    for number in range(8):
        wanted = contents.summary(number, 0, 256 * 1024)
        assert output(daemon.reading(second / f"f{number}", 0, 256 * 1024)) == wanted
    assert daemon.mounted(second)["events"] <= 4
    assert daemon.status()["store"]["sectors"] == 12


def test_mounting_again_asks_nobody(daemon: Daemon, tmp_path: Path) -> None:
    with DockerRegistry() as registry:
        image = f"{registry.host}/lazy/plain:1"
        put_plain_image(f"docker://{image}")
        registry.forget()
        place = daemon.mount(image)
        assert registry.counts.requests_of() == 2  # manifest, metadata
        assert daemon.run("umount", place).code == 0
        registry.forget()
        daemon.mount(image)
        assert registry.counts.requests_of() == 0
        daemon.mount(image, "always", "--pull", "always")
        assert registry.counts.requests_of() == 1  # manifest


def test_a_layout_is_mounted_as_it_is_now(daemon: Daemon, tmp_path: Path) -> None:
    """After another conversion into the same layout, a mount must not show the old image."""
    reference = f"oci:{tmp_path}/layout:latest"
    names = []
    for count in (2, 3):
        put_plain_image(reference, count=count)
        place = daemon.mount(reference)
        names.append(sorted(path.name for path in place.iterdir()))
        assert daemon.run("umount", place).code == 0
    assert names[0] != names[1]
    never = daemon.mount(reference, "never", "--pull", "never")
    assert sorted(path.name for path in never.iterdir()) == names[1]

    (tmp_path / "layout/index.json").write_text('{"schemaVersion":2,"manifests":[]}')
    place = daemon.mount(reference, "known")  # whose sectors may all be present
    assert sorted(path.name for path in place.iterdir()) == names[1]


def test_a_mount_of_many_sectors(daemon: Daemon, tmp_path: Path) -> None:
    reference = f"oci:{tmp_path}/many:latest"
    put_plain_image(reference, count=3000, sector_bytes=4096, frame_bytes=4096)
    place = daemon.mount(reference)
    assert daemon.mounted(place)["sectors"] == 3000
