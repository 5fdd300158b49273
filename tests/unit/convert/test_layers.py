# SPDX-License-Identifier: Apache-2.0
"""Merging layers: a case for each rule, a model, and what umoci(1) makes of the same layers."""

from __future__ import annotations

import stat
import subprocess
import time
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstread.convert.layers import MAX_SYMLINKS, LayerMerger, is_whiteout
from firstread.convert.record import Entry, LayerRecord, PackedSector, encode_entries
from firstread.erofs.tree import HOLE, LinkCounts, Node, chunk_address, walk
from firstread.errors import ImageError, LimitError
from firstread.testing.entries import Format
from firstread.testing.features import feature_layers
from firstread.testing.images import Global, Image, Layer, Raw, Sparse, Symlink, write_layout
from firstread.testing.layerwords import Case, cases, merged
from firstread.testing.observe import observe
from firstread.testing.packed import pack
from firstread.units import MiB

DOCS = Path(__file__).parents[3] / "docs/layers.md"
KINDS = {
    "file": stat.S_IFREG,
    "dir": stat.S_IFDIR,
    "link": stat.S_IFLNK,
    "fifo": stat.S_IFIFO,
    "char": stat.S_IFCHR,
    "gone": stat.S_IFCHR,
    "hard": 0,
}


def entry(path: str, kind: str = "file", uid: int = 0, link: str = "") -> Entry:
    """An entry whose owner tells it from others of the same path."""
    mode = KINDS[kind] | 0o644 if kind != "hard" else 0
    rdev = (1, 3) if kind == "char" else (0, 0)
    return Entry(path.encode(), mode, uid, link=link.encode(), rdev=rdev)


def parse(line: str) -> Entry:
    """Return what a word means.

    ``dir/`` ``file=7`` (owner) ``name->target`` (symbolic link) ``name=>target`` (hard link)
    ``fifo|`` ``device%`` ``device0%0`` (of these numbers)
    """
    if "=>" in line:
        path, target = line.split("=>")
        return entry(path, "hard", link=target)
    if "->" in line:
        path, target = line.split("->")
        return entry(path, "link", link=target)
    path, _, uid = line.partition("=")
    kind = {"/": "dir", "|": "fifo", "%": "char", "0": "gone"}.get(path[-1], "file")
    return entry(path.rstrip("|%0"), kind, int(uid or 0))


def layer(entries: Iterable[Entry], sectors: int = 0) -> LayerRecord:
    some = [PackedSector(bytes(32), 4096, 0, 0)] * sectors
    return LayerRecord("sha256:" + "a" * 64, "", some, encode_entries(entries))


def merge(*layers: str) -> Node:
    merger = LayerMerger()
    for lines in layers:
        merger.apply(layer(map(parse, lines.split())))
    return merger.root


