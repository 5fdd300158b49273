# SPDX-License-Identifier: Apache-2.0
"""Traces that travel with an image: OCI referrers of its manifest.

Owns the form of such an artifact (docs/traces.md), and the bounds on foreign ones. Invariant:
an artifact that is damaged, too large or of another version is left out with a warning, never an
error: whoever may push to the repository can attach anything.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable, Iterator
from typing import Final

import zstandard

from firstread.errors import ImageError, NotFoundError
from firstread.oci.model import (
    EMPTY,
    EMPTY_TYPE,
    MAX_MANIFEST_SIZE,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    describe,
    embedded,
    encode,
)
from firstread.oci.repository import Destination, Repository
from firstread.oci.resolve import document_of
from firstread.traces.tracefile import MAX_READS, Trace, read_trace, write_trace
from firstread.units import MiB

log = logging.getLogger("traces")

TRACE_TYPE: Final = "application/vnd.firstread.trace.v1+jsonl"
TRACE_LAYER: Final = f"{TRACE_TYPE}+zstd"
MAX_ATTACHED: Final = 16  # artifacts that are read for one manifest
MAX_BLOB_SIZE: Final = 16 * MiB  # of a compressed trace; a million reads have 6
MAX_WINDOW: Final = 8 * MiB  # of a foreign blob
_LEVEL = 9


def attach_trace(
    repository: Destination, subjects: Iterable[str], trace: Trace
) -> tuple[Descriptor, Descriptor]:
    """Attach a trace to the first of some manifests that the repository has.

    Args:
        repository: of the image.
        subjects: digests of manifests, the preferred one first.
        trace: to attach; the same one again changes nothing.

    Returns:
        the subject, and the artifact.

    Raises:
        FirstreadError: the repository has none of them, or does not take it.
    """
    subject = _present(repository, subjects)
    raw = io.BytesIO()
    write_trace(trace, raw)
    blob = zstandard.ZstdCompressor(level=_LEVEL).compress(raw.getvalue())
    layer, config = describe(blob, TRACE_LAYER), describe(EMPTY, EMPTY_TYPE)
    for descriptor, data in ((config, EMPTY), (layer, blob)):
        repository.put_blob(descriptor, io.BytesIO(data))
    manifest = Manifest(artifact_type=TRACE_TYPE, config=config, layers=[layer], subject=subject)
    return subject, repository.put_referrer(encode(manifest), OCI_MANIFEST)


def _present(repository: Repository, subjects: Iterable[str]) -> Descriptor:
    for digest in subjects:
        try:
            return repository.get_manifest(digest)[0]
        except NotFoundError:
            continue
    raise NotFoundError("the repository no longer has the image that was traced")


def traces_attached(repository: Repository, subject: Descriptor) -> list[Trace]:
    """Return the traces that are attached to a manifest, in order of their digests.

    Args:
        repository: where the manifest is.
        subject: of it; only the digest matters.

    Raises:
        SourceError: the repository does not answer.
    """
    try:
        listed = repository.referrers(subject.digest, TRACE_TYPE)
    except ImageError as exc:
        log.warning("%s: no attached trace is used: %s", subject.digest, exc)
        return []
    # A trace has no annotations, so an entry with some, but without a type, is something else.
    entries = {e.digest: e for e in listed if e.artifact_type or not e.annotations}
    if len(entries) > MAX_ATTACHED:
        log.warning("%s: %d of %d traces are used", subject.digest, MAX_ATTACHED, len(entries))
    return list(_read_each(repository, subject, [entries[d] for d in sorted(entries)]))


def _read_each(
    repository: Repository, subject: Descriptor, entries: list[Descriptor]
) -> Iterator[Trace]:
    left = MAX_READS  # of all together: whoever may push can attach them
    for entry in entries[:MAX_ATTACHED]:
        try:
            trace = _read(repository, entry, subject.digest)
        except (ImageError, NotFoundError) as exc:
            log.warning("%s: attached %s is not used: %s", subject.digest, entry.digest, exc)
            continue
        left -= len(trace.reads)
        if left < 0:
            log.warning(
                "%s: attached %s is not used, nor are those behind it: they have too many reads",
                subject.digest,
                entry.digest,
            )
            return
        yield trace


def _read(repository: Repository, entry: Descriptor, subject: str) -> Trace:
    if entry.size > MAX_MANIFEST_SIZE:
        raise ImageError(f"the manifest has {entry.size} bytes")
    data = embedded(entry) or repository.get_manifest(entry.digest)[1]
    manifest = document_of(entry, data)
    if not isinstance(manifest, Manifest) or len(manifest.layers) != 1:
        raise ImageError("it is not one trace")
    (layer,) = manifest.layers
    named = manifest.subject.digest if manifest.subject else "missing"
    if named != subject or layer.media_type != TRACE_LAYER:
        raise ImageError(f"its subject is {named}, its layer {layer.media_type}")
    return unpack_trace(repository.read_blob(layer, MAX_BLOB_SIZE))


def unpack_trace(blob: bytes) -> Trace:
    """Return the trace in the blob of an artifact.

    Raises:
        ImageError: it is damaged, or no trace that this version reads.
    """
    stream = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW).stream_reader(blob)
    try:
        with io.BufferedReader(stream) as lines:
            return read_trace(lines)
    except zstandard.ZstdError as exc:
        raise ImageError(f"the trace cannot be decompressed: {exc}") from exc
