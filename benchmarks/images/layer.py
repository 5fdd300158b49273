# SPDX-License-Identifier: Apache-2.0
"""From the upper directory of an overlay mount to a gzip layer blob.

Owns the translation of overlayfs's marks to those of the OCI image specification ("Layer
Filesystem Changeset": ``.wh.`` files and ``.wh..wh..opq``). Invariant: a blob in the directory is
complete and named by its digest.

The compressor is gzip(1) at level 6, the level of ``docker build`` and ``docker push``.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import subprocess
import tarfile
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Buffer

MIB = 1 << 20
GZIP = ("nice", "-n", "10", "gzip", "-6", "--no-name")
# Marks of the overlay mount and of the host's security modules are no part of a layer.
HOST_XATTRS = ("trusted.", "security.selinux", "security.ima", "security.evm")


@dataclass(frozen=True)
class LayerBlob:
    """A written layer.

    Args:
        digest: of the compressed blob.
        diff_id: digest of the tar archive in it.
        size: compressed bytes.
        tar_size: bytes of the tar archive.
        files: entries that are neither directories nor whiteouts.
    """

    digest: str
    diff_id: str
    size: int
    tar_size: int
    files: int

    def to_dict(self) -> dict[str, str | int]:
        return asdict(self)


class _Sink(io.BufferedIOBase):
    """Takes the tar stream: counts, hashes and forwards it."""

    def __init__(self, output: IO[bytes]) -> None:
        self.output = output
        super().__init__()
        self.digest = hashlib.sha256()
        self.size = 0

    def write(self, data: Buffer, /) -> int:
        view = memoryview(data)
        self.digest.update(view)
        self.size += view.nbytes
        return self.output.write(view)


def write_layer(upper: Path, blobs: Path) -> LayerBlob:
    """Write the content of `upper` as a gzip layer into the directory `blobs`.

    Args:
        upper: upper directory of an overlay without writers.
        blobs: ``blobs/sha256`` of an OCI layout.

    Raises:
        OSError: a file cannot be read or written.
        subprocess.CalledProcessError: gzip failed.
    """
    with tempfile.NamedTemporaryFile(dir=blobs, delete=False) as blob:
        with subprocess.Popen(GZIP, stdin=subprocess.PIPE, stdout=blob) as gzip:
            assert gzip.stdin is not None
            sink = _Sink(gzip.stdin)
            files = _write_tar(upper, sink)
            gzip.stdin.close()
        if gzip.returncode:
            raise subprocess.CalledProcessError(gzip.returncode, GZIP)
    with open(blob.name, "rb") as compressed:
        digest = hashlib.file_digest(compressed, "sha256").hexdigest()
        size = os.fstat(compressed.fileno()).st_size
    os.chmod(blob.name, 0o644)
    os.rename(blob.name, blobs / digest)
    return LayerBlob(
        f"sha256:{digest}", f"sha256:{sink.digest.hexdigest()}", size, sink.size, files
    )


def _write_tar(upper: Path, sink: _Sink) -> int:
    """Write the archive; return the number of entries that are neither directory nor mark."""
    files = 0
    with tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT, bufsize=MIB) as tar:
        for name in _walk(upper):
            path = upper / name
            status = path.lstat()
            if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
                folder, base = os.path.split(name)
                tar.addfile(tarfile.TarInfo(os.path.join(folder, f".wh.{base}")))
                continue
            info = tar.gettarinfo(str(path), name)
            if info is None:  # a socket: tar has no entry for it
                continue
            _normalize(info, path)
            if info.isreg():
                with path.open("rb") as data:
                    tar.addfile(info, data)
            else:
                tar.addfile(info)
            files += not info.isdir()
            if info.isdir() and _xattrs(path).get("trusted.overlay.opaque") == b"y":
                tar.addfile(tarfile.TarInfo(f"{name}/.wh..wh..opq"))
    return files


def _walk(upper: Path) -> Iterator[str]:
    """Yield the paths below `upper`, parents first, in order of their names."""
    stack = sorted(os.listdir(upper), reverse=True)
    while stack:
        name = stack.pop()
        yield name
        path = os.path.join(upper, name)
        if os.path.isdir(path) and not os.path.islink(path):
            stack += sorted((f"{name}/{child}" for child in os.listdir(path)), reverse=True)


def _normalize(info: tarfile.TarInfo, path: Path) -> None:
    """Make the entry as docker writes it: whole seconds, numeric owners, xattrs."""
    info.mtime = int(info.mtime)
    info.uname = info.gname = ""
    info.pax_headers = {
        f"SCHILY.xattr.{key}": value.decode("utf-8", "surrogateescape")
        for key, value in _xattrs(path).items()
        if not key.startswith(HOST_XATTRS)
    }


def _xattrs(path: Path) -> dict[str, bytes]:
    keys = os.listxattr(path, follow_symlinks=False)
    return {key: os.getxattr(path, key, follow_symlinks=False) for key in keys}
