# SPDX-License-Identifier: Apache-2.0
"""Building images into a cache directory, each once.

Owns the order of work: it builds layers one after the other, and compresses them in the background.
Invariant: an image appears in the cache by one rename, after its record of layers and
package versions; only a change of its recipe, or of its base's, builds it again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.images.layer import LayerBlob, write_layer
from benchmarks.images.layout import write_layout
from benchmarks.images.recipes import RECIPES, Recipe
from benchmarks.images.root import run_layer
from firstread.errors import NodeError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

NEEDED = ("apt-get", "debootstrap", "dpkg-deb", "gzip", "tar", "unshare")
SCRATCH_PREFIX = ".scratch-"


def default_cache() -> Path:
    """Return ``$FIRSTREAD_IMAGES``, or the place in the user's cache directory."""
    fallback = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "firstread/images"
    return Path(os.environ.get("FIRSTREAD_IMAGES", fallback))


def build(
    names: Iterable[str], cache: Path | None = None, report: Callable[[str], None] = print
) -> list[Path]:
    """Build the images that the cache lacks; return their OCI layouts.

    Args:
        names: of `RECIPES`.
        cache: directory of the layouts, `default_cache` unless given; not on overlayfs or tmpfs.
        report: takes one line for each step.

    Raises:
        UsageError: there is no such image.
        NodeError: not root, a program is missing, or a script failed.
        OSError: the cache cannot be written.
    """
    names = list(names)
    if unknown := sorted(set(names) - set(RECIPES)):
        raise UsageError(f"no image {unknown[0]!r}", hint=f"there are {', '.join(RECIPES)}")
    cache = (cache or default_cache()).absolute()
    if not all(is_current(cache, name) for name in names):
        _check_host()
        with _locked(cache) as scratch:
            workshop = _Workshop(cache, scratch, report)
            for name in names:
                workshop.build(name)
    return [cache / name for name in names]


def recipe_key(name: str) -> str:
    """Return a digest of the whole recipe of `name`, its base's included."""
    recipe = RECIPES[name]
    base = recipe_key(recipe.base) if recipe.base else ""
    return hashlib.sha256(f"{base}{recipe!r}".encode()).hexdigest()


def is_current(cache: Path, name: str) -> bool:
    """Tell whether `cache` holds the image of the current recipe."""
    try:
        record = read_record(cache, name)
    except FileNotFoundError:
        return False
    return record["recipe"] == recipe_key(name) and (cache / name / "index.json").exists()


def read_record(cache: Path, name: str) -> dict[str, object]:
    """Return the record of an image: its ``recipe`` key, ``layers`` and ``packages``."""
    record: dict[str, object] = json.loads((cache / f"{name}.json").read_text())
    return record


def read_layers(cache: Path, name: str) -> list[LayerBlob]:
    """Return the layers of an image in the cache."""
    layers = read_record(cache, name)["layers"]
    assert isinstance(layers, list)
    return [LayerBlob(**layer) for layer in layers]


class _Workshop:
    """The builds of one session, which share unpacked bases and downloaded packages."""

    def __init__(self, cache: Path, scratch: Path, report: Callable[[str], None]) -> None:
        self.cache = cache
        self.scratch = scratch
        self.report = report

    def build(self, name: str) -> None:
        """Build one image, its base first, unless it exists."""
        if is_current(self.cache, name):
            return
        recipe = RECIPES[name]
        if recipe.base:
            self.build(recipe.base)
        layout = self.scratch / name
        blobs = layout / "blobs/sha256"
        blobs.mkdir(parents=True)
        layers, uppers = self._inherit(recipe, blobs)
        with ThreadPoolExecutor(max_workers=2) as compressors:
            pending = []
            for number, layer in enumerate(recipe.layers, start=1):
                self.report(f"{name}: layer {number} of {len(recipe.layers)}")
                upper = self.scratch / f"{name}.{number}"
                upper.mkdir(mode=0o755)
                run_layer(layer, uppers, upper, self.scratch)
                uppers.append(upper)
                pending.append(compressors.submit(write_layer, upper, blobs))
            self.report(f"{name}: compressing")
            layers += [layer.result() for layer in pending]
        write_layout(layout, recipe, layers, _history(recipe))
        self._publish(name, layers, _packages(uppers))
        for upper in uppers[1 if recipe.base else 0 :]:
            shutil.rmtree(upper)

    def _inherit(self, recipe: Recipe, blobs: Path) -> tuple[list[LayerBlob], list[Path]]:
        """Link the layer of the base into `blobs`; return it, and its directory unpacked."""
        if recipe.base is None:
            return [], []
        (layer,) = read_layers(self.cache, recipe.base)
        hexadecimal = layer.digest.removeprefix("sha256:")
        blob = self.cache / recipe.base / "blobs/sha256" / hexadecimal
        os.link(blob, blobs / hexadecimal)
        root = self.scratch / f"base-{recipe.base}"
        if not root.exists():
            root.mkdir(mode=0o755)
            options = ("--extract", "--gzip", "--numeric-owner", "--xattrs", "--xattrs-include=*")
            subprocess.run(("tar", *options, "--file", blob, "--directory", root), check=True)
        return [layer], [root]

    def _publish(self, name: str, layers: Sequence[LayerBlob], packages: Sequence[str]) -> None:
        """Move the finished layout into the cache, after its record."""
        place = self.cache / name
        if place.exists():
            shutil.rmtree(place)
        record = {
            "recipe": recipe_key(name),
            "layers": [layer.to_dict() for layer in layers],
            "packages": list(packages),
        }
        (self.cache / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
        os.rename(self.scratch / name, place)


def _history(recipe: Recipe) -> list[str]:
    base = _history(RECIPES[recipe.base]) if recipe.base else []
    return base + [layer.script for layer in recipe.layers]


def _packages(uppers: Sequence[Path]) -> list[str]:
    """Return the installed software, ``name version`` for packages, ``name-version`` for wheels."""
    found: list[str] = []
    databases = [upper / "var/lib/dpkg" for upper in uppers]
    databases = [database for database in databases if (database / "status").exists()]
    if databases:
        query = ("dpkg-query", f"--admindir={databases[-1]}", "--show")
        listing = subprocess.run(query, capture_output=True, text=True, check=True).stdout
        found += [line.replace("\t", " ") for line in listing.splitlines()]
    for upper in uppers:
        wheels = upper.glob("usr/local/lib/python3*/dist-packages/*.dist-info")
        found += sorted(wheel.stem for wheel in wheels)
    return found


def _check_host() -> None:
    if os.geteuid():
        raise NodeError("building images needs root", hint="run as root")
    if missing := [program for program in NEEDED if not shutil.which(program)]:
        raise NodeError(f"missing programs: {', '.join(missing)}", hint="apt-get install them")


@contextmanager
def _locked(cache: Path) -> Iterator[Path]:
    """Hold the cache for one build at a time; yield a scratch directory that is removed."""
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in cache.glob(f"{SCRATCH_PREFIX}*"):  # of a killed build
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(
            prefix=SCRATCH_PREFIX, dir=cache, ignore_cleanup_errors=True
        ) as scratch:
            os.chmod(scratch, 0o755)  # apt downloads as another user
            yield Path(scratch)
