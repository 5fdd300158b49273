# SPDX-License-Identifier: Apache-2.0
"""One layer, one function: `convert_layer` of a job.

`firstread.convert.layertask` carries a job to another machine. Invariant: the function touches only
the job's source and destination, and a temporary file without a name.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from firstread.convert.blobwriter import PackedLayer
from firstread.convert.pack import pack_layer
from firstread.convert.record import Parameters
from firstread.errors import FirstreadError, NodeError, from_os_error
from firstread.layouts.ingest import open_scratch
from firstread.oci.model import Descriptor
from firstread.oci.reference import Reference
from firstread.oci.repository import Destination, Repository, naming
from firstread.registry.options import AccessOptions
from firstread.sectors.format import SECTORS_MEDIA_TYPE


@dataclass(frozen=True)
class LayerJob:
    """Everything needed to convert one layer.

    Args:
        source: the image that has `layer`.
        destination: takes the sector blob.
        layer: descriptor in the source.
        diff_id: digest of its uncompressed content.
        parameters: see `Parameters`.
        jobs: sectors compressed at a time.
        in_flight: sectors in memory at a time.
        reuse: elsewhere, take the layer from the destination if somebody packed it before.
    """

    source: Reference
    source_options: AccessOptions
    destination: Reference
    destination_options: AccessOptions
    layer: Descriptor
    diff_id: str
    parameters: Parameters
    jobs: int
    in_flight: int
    reuse: bool = True


def convert_layer(
    job: LayerJob,
    source: Repository,
    destination: Destination,
    on_read: Callable[[int], None] | None = None,
    on_sent: Callable[[int], None] | None = None,
) -> tuple[PackedLayer, bool]:
    """Pack one layer and put its sector blob into the destination.

    Args:
        job: names the layer, its source and its destination.
        source: opened.
        destination: opened for writing.
        on_read: called with the compressed bytes of each step; its exceptions end the work.
        on_sent: called with the bytes of the sector blob sent so far; likewise.

    Returns:
        The packed layer, and whether its blob is new to the destination.

    Raises:
        FirstreadError: names the layer.
    """
    try:
        return _convert(job, source, destination, on_read, on_sent)
    except FirstreadError as exc:
        exc.about(layer=job.layer.digest)
        raise
    except OSError as exc:
        if destination.scratch_dir is None:
            error = temporary_file_error(exc)
        else:
            exc.filename = None  # the image's name says where
            error = from_os_error(exc, "cannot write a blob").about(image=str(job.destination))
        raise error.about(layer=job.layer.digest) from exc


def _convert(
    job: LayerJob,
    source: Repository,
    destination: Destination,
    on_read: Callable[[int], None] | None,
    on_sent: Callable[[int], None] | None,
) -> tuple[PackedLayer, bool]:
    with open_scratch(destination.scratch_dir) as blob:
        with source.open_blob(job.layer) as stream:
            packed = pack_layer(
                _counted(stream, on_read),
                job.layer.media_type,
                job.diff_id,
                job.parameters,
                blob,
                jobs=job.jobs,
                in_flight=job.in_flight,
            )
        blob.seek(0)
        return packed, destination.put_blob(
            blob_descriptor(packed), blob, on_progress=on_sent, verified=True
        )


def temporary_file_error(exc: OSError) -> NodeError:
    """Return the error for a temporary file; repositories map their own errors."""
    place = os.path.abspath(os.fsdecode(exc.filename)) if exc.filename else ""
    if place and not place.startswith(os.path.abspath(tempfile.gettempdir())):
        return from_os_error(exc, "cannot write to")  # beside a destination on a disk
    where = f" in {tempfile.tempdir}" if tempfile.tempdir else ""
    error = from_os_error(exc, f"cannot write a temporary file{where}")
    error.hint = "free some space, or name another directory in TMPDIR"
    return error


@contextlib.contextmanager
def naming_image(reference: Reference) -> Iterator[None]:
    """Make every error of the block name the image; an OSError is one of a temporary file."""
    with naming(reference):
        try:
            yield
        except OSError as exc:
            raise temporary_file_error(exc) from exc


def _counted(
    stream: Iterable[memoryview], on_read: Callable[[int], None] | None
) -> Iterator[memoryview]:
    for chunk in stream:
        if on_read is not None:
            on_read(len(chunk))
        yield chunk


def blob_descriptor(packed: PackedLayer) -> Descriptor:
    """Return the descriptor of the sector blob of a layer."""
    return Descriptor(media_type=SECTORS_MEDIA_TYPE, digest=packed.digest, size=packed.size)
