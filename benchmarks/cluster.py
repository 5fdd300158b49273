# SPDX-License-Identifier: Apache-2.0
"""60 images converted on a Dask cluster, beside one process; and while workers and scheduler die.

The layers hold files of Debian and PyPI packages that are installed here: three bases, twelve
middles that images share, and one layer of each image's own. They lie in a docker-registry, and
every run converts them into repositories of its own there, with an empty cache.

``python -m benchmarks.cluster [--images N] [--runs N] [--docs]``
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import importlib
import io
import json
import subprocess
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.images.build import default_cache
from benchmarks.measure import median
from benchmarks.report import DOCS, Goal, Section, save
from benchmarks.scratch import scratch_directory
from benchmarks.setting import describe
from firstread.convert.conversion import ConvertOptions, convert
from firstread.convert.layercache import LayerCache
from firstread.convert.layertags import PREFIX
from firstread.convert.outcome import Conversion
from firstread.convert.worker import run_task
from firstread.engines.daskcluster import DaskExecutor
from firstread.memory import keep_large_buffers
from firstread.oci.model import (
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    encode,
)
from firstread.oci.model import (
    describe as described,
)
from firstread.oci.reference import parse_reference
from firstread.registry.open import open_destination
from firstread.registry.options import AccessOptions
from firstread.testing.cluster import Cluster
from firstread.testing.patience import PATIENCE_S
from firstread.testing.registry import DockerRegistry

NAME = "cluster"
BASES, MIDDLES = 3, 12
BASE_BYTES, MIDDLE_BYTES, OWN_BYTES = 30_000_000, 8_000_000, 2_000_000
JOBS = WORKERS = 2
AT_A_TIME = (2, 4)  # images, in one process; on the cluster the last
COST_S, MANY, TINY = 2.0, 8, 48  # simulated: seconds of a layer, workers, layers
MB = 1_000_000


# -- images ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Built:
    """A layer: its blob, and what names it."""

    descriptor: Descriptor
    diff_id: str
    blob: bytes
    size: int


def debian_files() -> list[Path]:
    """Return the files of all Debian packages here, package by package."""
    listed = subprocess.run(
        ("dpkg-query", "-W", "-f", "${Package}\\n"), capture_output=True, check=True
    )
    names = listed.stdout.decode().split()
    files = subprocess.run(("dpkg-query", "-L", *names), capture_output=True, check=False).stdout
    return [Path(line) for line in files.decode(errors="replace").splitlines() if line[:1] == "/"]


def python_files() -> list[Path]:
    """Return the files of all PyPI packages here, package by package."""
    found = sorted(metadata.distributions(), key=lambda each: each.metadata["Name"] or "")
    return [Path(str(path.locate())).resolve() for each in found for path in each.files or ()]


def cut(files: Iterable[Path], count: int, size: int) -> list[Built]:
    """Return `count` layers of about `size` bytes, of one file after the other."""
    left, layers = iter(files), []
    for _ in range(count):
        names: dict[str, Path] = {}
        total = 0
        while total < size:
            path = next(left)
            if path.is_file() and not path.is_symlink() and path.stat().st_size < size // 2:
                names.setdefault(str(path).lstrip("/"), path)
                total += path.stat().st_size
        layers.append(packed(names))
    return layers


def packed(names: dict[str, Path]) -> Built:
    """Return a layer of files."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name, path in names.items():
            info = tarfile.TarInfo(name)
            data = path.read_bytes()
            info.size, info.mode = len(data), path.stat().st_mode & 0o777
            tar.addfile(info, io.BytesIO(data))
    content = raw.getvalue()
    blob = gzip.compress(content, 6, mtime=0)
    diff_id = f"sha256:{hashlib.sha256(content).hexdigest()}"
    return Built(described(blob, f"{OCI_LAYER}+gzip"), diff_id, blob, len(content))


def build(count: int) -> list[list[Built]]:
    """Return the layers of `count` images."""
    debian = iter(debian_files())
    bases = cut(debian, BASES, BASE_BYTES)
    own = cut(debian, count, OWN_BYTES)
    middles = cut(python_files(), MIDDLES, MIDDLE_BYTES)
    return [
        [bases[n % BASES], middles[n % MIDDLES], middles[(5 * n + 3) % MIDDLES], own[n]]
        for n in range(count)
    ]


def push(registry: DockerRegistry, images: Sequence[Sequence[Built]], prefix: str) -> list[str]:
    """Put images into the registry, each into a repository; return their names."""
    names = [f"{prefix}/image{number:02}" for number in range(len(images))]
    first: dict[str, str] = {}
    for name, layers in zip(names, images, strict=True):
        with open_destination(parse_reference(f"{registry.host}/{name}:1")) as repository:
            for layer in layers:
                blob = layer.descriptor
                if not repository.mount_blob(blob, first.setdefault(blob.digest, name)):
                    repository.put_blob(blob, io.BytesIO(layer.blob))
            config = json.dumps(
                {
                    "os": "linux",
                    "architecture": "amd64",
                    "config": {"Cmd": ["/bin/bash"]},
                    "rootfs": {"type": "layers", "diff_ids": [each.diff_id for each in layers]},
                }
            ).encode()
            repository.put_blob(described(config, OCI_CONFIG), io.BytesIO(config))
            manifest = Manifest(
                config=described(config, OCI_CONFIG), layers=[each.descriptor for each in layers]
            )
            repository.put_manifest(encode(manifest), OCI_MANIFEST, "1")
    return names


