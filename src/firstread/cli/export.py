# SPDX-License-Identifier: Apache-2.0
"""``firstread export``: a converted image as one file, as a tar archive, or over NBD."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from firstread.cli.options import REFERENCE, PlaceType, SecondsType, access_options, json_option
from firstread.cli.output import check_output, complain, report, show, writing
from firstread.errors import UsageError, from_os_error
from firstread.units import MiB, counted, format_size
from firstread.wholefile import whole_file

if TYPE_CHECKING:
    from firstread.oci.reference import Reference
    from firstread.oci.repository import Repository
    from firstread.registry.options import AccessOptions
    from firstread.sectors.image import BlockImage
    from firstread.sectors.sectorstore import SectorStore

_FILE = click.Path(path_type=Path, dir_okay=False)
_FILE_OR_PIPE = click.Path(path_type=Path, dir_okay=False, allow_dash=True)
_DIRECTORY = click.Path(path_type=Path, file_okay=False, exists=True)


@click.command()
@click.argument("reference", metavar="REF", type=REFERENCE)
@click.option("--raw", metavar="FILE", type=_FILE, help="Write one file that mounts as EROFS.")
@click.option(
    "--tar", metavar="FILE|-", type=_FILE_OR_PIPE, help="Write a tar archive of the whole tree."
)
@click.option(
    "--nbd",
    metavar="unix:PATH|tcp:HOST:PORT",
    help="Serve the file of --raw over NBD, in the foreground; fetch what clients read.",
)
@click.option(
    "--tls-dir",
    type=_DIRECTORY,
    help="Certificates for --nbd, as for qemu: ca-cert.pem, server-cert.pem, server-key.pem."
    " Clients need one of the same authority. Required beyond this machine.",
)
@click.option(
    "--root",
    type=PlaceType(),
    help="Keep the sectors of --nbd there, as a node does; no daemon may run there."
    "  [default: a temporary directory]",
)
@click.option(
    "--stall",
    "stall_s",
    type=SecondsType(),
    default=300.0,
    show_default=True,
    help="Seconds that a read over NBD waits for a failing registry before it fails.",
)
@access_options
@json_option
def command(
    reference: Reference,
    raw: Path | None,
    tar: Path | None,
    nbd: str | None,
    tls_dir: Path | None,
    root: Path | None,
    stall_s: float,
    access: AccessOptions,
    as_json: bool,
) -> None:
    """Hand the converted image REF to programs that know no OCI images.

    --raw and --tar verify all of the image and leave no partial file. --tar - writes to stdout.
    --nbd serves virtual machines and NBD clients, read-only, until SIGTERM.
    """
    from firstread.cli.opening import opened_image

    if sum(form is not None for form in (raw, tar, nbd)) != 1:
        raise UsageError("say what to make of the image", hint="give one of --raw, --tar, --nbd")
    if nbd is None and (tls_dir or root):
        raise UsageError("--tls-dir and --root belong to --nbd")
    if str(raw) == "-":
        raise UsageError("a sparse file cannot go to stdout", hint="name a file, or use --tar -")
    if str(tar) == "-" and as_json:
        raise UsageError("the archive and --json cannot both go to stdout")
    for file in (raw, tar):
        if file is not None and str(file) != "-":
            check_output(file)
    from firstread.signals import unwinding_on_signals

    with (
        unwinding_on_signals(threads=True),
        opened_image(reference, access) as (repository, resolved, image),
    ):
        shown = _Shown(str(reference), resolved.descriptor.digest, as_json=as_json)
        if raw is not None:
            _raw(repository, image, raw, shown)
        elif tar is not None:
            _tar(repository, image, tar, shown)
        elif nbd is not None:
            with _store(root) as store:
                _nbd(repository, image, store, nbd, tls_dir, stall_s, shown)


class _Shown:
    """Tells what was exported."""

    def __init__(self, reference: str, digest: str, *, as_json: bool) -> None:
        self.reference, self._digest, self._as_json = reference, digest, as_json

    def __call__(
        self, form: str, targets: list[str], size: int, line: str, sockets: int = 0
    ) -> None:
        if self._as_json:
            from firstread.cli.shown import ImageExported

            show(ImageExported(self.reference, self._digest, form, targets, size, sockets))
        else:
            left_out = [f"  left out  {counted(sockets, 'socket')}"] if sockets else []
            report([line, *left_out])
            sys.stdout.flush()


def _raw(repository: Repository, image: BlockImage, path: Path, shown: _Shown) -> None:
    from firstread.export.rawfile import write_raw

    with _naming(path):
        size = write_raw(repository, image, path)
    shown("raw", [str(path)], size, f"{path}: {format_size(size)} from {shown.reference}")


def _tar(repository: Repository, image: BlockImage, path: Path, shown: _Shown) -> None:
    from firstread.erofs.reader import read_tree
    from firstread.export.tarexport import write_tar
    from firstread.sectors.content import ContentReader

    # Hot sectors are out of order, and names near each other read them again and again.
    content = ContentReader.of(repository, image, 256 * MiB)
    tree = read_tree(image.erofs)
    if str(path) == "-":
        out, sockets = sys.stdout.buffer, 0
        with writing():
            _, sockets = write_tar(tree, content, out)
            out.flush()
        if sockets:
            complain([f"left out {counted(sockets, 'socket')}: a tar archive has none"])
        return
    with _naming(path), whole_file(path) as out:
        names, sockets = write_tar(tree, content, out)
        size = out.tell() if out.seekable() else 0
    line = f"{path}: {counted(names, 'name')} from {shown.reference}"
    shown("tar", [str(path)], size, line, sockets)


def _nbd(
    repository: Repository,
    image: BlockImage,
    store: SectorStore,
    address: str,
    tls_dir: Path | None,
    stall_s: float,
    shown: _Shown,
) -> None:
    from firstread.daemon.logs import configure_logging
    from firstread.export.nbdaddress import parse_address
    from firstread.export.nbdserver import serve_image

    def ready(uris: list[str], size: int) -> None:
        shown("nbd", uris, size, f"serving {shown.reference} at {' '.join(uris)}")

    configure_logging("INFO")
    serve_image(
        repository,
        image,
        store,
        parse_address(address),
        tls_dir=tls_dir,
        stall_s=stall_s,
        on_ready=ready,
    )


@contextlib.contextmanager
def _store(root: Path | None) -> Iterator[SectorStore]:
    """Claim the sector store below `root`, or make one for as long as the block lasts."""
    from firstread.private import private_directory
    from firstread.sectors.sectorstore import SectorStore

    with contextlib.ExitStack() as stack:
        if root is None:
            place = os.environ.get("TMPDIR") or "/var/tmp"  # noqa: S108 - /tmp may be in memory
            made = tempfile.TemporaryDirectory(prefix="firstread-", dir=place)
            root = Path(stack.enter_context(made))
        private_directory(root)
        store = stack.enter_context(SectorStore(root, filesystems=None))
        store.claim()
        yield store


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file that was asked for in errors, not the one that takes its place."""
    try:
        yield
    except OSError as exc:
        exc.filename = str(path)
        raise from_os_error(exc, "cannot write") from exc
