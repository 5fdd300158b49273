# SPDX-License-Identifier: Apache-2.0
"""Many pods at once, and pods with kills below them: small runs of both benchmarks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from benchmarks.containers import FILE_BYTES, Readers, file_bytes, name_in, reader_registry

from firstread.testing.containerd import Containerd
from firstread.testing.containers import find_busybox
from firstread.testing.registry import DockerRegistry

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.skipif(
        os.geteuid() != 0 or not find_busybox() or not shutil.which("containerd"),
        reason="needs root, busybox-static and containerd",
    ),
]

FILES, PODS, READERS, READS = 120, 5, 2, 80


@pytest.fixture(scope="module")
def registry() -> Iterator[DockerRegistry]:
    with reader_registry(FILES) as running:
        yield running


def test_pods_at_once_fetch_each_sector_once(registry: DockerRegistry, scratch: Path) -> None:
    script = "cat /data/? /data/?? | wc -c"
    with Containerd(scratch, f"{registry.host}/pause:1") as node:
        node.remove_pod(node.start_pod()[0])
        registry.forget()

        def pod(_: int) -> list[str]:
            node.pull(name_in(registry))
            return node.run(name_in(registry), "sh", "-c", script)

        with ThreadPoolExecutor(PODS) as pool:
            said = list(pool.map(pod, range(PODS), timeout=120))
        assert said == [[f"{100 * FILE_BYTES}"]] * PODS
        sent = registry.counts.bytes_of("GET /v2/reader/blobs/")
    # 100 of 120 files, busybox, the metadata; the numbers do not compress
    assert 100 * FILE_BYTES < sent < (FILES + 60) * FILE_BYTES
    assert len(file_bytes(0)) == FILE_BYTES


def test_containers_do_not_notice_kills_of_everything_below(
    registry: DockerRegistry, scratch: Path
) -> None:
    with Readers(scratch, registry, READERS, FILES, READS) as readers:
        kills = readers.kill_in_turns(1, calm_s=0.2)
        result = readers.result(kills, timeout_s=60)
    assert result.right, result
    assert result.reads == READERS * READS
    assert len(kills) == 6
