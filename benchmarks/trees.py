# SPDX-License-Identifier: Apache-2.0
"""Trees of files: unpacked the classic way, and read as a whole.

Owns the programs that do it; callers own the page cache. Every read happens in other
processes, since a process must not wait for what it serves itself.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from benchmarks.classic import unpack
from benchmarks.measure import timed
from benchmarks.places import ORIGINAL, reference
from firstread.convert.original import source_layers
from firstread.oci.model import Descriptor
from firstread.oci.reference import parse_reference
from firstread.oci.resolve import resolve
from firstread.registry.open import open_source
from firstread.testing.registry import DockerRegistry
from firstread.trees import remove_tree


def layers_of(registry: DockerRegistry, name: str) -> list[Descriptor]:
    """Return the layers of an original image."""
    with open_source(parse_reference(reference(registry, name, ORIGINAL))) as repository:
        return [layer for layer, _ in source_layers(resolve(repository))]


def unpacked(registry: DockerRegistry, name: str, directory: Path) -> Path:
    """Download and unpack an original image as `benchmarks.classic` does; return its root."""
    with open_source(parse_reference(reference(registry, name, ORIGINAL))) as repository:
        return unpack(repository, layers_of(registry, name), directory)


def step_by_step(registry: DockerRegistry, name: str, directory: Path) -> Path:
    """Download, then unpack an original image with curl, gzip and tar; return its root."""
    root, blobs = directory / "root", directory / "blobs"
    for place in (root, blobs):
        place.mkdir(parents=True)
    digests = [layer.digest for layer in layers_of(registry, name)]
    urls = [f"http://{registry.host}/v2/bench/{name}/blobs/{digest}" for digest in digests]
    fetch = ("curl", "--silent", "--show-error", "--fail", "--remote-name-all", *urls)
    subprocess.run(fetch, cwd=blobs, check=True)
    for digest in digests:
        script = f"gzip -dc {blobs}/{digest} | tar -x --xattrs --numeric-owner -C {root}"
        subprocess.run(("sh", "-c", script), check=True)
    return root


def merged(registry: DockerRegistry, name: str, directory: Path) -> Path:
    """Return an original image as one tree on the disk's file system, without an overlay."""
    overlay = unpacked(registry, name, directory / "layers")
    tree = directory / "tree"
    subprocess.run(("cp", "--archive", overlay, tree), check=True)
    discard(overlay.parent)
    return tree


def discard(directory: Path) -> None:
    """Remove `directory`, and what `unpacked` has mounted in it."""
    root = directory / "root"
    if root.is_mount():
        subprocess.run(("umount", root), check=True)
    remove_tree(directory)


def read_tree(tree: Path) -> float:
    """Return the seconds of reading every file below `tree`, one after the other."""
    script = f"find {tree} -xdev -type f -print0 | xargs -0 cat > /dev/null"
    return timed(lambda: subprocess.run(("sh", "-c", script), check=True))


def tar(tree: Path) -> None:
    """Archive `tree`, and throw the archive away (GNU tar does not read for /dev/null itself)."""
    script = f"tar --create --one-file-system --directory {tree} . | cat > /dev/null"
    subprocess.run(("sh", "-c", script), check=True)
