# SPDX-License-Identifier: Apache-2.0
"""One layer to pack, as a document that any engine can carry to another machine.

Owns the JSON of a task, and what it may say: references to credentials, never a secret. Knows
nothing of engines. Invariant: a task is packed by the version of firstread that wrote it, with the
same zstd library, so that everybody gets the same bytes; any other refuses it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

import msgspec

from firstread import __version__
from firstread.convert.job import LayerJob
from firstread.convert.record import ENCODER, Parameters, layer_key
from firstread.errors import NodeError, UsageError
from firstread.oci.model import Descriptor, encode
from firstread.oci.reference import Reference, parse_reference
from firstread.oci.untrusted import Digest
from firstread.registry.access import Access
from firstread.registry.options import AccessOptions
from firstread.structs import completed

SECRET = "secret:"  # noqa: S105 - what the name of a secret begins with
SECRETS_DIR = "FIRSTREAD_SECRETS_DIR"  # environment of a worker
DEFAULT_SECRETS_DIR = "/run/secrets"
DOCKER_CONFIGS = (".dockerconfigjson", "config.json")  # of a Kubernetes Secret; of docker
MAX_TASK_SIZE = 64 * 1024  # characters; a descriptor with its URLs has some hundreds

_SECRET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")
_Count = Annotated[int, msgspec.Meta(ge=1, le=1024)]


class LayerTask(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A layer to pack. docs/cluster.md describes the document.

    Args:
        version: of the firstread that wrote it.
        source: reference of an image that has `layer`.
        destination: reference; takes the sector blob.
        layer: descriptor in the source.
        diff_id: digest of its uncompressed content.
        parameters: of the packing.
        jobs: sectors compressed at a time.
        in_flight: sectors in memory at a time, besides the two being filled.
        reuse: take the layer from the destination if somebody packed it before.
        alone: share the result with no other repository.
        retries: of each request to a registry.
        source_access: how its registry is reached.
        destination_access: likewise.
        credentials: a reference to a docker config file, see `credentials_file`; None for the
            worker's own configuration.
    """

    version: str = __version__
    source: str
    destination: str
    layer: Descriptor
    diff_id: Digest
    parameters: Parameters
    jobs: _Count = 1
    in_flight: _Count = 2
    reuse: bool = True
    alone: bool = False
    retries: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 5
    source_access: Access = Access()
    destination_access: Access = Access()
    credentials: str | None = None

    @classmethod
    def of(cls, job: LayerJob, *, alone: bool = False) -> LayerTask:
        """Return the task of a job. Credentials that only this process has stay here."""
        return cls(
            source=str(job.source.absolute()),
            destination=str(job.destination.absolute()),
            layer=msgspec.structs.replace(job.layer, annotations=None),
            diff_id=job.diff_id,
            parameters=job.parameters,
            jobs=job.jobs,
            in_flight=job.in_flight,
            reuse=job.reuse,
            alone=alone,
            retries=job.destination_options.retries,
            source_access=Access.of(job.source_options),
            destination_access=Access.of(job.destination_options),
            credentials=job.destination_options.worker_credentials,
        )

    @classmethod
    def decode(cls, text: str | bytes) -> LayerTask:
        """Return the task in a document.

        Raises:
            UsageError: it is none, or longer than `MAX_TASK_SIZE`.
            NodeError: it is for another version of firstread, or another zstd library.
        """
        if len(text) > MAX_TASK_SIZE:
            raise UsageError(f"the task is longer than {MAX_TASK_SIZE} characters")
        try:
            stated = msgspec.json.decode(text, type=completed(_Stated)).version
            if stated != __version__:
                raise _other("firstread", __version__, stated)
            task = msgspec.json.decode(text, type=completed(cls))
        except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
            raise UsageError(
                f"this is not the task of a layer: {exc}", hint="docs/cluster.md describes it"
            ) from exc
        if task.parameters.encoder != ENCODER:
            raise _other("the library", ENCODER, task.parameters.encoder)
        return task

    def encode(self) -> str:
        """Return the document; of equal tasks equal ones."""
        return encode(self).decode()

    @property
    def key(self) -> str:
        """What names this work among all tasks: the packed layer, and who can have the result."""
        to = parse_reference(self.destination)
        place = f"{to.host}/{to.repository}" if self.alone or not to.host else to.host
        return f"{layer_key(self.diff_id, self.parameters)}-{place or to.path}"

    def job(self) -> LayerJob:
        """Return the work, with the credentials that this machine has.

        Raises:
            UsageError: a reference is not one.
        """
        return LayerJob(
            source=parse_reference(self.source),
            source_options=self._options(self.source_access),
            destination=parse_reference(self.destination),
            destination_options=self._options(self.destination_access),
            layer=self.layer,
            diff_id=self.diff_id,
            parameters=self.parameters,
            jobs=self.jobs,
            in_flight=self.in_flight,
            reuse=self.reuse,
        )

    def _options(self, access: Access) -> AccessOptions:
        directory = os.environ.get("FIRSTREAD_CREDENTIALS_DIR")
        options = AccessOptions(
            mirrors=False,
            retries=self.retries,
            credentials_dir=Path(directory) if directory else None,
        )
        file = credentials_file(self.credentials) if self.credentials else None
        return access.options(options, auth_file=file)


class _Stated(msgspec.Struct):
    """What every version of a task says."""

    version: str


def _other(what: str, ours: str, wanted: str) -> NodeError:
    return NodeError(
        f"{what} is {ours} here, the task is for {wanted}",
        hint="install the same version of firstread and of its libraries on all workers",
    )


def check_credentials(reference: str) -> None:
    """Check what names credentials on another machine.

    Raises:
        UsageError: it is neither ``secret:NAME`` nor an absolute path.
    """
    name = reference.removeprefix(SECRET)
    if not (_SECRET_NAME.fullmatch(name) if name != reference else reference.startswith("/")):
        raise UsageError(
            f"{reference!r} names no credentials of a worker",
            hint=f"write {SECRET}NAME, or the absolute path of a docker config file there",
        )


def credentials_file(reference: str) -> Path:
    """Return the docker config file on this machine that a reference names.

    Args:
        reference: ``secret:NAME`` for a file or directory below ``FIRSTREAD_SECRETS_DIR``, where
            Kubernetes or docker put the secret; or an absolute path.

    Raises:
        UsageError: it is neither.
    """
    check_credentials(reference)
    if not reference.startswith(SECRET):
        return Path(reference)
    directory = os.environ.get(SECRETS_DIR) or DEFAULT_SECRETS_DIR
    path = Path(directory, reference.removeprefix(SECRET))
    return next((path / name for name in DOCKER_CONFIGS if (path / name).is_file()), path)


def repository_name(reference: Reference) -> str:
    """Return what names the repository of a reference: without tag and digest."""
    if reference.transport == "docker":
        return f"{reference.host}/{reference.repository}"
    return f"{reference.transport}:{os.path.abspath(reference.path)}"
