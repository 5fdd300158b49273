# SPDX-License-Identifier: Apache-2.0
"""Whether an image can be had from where it is: the steps of a mount, tried one after another.

Owns what ``firstread doctor REF`` asks a registry and what it advises. Fetches no more than a
manifest, a config and some bytes of a sector blob.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime

from firstread.doctor.finding import Finding, failed, passed, warned
from firstread.doctor.host import CLOCK_FIX
from firstread.errors import FirstreadError
from firstread.oci.model import Descriptor
from firstread.oci.reference import Reference
from firstread.oci.repository import Repository
from firstread.registry.auth import USED, look_up
from firstread.registry.backoff import Backoff
from firstread.registry.hosts import Endpoint
from firstread.registry.open import open_source
from firstread.registry.options import AccessOptions
from firstread.registry.remote import RemoteRepository
from firstread.registry.transport import Transport
from firstread.sectors.attached import resolve_converted
from firstread.units import format_size

SKEW_WARN_S = 30.0
SKEW_FAIL_S = 300.0  # tokens live that long, and are signed with a time
SLOW_S = 1.0
_SAMPLE_BYTES = 4096


def check_image(reference: Reference, options: AccessOptions) -> list[Finding]:
    """Try what a mount of an image asks of its source; the steps up to the first that fails.

    Args:
        reference: the image.
        options: how its registry is reached; one retry at most, who asks is waiting.
    """
    options = dataclasses.replace(options, retries=min(options.retries, 1))
    done: list[Finding] = []
    name = "source"
    try:
        with open_source(reference, options) as repository:
            for name, step in _steps(reference, options, repository):  # noqa: B007 - for the error
                done.append(step())
                if not done[-1].ok:
                    break
    except FirstreadError as exc:
        done.append(failed(name, exc.message, exc.hint))
    return done


def _steps(
    reference: Reference, options: AccessOptions, repository: Repository
) -> Iterator[tuple[str, Callable[[], Finding]]]:
    """Yield what is tried, in order; what a step finds is known to the later ones."""
    if isinstance(repository, RemoteRepository):
        yield "credentials", lambda: _credentials(reference, options)
        endpoints = repository.endpoints()
        several = len(endpoints) > 1
        for endpoint, place in endpoints:
            registry = _Registry(endpoint, place.transport)
            name = f"mirror {endpoint.name}" if several and endpoint.namespace else "registry"
            yield name, functools.partial(registry.answers, name, others=several)
            if registry.date is not None:
                against = endpoint.name if name != "registry" else "the registry"
                skew = functools.partial(clock_skew, registry.date, time.time(), against)
                yield f"clock against {against}", skew
    image = _Image(repository)
    yield "image", image.resolve
    if image.blobs:
        yield "range requests", image.read_range


def _credentials(reference: Reference, options: AccessOptions) -> Finding:
    name, host = "credentials", reference.host
    looked = look_up(
        host, reference.repository, options.auth_file, directory=options.credentials_dir
    )
    if looked.credentials is None:
        return passed(name, f"none: it is asked anonymously; {looked}")
    file = next(source for source, had in looked.searched if had == USED)
    if os.stat(file).st_mode & 0o077:
        return warned(name, f"found for {host}, but others can read {file}", f"chmod 600 {file}")
    return passed(name, f"found: {looked}")


class _Registry:
    """What one endpoint says of itself. `date` is its ``Date`` header, None until it answers."""

    def __init__(self, endpoint: Endpoint, transport: Transport) -> None:
        self._path = f"{endpoint.path}/"
        self._transport = transport
        self.date: str | None = None

    def answers(self, name: str, *, others: bool) -> Finding:
        """Ask for the root of its API; if there are others, it may fail."""
        started = time.monotonic()
        try:
            answer = Backoff(self._transport.options).insist(
                lambda: self._transport.request(
                    "GET", self._path, what=f"cannot reach the {name}", expect=(200, 401, 403, 404)
                )
            )
        except FirstreadError as exc:
            if not others:
                raise
            fix = "reads go to the other endpoints of hosts.toml until it works again"
            return warned(name, exc.message, fix)
        seconds = time.monotonic() - started
        self.date = answer.headers.get("Date", "")
        detail = f"{self._transport.base} answers in {seconds * 1000:.0f} ms"
        if seconds > SLOW_S:
            fix = "first reads wait for it: use a mirror that is nearer"
            return warned(name, detail, fix)
        return passed(name, detail)


def clock_skew(date: str, now: float, against: str = "the registry") -> Finding:
    """Compare our clock with the ``Date`` header of a registry.

    Args:
        date: the header (RFC 9110, 6.6.1); empty if there is none.
        now: seconds since 1970.
        against: whose it is.
    """
    name = f"clock against {against}"
    try:
        skew = now - parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return passed(name, f"{against} does not say what time it is")
    detail = f"{abs(skew):.0f} s {'ahead' if skew > 0 else 'behind'}"
    if abs(skew) > SKEW_FAIL_S:
        detail += ": tokens and certificates can be refused"
        return failed(name, detail, CLOCK_FIX)
    if abs(skew) > SKEW_WARN_S:
        return warned(name, detail, CLOCK_FIX)
    return passed(name, detail)


class _Image:
    """An image at its source. `blobs` are its sector blobs, once it is resolved."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self.blobs: list[Descriptor] = []

    def resolve(self) -> Finding:
        resolved = resolve_converted(self._repository)
        self.blobs = resolved.manifest.layers[1:]
        size = sum(layer.size for layer in resolved.manifest.layers)
        original = (resolved.manifest.subject or resolved.descriptor).digest
        attached = original != resolved.descriptor.digest
        how = f"attached to {original}" if attached else "converted"
        detail = f"{resolved.descriptor.digest}, {format_size(size)}, {how}"
        return passed("image", detail)

    def read_range(self) -> Finding:
        """Ask for some bytes in the middle of a sector blob, as the first read of a sector does."""
        blob = max(self.blobs, key=lambda layer: layer.size)
        start = blob.size // 2
        length = min(_SAMPLE_BYTES, blob.size - start)
        started = time.monotonic()
        with self._repository.open_blob(blob, offset=start, length=length) as stream:
            count = stream.readinto(memoryview(bytearray(length)))
        milliseconds = (time.monotonic() - started) * 1000
        detail = f"{count} bytes of {blob.digest[:19]}… in {milliseconds:.0f} ms"
        return passed("range requests", detail)