def shown(root: Node) -> str:
    """The tree as a line: ``name``, ``name=owner``, ``name->target``, a directory with a slash."""
    lines = []
    for path, node in walk(root):
        text = path.decode()
        if node.is_symlink:
            text += "->" + node.target.decode()
        elif node.is_dir:
            text += "/"
        if node.uid:
            text += f"={node.uid}"
        lines.append(text)
    return " ".join(lines[1:])


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        # a whiteout
        (["a b", ".wh.a"], "b"),
        (["d/ d/a d/b", "d/.wh.a"], "d/ d/b"),
        (["d/ d/a d/s/ d/s/b", ".wh.d"], ""),
        (["a", ".wh.a", "a=2"], "a=2"),
        (["a", ".wh.b"], "a"),
        (["a->b b", ".wh.a"], "b"),
        (["a b=>a", ".wh.a"], "b"),
        (["a b", "c0%0 a0%0"], "b"),  # as overlayfs stores it
        (["d/ d/x", ".wh.d", "d/y"], "d/ d/y"),
        # … is followed by something else of its name
        (["a=1", ".wh.a a=2"], "a=2"),
        (["d/=1 d/a", ".wh.d d/=2 d/b"], "d/=2 d/a d/b"),
        (["d/ d/a", ".wh.d d->e"], "d->e"),
        (["a b", ".wh.a b=>a"], ""),
        ([".wh.a a"], "a"),
        # … comes last: of the lowest layer it removes what is there
        (["a=1 .wh.a"], ""),
        # … which containerd refuses elsewhere: lower layers only are hidden
        (["a=1", "a=2 .wh.a"], "a=2"),
        (["d/=1 d/a", "d/=2 d/b .wh.d"], "d/=2 d/b"),
        (["d/=1 d/a d/s/=1 d/s/x", "d/s/y .wh.d"], "d/=1 d/s/=1 d/s/y"),
        (["d/=1 d/a d/s/=1 d/s/x", ".wh.d d/s/y"], "d/ d/s/ d/s/y"),
        (["", "a=2 .wh.a"], "a=2"),
        (["a x", "b=>a .wh.b"], "a b x"),
        (["a b=>a", "b=>a .wh.b .wh.a"], "b"),
        (["a", ".wh.a .wh.a"], ""),
        # an opaque directory
        (["d/=1 d/a d/s/ d/s/x", "d/.wh..wh..opq"], "d/=1"),
        (["d/ d/a", "d/=2 d/.wh..wh..opq d/b"], "d/=2 d/b"),
        (["d/ d/a", "d/b d/.wh..wh..opq"], "d/ d/b"),
        (["d/=1 d/a=1 d/s/=1 d/s/x", "d/a=2 d/s/y d/.wh..wh..opq"], "d/=1 d/a=2 d/s/=1 d/s/y"),
        (["d/=1 d/s/=1", "d/s/y d/.wh..wh..opq .wh.d d/z d/=2"], "d/=2 d/s/=1 d/s/y d/z"),
        (["a d/ d/x", ".wh..wh..opq b"], "a b d/ d/x"),  # the root never is
        (["d/ d/a d/.wh..wh..opq"], "d/ d/a"),
        (["d/ d/a", "d/.wh..wh..opq", "d/c"], "d/ d/c"),
        (["d/ d/a", ".wh.d d/ d/.wh..wh..opq d/b d/.wh..wh..opq"], "d/ d/b"),
        # the parents of either are made
        (["a", "no/.wh.b"], "a no/"),
        (["a", "no/.wh..wh..opq"], "a no/"),
        (["a", "a/.wh.b"], "a/"),
        (["a", "a/.wh..wh..opq"], "a/"),
        (["f l->f", "l/.wh.b"], "f l/"),
        (["d/=1 d/a l->d", "l/.wh.a"], "d/=1 d/a l/=1"),
        (["d/=1 d/a l->d", "l/.wh..wh..opq"], "d/=1 d/a l/=1"),
        # bookkeeping of aufs
        (["a", ".wh..wh.aufs .wh..wh.orph/ .wh..wh.plnk/"], "a"),
        (["d/", "d/.wh..wh.plnk"], "d/"),
        (["a", "no/.wh..wh.x n/o/.wh..wh.plnk/"], "a n/ n/o/ no/"),
        (["d/", ".wh..wh.plnk/ .wh..wh.plnk/1.2=3 d/a=>.wh..wh.plnk/1.2 b=>d/a"], "b=3 d/ d/a=3"),
        # whatever stands at a path gives way, but a directory to a directory
        (["a=1", "a=2"], "a=2"),
        (["a=1 a=2"], "a=2"),
        (["a", "a/ a/b"], "a/ a/b"),
        (["a/ a/b", "a=2"], "a=2"),
        (["a/=1 a/b", "a/=2"], "a/=2 a/b"),
        (["a/=1 a/b a/=2"], "a/=2 a/b"),
        (["a->b b/ b/c", "a/ a/x"], "a/ a/x b/ b/c"),
        (["a/ a/x", "a->b"], "a->b"),
        (["a->b b=1", "a=2"], "a=2 b=1"),
        # hard links
        (["a=1 b=>a"], "a=1 b=1"),
        (["a=1", "b=>a"], "a=1 b=1"),
        (["a=1 b=>a", "a=2"], "a=2 b=1"),
        (["a=1", "a=2 b=>a"], "a=2 b=2"),
        (["a=1 a=>a"], "a=1"),
        (["a->x b=>a"], "a->x b->x"),
        (["d/ d/a=1 l->d", "b=>l/a"], "b=1 d/ d/a=1 l->d"),
        # parents: through symbolic links of their own layer, made if missing
        (["x/y/a"], "x/ x/y/ x/y/a"),
        (["usr/lib/ lib->usr/lib lib/a"], "lib->usr/lib usr/ usr/lib/ usr/lib/a"),
        (["usr/lib/a lib->usr/lib lib/.wh.a"], "lib->usr/lib usr/ usr/lib/"),
        (["usr/lib/=1", "lib->usr/lib lib/a"], "lib->usr/lib usr/ usr/lib/=1 usr/lib/a"),
        (["usr/lib/a", "lib->usr/lib lib/.wh.a"], "lib->usr/lib usr/ usr/lib/"),
        (["lib->usr/lib lib/a"], "lib->usr/lib usr/ usr/lib/ usr/lib/a"),
        (["d/ d/l->../e e/ d/l/a"], "d/ d/l->../e e/ e/a"),
        (["d/ d/l->../../../e e/ d/l/a"], "d/ d/l->../../../e e/ e/a"),
        (["d/ d/l->/e e/ d/l/a"], "d/ d/l->/e e/ e/a"),
        (["a->b b->c c/ a/x"], "a->b b->c c/ c/x"),
        (["l->. l/l/a"], "a l->."),
        (["l->q/../r l/a"], "l->q/../r r/ r/a"),  # what ".." leaves again is not made
        (["l->/q/s/../../r/t l/a"], "l->/q/s/../../r/t r/ r/t/ r/t/a"),
        (["r/a", "l->q/../r l/.wh.a"], "l->q/../r r/"),
        (["x/a", "x/ x/b"], "x/ x/a x/b"),
        (["x/a x/=1 x/b"], "x/=1 x/a x/b"),
        (["d/ d/l->x/y d/l/a"], "d/ d/l->x/y d/x/ d/x/y/ d/x/y/a"),
        # … whatever lower layers have at their place, with the attributes that they show
        (["d/=1 d/s/=2 d/s/x", "d/s/y"], "d/=1 d/s/=2 d/s/x d/s/y"),
        (["a=1", "a/b"], "a/ a/b"),
        (["a|=1", "a/b"], "a/ a/b"),
        (["a%=1", "a/b"], "a/ a/b"),
        (["a->b", "a/b"], "a/ a/b"),
        (["a->b b=1", "a/b"], "a/ a/b b=1"),
        (["usr/lib/=1 usr/lib/x lib->usr/lib", "lib/a"], "lib/=1 lib/a usr/ usr/lib/=1 usr/lib/x"),
        (["u/q/=3 l->u", "l/q/x"], "l/ l/q/=3 l/q/x u/ u/q/=3"),
        (["u/=5 l->u", "u/=6", "l/a"], "l/=6 l/a u/=6"),
        (["l->/", "l/x"], "l/ l/x"),
        (["d/ d/x l->d", "l/=9"], "d/ d/x l/=9"),
        (["d/ d/x", "d->e d/y"], "d->e e/ e/y"),
        (["a", "a/b/c"], "a/ a/b/ a/b/c"),  # containerd refuses it
        (["a", ".wh.a", "a/b"], "a/ a/b"),
        # names
        (["/a ./b .//c//d ../e x/../f"], "a b c/ c/d e f"),
        (["../../d/../a"], "a"),
        (["d/ d/a/.=2"], "d/ d/a=2"),
        (["./", "/", "a"], "a"),
        # what makes the root anything else is ignored
        (["a", "."], "a"),
        (["a", "/=>."], "a"),
        (["a", "..->a b"], "a b"),
        (["a", "x/..|"], "a"),
    ],
)
def test_rule(layers: list[str], expected: str) -> None:
    assert shown(merge(*layers)) == expected


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["a a/b"], "entry 'a/b': a parent of it is not a directory"),
        (["b=>a"], "entry 'b': the target 'a' of the hard link does not exist"),
        (["a/ b=>a"], "entry 'b': the target 'a' of the hard link is a directory"),
        (["d/ d/a l->d", "b=>l"], None),  # a link to the symbolic link itself
        (["a->b b->a a/x"], "entry 'a/x': too many symbolic links on its path"),
        (["a->a", "a/x"], "too many symbolic links"),
        (["a->a", "a/.wh.x"], "too many symbolic links"),
        (["a", ".wh."], "the whiteout names no file"),
        (["a", ".wh.."], "the whiteout names no file"),
        (["a", ".wh..."], "the whiteout names no file"),
    ],
)
def test_layers_that_cannot_be_applied(layers: list[str], message: str | None) -> None:
    if message is None:
        merge(*layers)
        return
    with pytest.raises(ImageError) as caught:
        merge(*layers)
    assert message in caught.value.message
    assert caught.value.layer == "sha256:" + "a" * 64