# -- runs --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A conversion of all images: seconds, and what became of each."""

    seconds: float
    made: list[Conversion]

    @property
    def digests(self) -> list[str]:
        return [each.digest for each in self.made]

    def packed(self) -> Counter[str]:
        """Return how often each layer was packed, by diff_id."""
        layers = [layer for each in self.made for layer in each.layers]
        return Counter(layer.diff_id for layer in layers if layer.how == "packed")


def drive(
    registry: DockerRegistry,
    names: Sequence[str],
    to: str,
    executor: Executor | None,
    at_a_time: int,
    cache: Path,
    *,
    jobs: int = 1,
) -> Run:
    """Convert all images, some at a time, into repositories below `to`."""
    access = AccessOptions(mirrors=False)
    options = ConvertOptions(
        auto_sector_size=True,
        jobs=jobs,
        source_options=access,
        destination_options=access,
        cache=LayerCache(cache),
    )

    def one(name: str) -> Conversion:
        source = parse_reference(f"{registry.host}/{name}:1")
        target = parse_reference(f"{registry.host}/{to}/{name.rpartition('/')[2]}:1")
        return convert(source, target, options, executor=executor)

    began = time.monotonic()
    with ThreadPoolExecutor(at_a_time) as pool:
        made = list(pool.map(one, names))
    return Run(time.monotonic() - began, made)


def simulated(text: str) -> str:
    """Pack a layer that costs `COST_S` more: the function of an engine, on a worker."""
    time.sleep(COST_S)
    return run_task(text)


class Costly(Executor):
    """An engine each of whose tasks takes `COST_S` longer."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        importable = importlib.import_module("benchmarks.cluster").simulated  # __main__ is not
        return self._executor.submit(importable, *args, **kwargs)


def read(registry: DockerRegistry, unique: Iterable[Built]) -> Counter[str]:
    """Return how often each layer was read from the registry since it was last told to forget."""
    layers = {each.descriptor.digest for each in unique}
    found: Counter[str] = Counter()
    for request, count in registry.counts.requests.items():
        digest = request.rpartition("/")[2]
        if request.startswith("GET ") and digest in layers:
            found[digest] += count
    return found


def tags(registry: DockerRegistry, repository: str) -> set[str]:
    """Return the tags of a repository, from the registry's storage."""
    place = registry.storage / "docker/registry/v2/repositories" / repository / "_manifests/tags"
    return {path.name for path in place.iterdir()}


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for a cause."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)


# -- figures -----------------------------------------------------------------------------------


def measure(count: int, runs: int) -> Section:
    """Run all of it."""
    keep_large_buffers()
    images = build(count)
    with scratch_directory() as scratch, DockerRegistry(storage=scratch / "registry") as registry:
        names = push(registry, images, "plain")
        section = Section(NAME, f"{count} images on a Dask cluster", describe(scratch))
        unique = {each.diff_id: each for layers in images for each in layers}
        section.setting["images"] = (
            f"{count}, of {len(unique)} layers with {sum(u.size for u in unique.values()) / MB:.0f}"
            f" MB of files of Debian and PyPI packages; {sum(map(len, images))} with repetitions"
        )
        section.setting["work"] = (
            "registry to registry on loopback, each image into a repository of its own, an empty"
            f" cache for each run; median of {runs} runs by turns; workers are warm"
        )
        section.start()
        environment = {"PYTHONPATH": str(Path(__file__).parents[1])}
        with Cluster(WORKERS, environment) as cluster:
            local = _beside(section, registry, names, cluster, scratch, runs, unique)
            _deaths(section, registry, names, cluster, scratch, local)
        _many(section, registry, scratch, environment)
    return section


