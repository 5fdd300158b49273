# SPDX-License-Identifier: Apache-2.0
"""Makes the images of every mode, once, and leaves them in the registry's storage.

Owns the words that conversions know. Invariant: the tag of a made image names its original, so a
rebuilt original is converted anew; the images that this checkout makes are made in every run.
"""

from __future__ import annotations

import itertools
import json
import shlex
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from benchmarks.images.build import default_cache, read_layers
from benchmarks.images.ready import Prints
from benchmarks.measure import timed
from benchmarks.places import FIRSTREAD, LAZY, ORIGINAL, publish, reference, storage
from benchmarks.recordings import until
from benchmarks.suite.modes import Mode
from benchmarks.suite.nodes import PAUSE, Site, containerd_node
from benchmarks.suite.workloads import Workload
from firstread.oci.reference import parse_reference
from firstread.oci.repository import Repository
from firstread.oci.resolve import resolve
from firstread.registry.open import open_source
from firstread.registry.options import AccessOptions
from firstread.sectors.image import fetch_image
from firstread.testing.containers import find_busybox
from firstread.testing.registry import DockerRegistry
from firstread.testing.runnable import push_pause

MAKE_S = 3600.0
OBSERVED_S = 10  # that stargz's recorder watches a server which prints nothing

_places = itertools.count(1)  # names of nodes: paths of sockets have 107 bytes at most


@dataclass(frozen=True)
class Made:
    """An image in the registry.

    Args:
        tag: of it.
        whole_bytes: compressed layers of the original.
        hot_bytes: compressed, of what it says that a start reads; 0 if it says nothing.
    """

    tag: str
    whole_bytes: int
    hot_bytes: int = 0


def publish_originals(workloads: Sequence[Workload]) -> None:
    """Put the original images, their plain conversions and that of sandboxes into the storage."""
    publish(dict.fromkeys(workload.image for workload in workloads))
    busybox = find_busybox()
    if busybox is None:
        raise RuntimeError("there is no static busybox: apt install busybox-static")
    with DockerRegistry(storage=storage()) as registry:
        push_pause(registry, busybox, PAUSE)


def make(mode: Mode, workload: Workload, scratch: Path) -> Made:
    """Make the image of `mode` unless the storage has it, and return what it is.

    Raises:
        RuntimeError: a command failed; with its last words.
    """
    with DockerRegistry(storage=storage()) as registry:
        name = workload.image
        tag = _tag(mode, workload, reference(registry, name, ORIGINAL))
        target = reference(registry, name, tag)
        ours = any(words[0] == "$FIRSTREAD" for words in mode.convert)
        if mode.convert and (ours or not _has(name, tag)):
            place = scratch / f"m{next(_places)}"
            with containerd_node(Site(registry, registry.host), mode, place) as node:
                work = place / "work"
                work.mkdir()
                names = {
                    "SOURCE": reference(registry, name, ORIGINAL),
                    "LAZY": reference(registry, name, LAZY),
                    "TARGET": target,
                    "SOCKET": str(node.socket),
                    "WORK": str(work),
                    "LIST": str(work / "list"),
                    "TRACE": str(work / "trace"),
                }
                daemon = node.daemon
                where = ["--root", str(daemon.root), "--run-dir", str(daemon.run_dir)]
                words = {**words_of(workload), "$NODE": where}
                seconds = timed(lambda: _convert(mode, names, words))
            print(f"  {workload.name}: made {tag} in {seconds:.1f} s", flush=True)
        whole = sum(layer.size for layer in read_layers(default_cache(), name))
        if not ours:
            return Made(tag, whole)
        with open_source(parse_reference(target), AccessOptions(plain_http=True)) as repository:
            return Made(tag, whole, hot_bytes(repository))


def _convert(mode: Mode, names: Mapping[str, str], words: Mapping[str, Sequence[str]]) -> None:
    listed = Path(names["LIST"])
    for template in mode.convert:
        command = fill(template, names, words)
        paths = listed.with_suffix(".txt")
        given = paths.read_text() if paths.exists() else ""
        done = subprocess.run(
            command, input=given, capture_output=True, text=True, timeout=MAKE_S, check=False
        )
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip())[-1000:]
            raise RuntimeError(f"{shlex.join(command)[:300]}: {said}")
        if listed.exists():
            write_lists(listed)


def write_lists(listed: Path) -> None:
    """Write the lists that other peers take, beside stargz's record of a workload."""
    entries = [json.loads(line)["path"] for line in listed.read_text().splitlines()]
    paths = list(dict.fromkeys("/" + path.lstrip("/") for path in entries))
    listed.with_suffix(".json").write_text(json.dumps(paths))
    listed.with_suffix(".txt").write_text("".join(f"{path}\n" for path in paths))


def fill(
    template: Sequence[str], names: Mapping[str, str], words: Mapping[str, Sequence[str]]
) -> list[str]:
    """Return the command line of a template of `Mode.convert`.

    Args:
        template: its words.
        names: name to text, for ``$NAME`` anywhere in a word.
        words: a whole word to those in its place, which may be none.
    """
    filled: list[str] = []
    for word in template:
        filled += words[word] if word in words else [Template(word).safe_substitute(names)]
    return filled


def words_of(workload: Workload) -> dict[str, Sequence[str]]:
    """Return the words of templates that stand for several."""
    entry: list[str] = []
    if workload.command:
        first, *arguments = workload.command
        entry = ["--entrypoint", json.dumps([first]), "--args", json.dumps(arguments)]
    ready = workload.ready
    period = ["--period", str(OBSERVED_S)]
    recorded = ["--wait-on-line", ready.line] if isinstance(ready, Prints) else period
    return {
        "$FIRSTREAD": FIRSTREAD,
        "$WORKLOAD": [*recorded, *entry],
        "$UNTIL": until(workload),
        "$COMMAND": workload.command,
    }


def _tag(mode: Mode, workload: Workload, original: str) -> str:
    if not mode.convert:
        return mode.tag
    with open_source(parse_reference(original), AccessOptions(plain_http=True)) as repository:
        digest = resolve(repository).descriptor.digest
    parts = [mode.tag, *([workload.name] if mode.tailored else [])]
    return "-".join([*parts, digest.partition(":")[2][:8]])


def _has(name: str, tag: str) -> bool:
    tags = storage() / f"docker/registry/v2/repositories/bench/{name}/_manifests/tags"
    return (tags / tag).exists()


def hot_bytes(repository: Repository) -> int:
    """Return the compressed bytes of the sectors that a converted image calls hot."""
    with tempfile.TemporaryFile() as file:
        image = fetch_image(repository, resolve(repository).manifest, file)
    return sum(image.index.sectors[slot].length for slot in image.hot_sectors())