@pytest.mark.parametrize("case", cases(DOCS), ids=lambda case: case.layers)
def test_the_docs_say_what_is_shown(case: Case) -> None:
    if case.ours is None:
        with pytest.raises(ImageError):
            merged(case.layers.split(" ; "))
    else:
        assert merged(case.layers.split(" ; ")) == case.ours


def test_hard_links_are_one_node() -> None:
    root = merge("a=1", "b=>a", "c=>b", "a=2")
    children = root.children or {}
    assert children[b"b"] is children[b"c"]
    assert children[b"a"] is not children[b"b"]


def test_symbolic_links_have_the_permissions_of_all() -> None:
    children = merge("a->b", "c").children or {}
    assert children[b"a"].mode == stat.S_IFLNK | 0o777
    assert children[b"c"].mode == stat.S_IFREG | 0o644


def test_the_root_has_the_attributes_of_its_last_entry() -> None:
    assert merge("./=5 a", "b").uid == 5
    assert merge("./=5 a", "./=6").uid == 6
    root = merge("a")
    assert (root.mode, root.uid, root.mtime) == (stat.S_IFDIR | 0o755, 0, 0)


def test_chains_of_symbolic_links() -> None:
    links = " ".join(f"l{n}->l{n + 1}" for n in range(MAX_SYMLINKS - 1))
    assert "d/x" in shown(merge(f"{links} l{MAX_SYMLINKS - 1}->d d/ l0/x"))
    with pytest.raises(ImageError, match="too many symbolic links"):
        merge(f"{links} l{MAX_SYMLINKS - 1}->l l->d d/ l0/x")


