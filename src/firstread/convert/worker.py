# SPDX-License-Identifier: Apache-2.0
"""What a worker of an engine does: a task in, the descriptor of the packed layer out.

Owns `run_task`, the one function that engines call, and the descriptor that it returns. The sector
blob, with the layer record at its end, goes from here to the destination; whoever merges layers
reads the record there. Invariant: only text crosses the engine, and no secret is in it.
"""

from __future__ import annotations

import logging
import socket
from dataclasses import dataclass

import msgspec

from firstread.convert.job import LayerJob, convert_layer
from firstread.convert.layertags import find_layer, is_packed, tag_layer
from firstread.convert.layertask import LayerTask, repository_name
from firstread.convert.recorded import described
from firstread.errors import FirstreadError, ImageError, NodeError, cut
from firstread.memory import keep_large_buffers
from firstread.oci.model import Descriptor, encode
from firstread.registry.open import open_destination, open_source
from firstread.sectors.image import HOW, REPOSITORY
from firstread.structs import completed

log = logging.getLogger("convert")

KNOWN, PACKED, UPLOADED = "known", "packed", "uploaded"


def run_task(text: str) -> str:
    """Pack a layer and put it into its destination, or find it there.

    Args:
        text: the document of a `LayerTask`.

    Returns:
        The descriptor of the sector blob, as JSON: what `Placed.of` reads.

    Raises:
        FirstreadError: names the layer, and this machine unless the image is at fault.
    """
    keep_large_buffers()
    try:
        task = LayerTask.decode(text)
        try:
            return encode(_run(task, task.job())).decode()
        except FirstreadError as exc:
            exc.about(layer=task.layer.digest)
            raise
    except FirstreadError as exc:
        # Without its traceback and causes, which may not survive the way back.
        raise _from_here(exc) from None


def shared(answer: str) -> str:
    """Return the answer of `run_task` for others who waited for the same task."""
    try:
        blob = msgspec.json.decode(answer, type=completed(Descriptor))
    except (msgspec.DecodeError, TypeError, UnicodeError, RecursionError):
        return answer  # `Placed.of` complains
    annotations = {**(blob.annotations or {}), HOW: KNOWN}
    return encode(msgspec.structs.replace(blob, annotations=annotations)).decode()


def _run(task: LayerTask, job: LayerJob) -> Descriptor:
    with open_destination(job.destination, job.destination_options) as destination:
        blob = find_layer(destination, job.diff_id, job.parameters) if job.reuse else None
        how = KNOWN
        if blob is None:
            with open_source(job.source, job.source_options) as source:
                packed, uploaded = convert_layer(job, source, destination)
            blob = described(packed, job.diff_id)
            how = UPLOADED if uploaded else PACKED
            tag_layer(destination, blob, job.diff_id, job.parameters)
    log.info("layer %s: %s", task.layer.digest, how)
    result = {**(blob.annotations or {}), HOW: how, REPOSITORY: repository_name(job.destination)}
    return msgspec.structs.replace(blob, annotations=result)


def _from_here(exc: FirstreadError) -> FirstreadError:
    error = exc.copy()
    if not isinstance(exc, ImageError):
        error.message = cut(f"on {socket.gethostname()}: {exc.message}", 4096)
    return error


@dataclass(frozen=True)
class Placed:
    """A packed layer in a repository.

    Args:
        blob: its sector blob, with the annotations of `described`.
        repository: that has it, as `repository_name` says it.
        how: `KNOWN`, `PACKED` or `UPLOADED`: found; packed, but the blob was there; packed and
            sent.
    """

    blob: Descriptor
    repository: str
    how: str

    @classmethod
    def of(cls, text: str, diff_id: str) -> Placed:
        """Return what `run_task` returned for the layer `diff_id`.

        Raises:
            NodeError: it is something else.
        """
        try:
            blob = msgspec.json.decode(text, type=completed(Descriptor))
            annotations = dict(blob.annotations or {})
            how, repository = annotations.pop(HOW), annotations.pop(REPOSITORY)
        except (msgspec.DecodeError, TypeError, KeyError, UnicodeError, RecursionError) as exc:
            raise _no_answer() from exc
        if how not in (KNOWN, PACKED, UPLOADED) or not is_packed(blob, diff_id):
            raise _no_answer()
        return cls(msgspec.structs.replace(blob, annotations=annotations), repository, how)


def _no_answer() -> NodeError:
    return NodeError("a worker's answer is not the descriptor of a packed layer")
