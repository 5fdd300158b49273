# SPDX-License-Identifier: Apache-2.0
"""Compares a converted image with its source: names, attributes, links and content.

Owns the fingerprints of both trees, which it keeps in ``Node.target`` of each file, and what counts
as a difference. `blobcheck` checks digests.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from firstread.convert.blobcheck import BlobCheck
from firstread.convert.entry import TarEntry, TarKind
from firstread.convert.fingerprint import Fingerprint, chunks_of
from firstread.convert.layers import LayerMerger
from firstread.convert.pack import entry_record
from firstread.convert.record import Entry, LayerRecord, encode_entries
from firstread.convert.stream import Feed, decompress
from firstread.convert.tar import TarReader
from firstread.erofs.tree import HOLE, Node, split_address, walk
from firstread.errors import FirstreadError
from firstread.oci.model import Descriptor
from firstread.oci.repository import Repository
from firstread.printable import printable
from firstread.sectors.content import ContentReader


def fingerprint_image(
    root: Node, check: BlobCheck, content: ContentReader, piece_size: int
) -> None:
    """Put the fingerprint of each regular file of a converted image into its `target`.

    Args:
        root: of the image.
        check: has read all blobs.
        content: reads sparse files, whose chunks can be smaller than a piece.
        piece_size: bytes of a sector.
    """
    for _, node in walk(root):
        if not node.is_file or node.target:
            continue
        seal = Fingerprint(node.size, piece_size)
        if node.chunk_size == piece_size or len(node.chunks) == 1:
            for number, (length, address) in enumerate(chunks_of(node)):
                if address != HOLE and (digest := check.digests[split_address(address), length]):
                    seal.piece(number, digest)
        else:
            for offset, data in content.data(node):
                seal.data(offset, data)
        node.target = seal.digest()


def source_tree(
    repository: Repository, layers: Iterable[tuple[Descriptor, str]], piece_size: int
) -> Node:
    """Return the tree of an ordinary image, with each file's fingerprint as its `target`.

    Args:
        repository: where the image is.
        layers: (descriptor, diff_id), lowest first.
        piece_size: bytes of a piece of the fingerprints.

    Raises:
        FirstreadError: the image cannot be read; names the layer.
    """
    merger = LayerMerger()
    for descriptor, diff_id in layers:
        try:
            with repository.open_blob(descriptor) as stream:
                feed = Feed(decompress(stream, descriptor.media_type))
                reader = TarReader(feed)
                batches = encode_entries(_fingerprinted(tar, reader, piece_size) for tar in reader)
                feed.drain()  # reading to the end verifies the digest
            merger.apply(LayerRecord(diff_id, "", [], batches))
        except FirstreadError as exc:
            exc.layer = descriptor.digest
            raise
    return merger.root


def _fingerprinted(tar: TarEntry, reader: TarReader, piece_size: int) -> Entry:
    entry = entry_record(tar)
    if tar.kind is TarKind.REGULAR:
        seal = Fingerprint(tar.size, piece_size)
        for offset, view in reader.data(tar):
            seal.data(offset, view)
        entry.link = seal.digest()
    return entry


def differences(source: Node, result: Node) -> Iterator[str]:
    """Yield a line for each name that differs between two fingerprinted trees, and say how.

    Names that share an inode in one tree must share one in the other.
    """
    left, right = dict(walk(source)), dict(walk(result))
    there: dict[int, Node] = {}  # id() of a node of the source -> its node in the result
    back: dict[int, Node] = {}  # and back
    for path in sorted(left.keys() | right.keys()):
        name = "/" + printable(path)
        if path not in right:
            yield f"{name}: missing in the converted image"
        elif path not in left:
            yield f"{name}: not in the source"
        else:
            a, b = left[path], right[path]
            if there.setdefault(id(a), b) is not b:
                yield f"{name}: not the hard link that it is in the source"
            elif back.setdefault(id(b), a) is not a:
                yield f"{name}: a hard link that it is not in the source"
            yield from (
                f"{name}: {_shown(field, b)}, in the source {_shown(field, a)}"
                for field in _COMPARED
                if getattr(a, field) != getattr(b, field)
            )


_COMPARED = ("mode", "uid", "gid", "mtime", "mtime_nsec", "rdev", "size", "xattrs", "target")


def _shown(field: str, node: Node) -> str:
    value = getattr(node, field)
    if field == "mode":
        return f"mode {value:o}"
    if field == "target":
        return f"content {value.hex()[:12]}" if node.is_file else f"target {value!r}"
    return f"xattrs {dict(value)!r}" if field == "xattrs" else f"{field} {value}"