def test_chunks_count_sectors_over_all_layers() -> None:
    def file(name: bytes, *chunks: int) -> Entry:
        packed = b"".join(chunk.to_bytes(8, "little") for chunk in chunks)
        size = 4096 * len(chunks)
        return Entry(name, stat.S_IFREG, size=size, chunk_size=4096, chunks=packed)

    merger = LayerMerger()
    merger.apply(layer([file(b"a", chunk_address(1, 7))], sectors=2))
    merger.apply(layer([], sectors=3))
    merger.apply(layer([file(b"b", chunk_address(0, 1), HOLE, chunk_address(3, 2))], sectors=4))
    children = merger.root.children or {}
    assert list(children[b"a"].chunks) == [chunk_address(1, 7)]
    assert list(children[b"b"].chunks) == [chunk_address(5, 1), HOLE, chunk_address(8, 2)]
    for bad in (chunk_address(4, 0), HOLE - 1):
        with pytest.raises(ImageError, match="in no sector"):
            LayerMerger().apply(layer([file(b"c", bad)], sectors=4))


@pytest.mark.parametrize(
    ("mode", "size", "chunk_size", "length", "words"),
    [
        (stat.S_IFREG, 1, 4096, 7, "not as many as its chunks"),
        (stat.S_IFREG, 4097, 4096, 8, "not as many as its chunks"),
        (stat.S_IFREG, 0, 4096, 8, "not as many as its chunks"),
        (stat.S_IFREG, 0, 0, 16, "chunk"),
        (stat.S_IFDIR, 4096, 4096, 8, "no regular file"),
        (stat.S_IFLNK, 4096, 4096, 8, "no regular file"),
    ],
)
def test_a_record_with_wrong_chunks_is_refused(
    mode: int, size: int, chunk_size: int, length: int, words: str
) -> None:
    """It can come from a registry, and would become metadata that no node mounts."""
    entry = Entry(b"d", mode, size=size, chunk_size=chunk_size, chunks=bytes(length))
    with pytest.raises(ImageError, match=words):
        LayerMerger().apply(layer([entry], sectors=4))


# -- any layers: tests/privileged/test_layer_trees.py compares them with containerd's -----------

