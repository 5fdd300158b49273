# SPDX-License-Identifier: Apache-2.0
"""The documents that commands make themselves (docs/json.md): of images, containers, versions."""

from __future__ import annotations

from msgspec import UNSET, UnsetType

from firstread.documents import Bytes, Digest, Document, Moment, Seconds, SectorName


class MetadataShown(Document):
    """The metadata layer.

    digest, size: of the layer
    uncompressed_size: what a node maps into memory
    inodes: of the file system
    """

    digest: Digest
    size: Bytes
    uncompressed_size: Bytes
    inodes: int


class BlobShown(Document):
    """A sector blob.

    digest, size: of the blob
    source_diff_id: the source's layer that it holds
    sectors: in it that the tree refers to
    hot: of hot sectors: what they were made from ([format.md](format.md#hot-sectors))
    """

    digest: Digest
    size: Bytes
    source_diff_id: Digest | None
    sectors: int
    hot: str | None


class SectorShown(Document):
    """A sector.

    id: its name
    blob: index in `blobs`
    offset, length: where in the blob, compressed
    size: uncompressed
    files: with `--files`: paths that have data in it
    """

    id: SectorName
    blob: int
    offset: Bytes
    length: Bytes
    size: Bytes
    files: list[str] | UnsetType = UNSET


class ImageShown(Document):
    """What ``firstread inspect`` shows.

    reference: of the image
    digest: of its manifest
    source_digest: of the manifest that it was made from
    parameters: what it was converted with ([format.md](format.md))
    sector_size, frame_size: at most, uncompressed
    size: all layers
    uncompressed_size: all sectors
    blobs: the sector blobs
    sectors: in the order of the device slots
    """

    reference: str
    digest: Digest
    source_digest: Digest | None
    parameters: str | None
    sector_size: Bytes
    frame_size: Bytes
    size: Bytes
    uncompressed_size: Bytes
    metadata: MetadataShown
    blobs: list[BlobShown]
    sectors: list[SectorShown]


class ImageVerified(Document):
    """What ``firstread verify`` checked.

    reference: of the image
    digest: of its manifest
    source: reference of the image that its tree was compared with, and equals
    blobs, sectors, frames: what was read and checked
    bytes: uncompressed
    seconds: wall-clock time
    """

    reference: str
    digest: Digest
    source: str | None
    blobs: int
    sectors: int
    frames: int
    bytes: Bytes
    seconds: Seconds


class LeftOutShown(Document):
    """How many names lack what gives rights; all 0 with `--privileged`.

    devices: device nodes that were not made
    set_ids, capabilities: programs without their set-id bits, without their capabilities
    """

    devices: int
    set_ids: int
    capabilities: int


class ImageExtracted(Document):
    """What ``firstread extract`` wrote.

    reference: of the image
    digest: of its manifest
    directory: as given
    names: written, the top directory included
    left_out: how many names lack what gives rights, all 0 with `--privileged`
    """

    reference: str
    digest: Digest
    directory: str
    names: int
    left_out: LeftOutShown


class ImageExported(Document):
    """What ``firstread export`` wrote, or serves.

    reference: of the image
    digest: of its manifest
    form: `raw`, `tar` or `nbd`
    targets: the file as given, or addresses in the form of NBD clients
    size: of the file or the disk
    sockets: names that a tar archive cannot hold, and so lacks
    """

    reference: str
    digest: Digest
    form: str
    targets: list[str]
    size: Bytes
    sockets: int


class ContainerShown(Document):
    """A container.

    id: 64 hexadecimal digits
    name: of its own
    image: reference, as it was given to `run`
    command: empty while the image is on its way
    created: when `run` began
    started, finished: null before
    status: `created`, `running`, `exited` or `dead` ([run.md](run.md#ps-logs-stop-rm))
    exit_code: once it has exited
    pid: of its first process, once it was started
    labels: of the image and of `--label`
    """

    id: str
    name: str
    image: str
    command: list[str]
    created: Moment
    started: Moment | None
    finished: Moment | None
    status: str
    exit_code: int | None
    pid: int | None
    labels: dict[str, str]


class ContainersShown(Document):
    """What ``firstread ps`` lists.

    containers: the latest first; with `-a` those that ended, too
    """

    containers: list[ContainerShown]


class DaemonVersion(Document):
    """The daemon that runs.

    version, pid: of its supervisor
    """

    version: str
    pid: int


class Versions(Document):
    """What ``firstread version`` shows.

    version: of this command
    daemon: null if none runs, or if it does not answer
    kernel, machine: as uname(2) has them
    python: its version
    """

    version: str
    daemon: DaemonVersion | None
    kernel: str
    machine: str
    python: str


class CheckShown(Document):
    """A check of a node.

    name: what was looked at; unique
    ok: it is not `fail`
    detail: what was seen
    fix: what helps
    warning: it is `warn`
    status: `ok`; `warn`: it works, but may not for long; `fail`
    """

    name: str
    ok: bool
    detail: str
    fix: str | None
    warning: bool
    status: str


class NodeChecked(Document):
    """What ``firstread doctor`` found.

    root: where it was tried
    device: that a daemon would choose, such as `fanotify`
    checks: first one for each device (without root one, `user`); then
        configuration, store, limits, daemon, clock, runtime; `snapshotter` and `containerd` where a
        snapshotter was started; with a reference the image's, up to the one that failed
    """

    root: str
    device: str | None
    checks: list[CheckShown]
