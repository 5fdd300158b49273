# SPDX-License-Identifier: Apache-2.0
"""The cost of an image that no link changes: mounting, kernel memory, the daemon's, warm reads.

Owns these readings. Invariant: kernel memory is read with caches of names and inodes emptied, and
with the unused rest of slabs given back, so it is what the mount itself holds.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.host import Host
from benchmarks.measure import median, timed
from benchmarks.places import publish_many_sectors, reference, warm
from benchmarks.sizes import Footprint, Sized
from benchmarks.trees import read_tree
from firstread.oci.reference import parse_reference
from firstread.oci.resolve import resolve
from firstread.registry.open import open_source
from firstread.registry.options import AccessOptions
from firstread.testing.registry import DockerRegistry
from firstread.units import KiB

RUNS = 5
EMPTY_SLAB = "2\n"  # of drop_caches: names and inodes, not data


def footprint(registry: DockerRegistry, name: str, sized: Sized, scratch: Path) -> Footprint:
    """Measure a benchmark image of one sector size."""
    warm(name)
    image = reference(registry, name, str(sized))
    with Host(scratch / f"{name}-{sized}") as host:
        found = _mounts(host, image, name, sized.size)
        mounted = host.attach(image, policy="never")
        fetch_s = timed(lambda: host.complete(mounted))
        read_tree(mounted)
        warm_s = min(read_tree(mounted) for _ in range(2))
        content = sum(p.lstat().st_size for p in mounted.rglob("*") if p.is_file())
        pss = host.pss_bytes()
    return found._replace(fetch_s=fetch_s, warm_s=warm_s, content_bytes=content, daemon_bytes=pss)


def synthetic(registry: DockerRegistry, count: int, scratch: Path) -> Footprint:
    """Measure an image of `count` sectors, of one block each."""
    image = f"{registry.host}/bench/sectors:{count}"
    publish_many_sectors(image, count)
    with Host(scratch / f"sectors-{count}") as host:
        return _mounts(host, image, str(count), 0)


def _mounts(host: Host, image: str, name: str, size: int) -> Footprint:
    host.detach(host.attach(image))
    place, mounts, unmounts = host.scratch / "mnt", [], []
    for _ in range(RUNS):
        mounts.append(timed(lambda: host.attach(image, policy="never")))
        unmounts.append(timed(lambda: host.detach(place)))
    before = _slab_bytes()
    host.attach(image, policy="never")
    slab = _slab_bytes() - before
    sectors, pss = host.stats()["sectors"], host.pss_bytes()
    host.detach(place)
    with open_source(parse_reference(image), AccessOptions(plain_http=True)) as repository:
        layers = resolve(repository).manifest.layers
    return Footprint(
        name,
        size,
        sectors,
        sum(layer.size for layer in layers),
        layers[0].size,
        median(mounts),
        median(unmounts),
        slab,
        pss,
    )


def _slab_bytes() -> int:
    """Return the kernel memory of small objects that is in use."""
    Path("/proc/sys/vm/drop_caches").write_text(EMPTY_SLAB)
    for cache in Path("/sys/kernel/slab").glob("*/shrink"):
        cache.write_text("1\n")
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("Slab:"):
            return int(line.split()[1]) * KiB
    raise RuntimeError("/proc/meminfo has no Slab")
