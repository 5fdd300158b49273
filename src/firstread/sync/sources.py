# SPDX-License-Identifier: Apache-2.0
"""From sources to the names of images: patterns, files of names, clusters.

Owns the order of the questions; `firstread.registry.catalogue` and `firstread.sync.cluster` ask
them. Invariant: a source that fails, or gives nothing, hides no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from firstread.errors import FirstreadError, LimitError, NotFoundError, UsageError
from firstread.oci.reference import Reference
from firstread.registry.catalogue import list_repositories, list_tags
from firstread.registry.options import AccessOptions
from firstread.sync.cluster import running_images
from firstread.sync.kubeconfig import read_kubeconfig
from firstread.sync.pattern import Pattern, Source, parse_source, registry_image
from firstread.sync.silenthosts import SilentHosts
from firstread.units import MiB
from firstread.wholefile import read_limited

MAX_FILE: Final = 16 * MiB  # bytes of a file of names
MAX_IMAGES: Final = 100_000  # of a run
ASKING: Final = 8  # requests to registries at a time


@dataclass(frozen=True)
class Cluster:
    """A cluster whose images are wanted.

    Args:
        kubeconfig: file.
        context: in it; empty for the current one.
        namespace: of the pods; empty for all.
    """

    kubeconfig: Path
    context: str = ""
    namespace: str = ""

    def __str__(self) -> str:
        return f"{self.kubeconfig}{self.context and f' ({self.context})'}"


@dataclass(frozen=True)
class Wanted:
    """The images that a run is about.

    Args:
        sources: images and patterns.
        clusters: whose running images are wanted, too.
        only: all images must fit one of these, if there are any.
        excluded: no image may fit any of these.
    """

    sources: Sequence[Source] = ()
    clusters: Sequence[Cluster] = ()
    only: Sequence[Pattern] = ()
    excluded: Sequence[Pattern] = ()

    def has(self, name: Reference) -> bool:
        """Return whether the conditions let an image through."""
        fits_one = not self.only or any(each.fits(name) for each in self.only)
        return fits_one and not any(each.fits(name) for each in self.excluded)


@dataclass
class Names:
    """What the sources gave.

    Args:
        found: names of images, each once.
        faults: sources that gave nothing, and why.
    """

    found: list[Reference] = field(default_factory=list)
    faults: list[tuple[str, FirstreadError]] = field(default_factory=list)


def find_names(wanted: Wanted, options: AccessOptions) -> Names:
    """Return the names of the images that a run is about; ask registries and clusters.

    Raises:
        LimitError: there are more than `MAX_IMAGES`.
    """
    names, found = Names(), dict[Reference, None]()
    registries = _Registries(options, names)
    for cluster in wanted.clusters:
        found.update(dict.fromkeys(_in_cluster(cluster, options, names)))
    for source in wanted.sources:
        try:
            images = [source] if isinstance(source, Reference) else registries.images(source)
            found.update(dict.fromkeys(images))
        except FirstreadError as exc:
            names.faults.append((str(source), exc))
    names.found = [name for name in found if wanted.has(name)]
    if len(names.found) > MAX_IMAGES:
        raise LimitError(
            f"the sources name {len(names.found)} images, more than {MAX_IMAGES}",
            hint="sync a part of them at a time",
        )
    return names


def read_names(path: Path) -> list[Source]:
    """Return the sources in a file: one a line; ``#`` begins a comment.

    Raises:
        UsageError: a line is none, or there are none; names the line.
        NodeError: the file cannot be read.
    """
    found: list[Source] = []
    text = read_limited(path, MAX_FILE).decode(errors="replace")
    for number, line in enumerate(text.splitlines(), 1):
        if source := line.partition("#")[0].strip():
            try:
                found.append(parse_source(source))
            except UsageError as exc:
                raise UsageError(f"{path}, line {number}: {exc.message}", hint=exc.hint) from exc
    if not found:
        raise UsageError(f"{path} names no image")
    return found


def _in_cluster(cluster: Cluster, options: AccessOptions, names: Names) -> list[Reference]:
    found: list[Reference] = []
    try:
        access = read_kubeconfig(cluster.kubeconfig, cluster.context)
        texts = running_images(access, cluster.namespace, options)
        if not texts:
            raise NotFoundError("no pod runs there", hint="check context and namespace")
    except FirstreadError as exc:
        names.faults.append((str(cluster), exc))
        return found
    for text in texts:
        try:
            found.append(registry_image(text))
        except UsageError as exc:
            names.faults.append((text, exc))
    return found


class _Registries:
    """Answers of registries, each asked for once.

    Args:
        options: how they are reached.
        names: gets the repositories that fail.
    """

    def __init__(self, options: AccessOptions, names: Names) -> None:
        self._options, self._names, self._silent = options, names, SilentHosts()
        self._repositories: dict[str, list[str] | FirstreadError] = {}  # by host
        self._tags: dict[tuple[str, str], list[str] | FirstreadError] = {}

    def images(self, pattern: Pattern) -> list[Reference]:
        """Return the images that fit, in the order of their names.

        Raises:
            NotFoundError: none does.
            SourceError: the registry does not say which repositories it has.
        """
        repositories = [pattern.repository]
        if pattern.needs_catalogue:
            listed = self._catalogue(pattern.host)
            repositories = sorted(filter(pattern.fits_repository, listed))
        places = [(pattern.host, repository) for repository in repositories]
        new = [place for place in places if place not in self._tags]
        with ThreadPoolExecutor(ASKING, thread_name_prefix="tags") as pool:
            self._tags.update(zip(new, pool.map(self._ask, new), strict=True))
        found: list[Reference] = []
        for place in places:
            tags = self._tags[place]
            if not isinstance(tags, FirstreadError):
                fitting = filter(pattern.fits_tag, sorted(tags))
                found += [Reference("docker", *place, "", tag) for tag in fitting]
            elif not pattern.needs_catalogue:
                raise tags
            elif (
                not isinstance(tags, NotFoundError) and place in new
            ):  # a list may have what is gone
                self._names.faults.append(("/".join(place), tags))
        if not found:
            raise NotFoundError("no image fits", hint="check the pattern, and quote it in a shell")
        return found

    def _catalogue(self, host: str) -> list[str]:
        if host not in self._repositories:
            try:
                self._repositories[host] = list_repositories(host, self._options)
            except FirstreadError as exc:
                self._repositories[host] = exc
        answer = self._repositories[host]
        if isinstance(answer, FirstreadError):
            raise answer
        return answer

    def _ask(self, place: tuple[str, str]) -> list[str] | FirstreadError:
        try:
            with self._silent.asking(place[0]):
                return list_tags(Reference("docker", *place, ""), self._options)
        except FirstreadError as exc:
            return exc