def _beside(
    section: Section,
    registry: DockerRegistry,
    names: list[str],
    cluster: Cluster,
    scratch: Path,
    runs: int,
    unique: dict[str, Built],
) -> Run:
    """Compare the cluster with one process; return a run of the latter."""
    here, there = [], []
    times: Counter[str] = Counter()  # that the cluster has read each layer
    cluster.warm()
    with DaskExecutor(f"tcp://{cluster.address}") as engine:
        drive(registry, names[:2], "warm", engine, 2, scratch / "warm")
    for turn in range(runs):
        for at_a_time in AT_A_TIME:
            to = f"local{turn}{at_a_time}"
            run = drive(registry, names, to, None, at_a_time, scratch / to, jobs=JOBS)
            here.append((at_a_time, run))
            print(f"    local, {at_a_time} at a time: {run.seconds:.1f} s", flush=True)
        registry.forget()
        to = f"dask{turn}"
        # An engine keeps results, so each run has its own.
        with DaskExecutor(f"tcp://{cluster.address}") as engine:
            run = drive(registry, names, to, engine, AT_A_TIME[-1], scratch / to)
        there.append(run)
        times += read(registry, unique.values())
        print(f"    dask: {run.seconds:.1f} s", flush=True)
    by_count = {n: median([run.seconds for m, run in here if m == n]) for n in AT_A_TIME}
    best = min(by_count, key=lambda n: by_count[n])
    dask_s, local_s = median([run.seconds for run in there]), by_count[best]
    section.add(
        f"{WORKERS} workers, of the time of one process with {JOBS} jobs",
        dask_s / local_s,
        "x",
        Goal("<=", 1.1),
        f"{dask_s:.1f} s and {local_s:.1f} s, {best} images at a time"
        f" ({', '.join(f'{n}: {s:.1f} s' for n, s in by_count.items())})",
    )
    local = here[0][1]
    for run in there:
        assert run.digests == local.digests, "another image than one process makes"
    section.add(
        "most often that a layer was read and packed",
        max(times.values()) / runs,
        "x",
        Goal("<=", 1),
        f"{sum(times.values())} reads of {len(unique)} layers in {runs} runs",
    )
    registry.forget()
    with DaskExecutor(f"tcp://{cluster.address}") as fresh:
        again = drive(registry, names, "dask0", fresh, AT_A_TIME[-1], scratch / "dask0")
    counts = registry.counts
    section.add(
        "second run: blobs sent, or layers read",
        counts.requests_of("POST ") + sum(read(registry, unique.values()).values()),
        "blobs",
        Goal("<=", 0),
        f"{again.seconds:.1f} s; {counts.bytes_of('/blobs/') / MB:.1f} MB of configs and of"
        " sectors that a start reads",
    )
    return local


def _deaths(
    section: Section,
    registry: DockerRegistry,
    names: list[str],
    cluster: Cluster,
    scratch: Path,
    local: Run,
) -> None:
    """Convert while a worker dies in the middle of a layer, and then the scheduler."""
    sizes = registry.storage / "docker/registry/v2/repositories/deaths"

    def done() -> int:
        return len(list(sizes.glob(f"*/_manifests/tags/{PREFIX}*")))

    def kill() -> None:
        wait_until(lambda: done() > 5 and cluster.busy())
        cluster.kill_worker(cluster.busy()[0])
        cluster.add_worker()
        before = done()
        wait_until(lambda: done() > before + 10)
        cluster.kill_scheduler()
        cluster.start_scheduler()
        for _ in range(WORKERS):
            cluster.add_worker()

    killer = threading.Thread(target=kill)
    with DaskExecutor(f"tcp://{cluster.address}") as engine:
        killer.start()
        run = drive(registry, names, "deaths", engine, AT_A_TIME[-1], scratch / "deaths")
        killer.join()
    wrong = sum(ours != theirs for ours, theirs in zip(run.digests, local.digests, strict=True))
    repositories = [f"deaths/{name.rpartition('/')[2]}" for name in names]
    odd = sum(
        {tag for tag in tags(registry, each) if not tag.startswith(PREFIX)} != {"1"}
        for each in repositories
    )
    section.add(
        "wrong or partial images after a worker and the scheduler were killed",
        wrong + odd,
        "images",
        Goal("<=", 0),
        f"{run.seconds:.1f} s, {sum(run.packed().values())} layers packed, the restarts included",
    )
    section.add(
        "upload sessions that the killed left open",
        registry.open_uploads("deaths"),
        "sessions",
        None,
        "the registry drops them in time",
    )


def _many(
    section: Section, registry: DockerRegistry, scratch: Path, environment: dict[str, str]
) -> None:
    """Compare many workers with one, where each layer takes long."""
    files = [{f"file{n}": Path(__file__)} for n in range(TINY)]
    images = [[packed(each) for each in files[n : n + 3]] for n in range(0, TINY, 3)]
    names = push(registry, images, "tiny")
    seconds = {}
    for workers in (1, MANY):
        with (
            Cluster(workers, environment) as cluster,
            DaskExecutor(f"tcp://{cluster.address}") as engine,
        ):
            cluster.warm()
            to = f"many{workers}"
            run = drive(registry, names, to, Costly(engine), len(names), scratch / to)
            seconds[workers] = run.seconds
    section.add(
        f"{MANY} workers, where a layer costs {COST_S:g} s more: speed of one",
        seconds[1] / seconds[MANY],
        "x",
        Goal(">=", 6),
        f"{TINY} layers: {seconds[1]:.1f} s and {seconds[MANY]:.1f} s",
    )


def main() -> None:
    results = default_cache().parent / "benchmarks.json"
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=__doc__)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--docs", action="store_true", help=f"write them to docs/{DOCS.name}")
    options = parser.parse_args()
    save(measure(options.images, options.runs), results, docs=options.docs)


if __name__ == "__main__":
    main()