NAMES = st.sampled_from(["a", "b", "c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)


@st.composite
def lines(draw: st.DrawFn) -> str:
    """An entry or a whiteout."""
    path = draw(PATHS)
    kind = draw(
        st.sampled_from(["file", "file", "dir", "dir", "link", "hard", "whiteout", "opaque"])
    )
    parent, _, name = path.rpartition("/")
    prefix = f"{parent}/" if parent else ""
    uid = draw(st.integers(1, 99))
    return {
        "file": f"{path}={uid}",
        "dir": f"{path}/={uid}",
        "link": f"{path}->{draw(PATHS)}",
        "hard": f"{path}=>{draw(PATHS)}",
        "whiteout": f"{prefix}.wh.{name}",
        "opaque": f"{path}/.wh..wh..opq",
    }[kind]


@settings(max_examples=400)
@given(st.lists(st.lists(lines(), max_size=8), max_size=4))
def test_no_layers_leave_a_whiteout_in_the_tree(layers: list[list[str]]) -> None:
    try:
        root = merge(*map(" ".join, layers))
    except ImageError:
        return
    names = [(path.rpartition(b"/")[2], node) for path, node in walk(root)]
    assert not [name for name, node in names if name.startswith(b".wh.") or is_whiteout(node)]


def test_a_parent_in_the_place_of_a_whiteout_is_made() -> None:
    lower = Entry(b"d", stat.S_IFDIR | 0o700, 5, 6, 7, 8, xattrs={b"user.a": b"b"})
    merger = LayerMerger()
    merger.apply(layer([lower]))
    merger.apply(layer([entry(".wh.d"), entry("d/new")]))
    ((name, node),) = (merger.root.children or {}).items()
    assert (name, list(node.children or {})) == (b"d", [b"new"])
    assert (node.mode, node.uid, node.gid) == (stat.S_IFDIR | 0o755, 0, 0)
    assert (node.mtime, node.mtime_nsec, dict(node.xattrs)) == (0, 0, {})


# -- limits -----------------------------------------------------------------------------------


def test_parents_that_are_made_count_as_entries() -> None:
    deep = "/".join("x" * 2000)
    merger = LayerMerger(max_entries=10_000)
    with pytest.raises(LimitError, match="more than 10000 entries"):
        merger.apply(layer(entry(f"{n}/{deep}") for n in range(10)))


def test_symbolic_links_make_no_path_that_cannot_be_opened() -> None:
    """Each of them is short enough, and all paths together would take gigabytes."""
    deep = "/".join("x" * 2000)
    links = [f"l0->{deep}", *(f"{'l0/' * n}l0->{deep}" for n in range(1, 40))]
    root = merge(" ".join([*links, "l0/" * 40 + "file"]))
    tracemalloc.start()
    try:
        with pytest.raises(LimitError, match="a path of the image has more than 4095 bytes"):
            list(walk(root))
        assert tracemalloc.get_traced_memory()[1] < 20 * MiB
    finally:
        tracemalloc.stop()


def test_paths_cannot_take_forever() -> None:
    merger = LayerMerger(max_steps=100_000)
    chain = "/".join(["d"] + ["."] * 10 + ["../d"] * 600)
    links = f"d/ l0->{chain} " + " ".join(f"l{n + 1}->l{n}/../{chain}" for n in range(30))
    entries = [*map(parse, links.split()), *(entry(f"l30/{n}") for n in range(1000))]
    with pytest.raises(LimitError, match="steps to follow"):
        merger.apply(layer(entries))


def test_many_whiteouts_of_a_large_directory_are_cheap() -> None:
    lower = [entry(f"d/{n}") for n in range(20_000)]
    upper = [entry("d/.wh..wh..opq") for _ in range(20_000)] + [entry(".wh.d")] * 20_000
    started = time.process_time()
    merger = LayerMerger()
    merger.apply(layer(lower))
    merger.apply(layer([*lower, *upper]))
    assert time.process_time() - started < 20
    assert len((merger.root.children or {})[b"d"].children or {}) == 20_000


# -- another program --------------------------------------------------------------------------


UNKNOWN_TO_UMOCI = ("v/", "label", "x/acl", "x/base64", "nodir/", "lib64")
"""Header types of old tars, access lists as text, attributes in base64; parents that are none."""


@pytest.mark.privileged
def test_umoci_unpacks_the_same_tree(tmp_path: Path) -> None:
    formats: list[Format] = ["pax", "pax", "gnu", "ustar"]
    layers = [
        Layer(
            [
                item
                for item in items
                if not isinstance(item, Global | Raw | Sparse)
                and not _path(item).startswith(UNKNOWN_TO_UMOCI)
            ],
            format=form,
        )
        for items, form in zip(feature_layers(), formats, strict=True)
    ]
    layers.append(Layer([Symlink("mode", "x", mode=0o400)]))
    write_layout(Image(layers), tmp_path / "image")
    command = ["umoci", "raw", "unpack", "--image", f"{tmp_path}/image:latest", f"{tmp_path}/root"]
    subprocess.run(command, check=True, capture_output=True)
    merger = LayerMerger()
    for one in layers:
        merger.apply(LayerRecord.decode(pack(one)[0].record))
    names = dict(walk(merger.root))
    seen = observe(tmp_path / "root")
    assert sorted(seen) == sorted(names)
    links = LinkCounts.of(merger.root)
    for path, node in names.items():
        found = seen[path]
        assert (found.mode, found.uid, found.gid) == (node.mode, node.uid, node.gid), path
        assert (found.size, found.target) == (node.size, node.target), path
        assert (found.nlink, found.rdev) == (links[node], node.rdev), path
        assert found.xattrs == {name: value for name, value in node.xattrs.items() if value}, path
        assert node.is_dir or path.startswith(b"time/") or found.mtime == node.mtime, path


def _path(item: object) -> str:
    path = getattr(item, "path", b"")
    return path.decode(errors="replace") if isinstance(path, bytes) else str(path)
