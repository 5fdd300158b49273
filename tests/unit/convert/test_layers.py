# SPDX-License-Identifier: Apache-2.0
"""Merging layers: a case for each rule, a model, and what umoci(1) makes of the same layers."""

from __future__ import annotations

import stat
import subprocess
import time
import tracemalloc
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstread.convert.layers import MAX_SYMLINKS, LayerMerger
from firstread.convert.record import Entry, LayerRecord, PackedSector, encode_entries
from firstread.erofs.tree import HOLE, LinkCounts, Node, chunk_address, walk
from firstread.errors import ImageError, LimitError
from firstread.testing.entries import Format
from firstread.testing.features import feature_layers
from firstread.testing.images import Global, Image, Layer, Raw, Sparse, Symlink, write_layout
from firstread.testing.observe import observe
from firstread.testing.packed import pack
from firstread.units import MiB

KINDS = {
    "file": stat.S_IFREG,
    "dir": stat.S_IFDIR,
    "link": stat.S_IFLNK,
    "fifo": stat.S_IFIFO,
    "hard": 0,
}


def entry(path: str, kind: str = "file", uid: int = 0, link: str = "") -> Entry:
    """An entry whose owner tells it from others of the same path."""
    mode = KINDS[kind] | 0o644 if kind != "hard" else 0
    return Entry(path.encode(), mode, uid, link=link.encode())


def parse(line: str) -> Entry:
    """``dir/`` ``file=7`` (owner) ``name->target`` (symbolic link) ``name=>target`` (hard link)."""
    if "=>" in line:
        path, target = line.split("=>")
        return entry(path, "hard", link=target)
    if "->" in line:
        path, target = line.split("->")
        return entry(path, "link", link=target)
    path, _, uid = line.partition("=")
    return entry(path, "dir" if path.endswith("/") else "file", int(uid or 0))


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
        (["a", "no/.wh.b"], "a"),
        (["a", "a/.wh.b"], "a"),
        (["a->b b", ".wh.a"], "b"),
        (["a b=>a", ".wh.a"], "b"),
        # … hides lower layers only, wherever in its layer it stands
        (["a=1", ".wh.a a=2"], "a=2"),
        (["a=1", "a=2 .wh.a"], "a=2"),
        (["d/=1 d/a", "d/=2 d/b .wh.d"], "d/=2 d/b"),
        (["d/=1 d/a", ".wh.d d/=2 d/b"], "d/=2 d/b"),
        (["d/=1 d/a d/s/=1 d/s/x", "d/s/y .wh.d"], "d/ d/s/ d/s/y"),
        (["d/=1 d/a d/s/=1 d/s/x", ".wh.d d/s/y"], "d/ d/s/ d/s/y"),
        (["d/=1 d/s/=1 d/s/x", "d/s/y d/.wh.s .wh.d"], "d/ d/s/ d/s/y"),
        (["d/=1 d/s/=1", "d/s/y d/.wh..wh..opq .wh.d d/z d/=2"], "d/=2 d/s/ d/s/y d/z"),
        (["", "a=2 .wh.a"], "a=2"),
        (["a x", "b=>a .wh.b"], "a b x"),
        (["a b=>a", "b=>a .wh.b .wh.a"], "b"),
        # an opaque directory
        (["d/=1 d/a d/s/ d/s/x", "d/.wh..wh..opq"], "d/=1"),
        (["d/ d/a", "d/=2 d/.wh..wh..opq d/b"], "d/=2 d/b"),
        (["d/ d/a", "d/b d/.wh..wh..opq"], "d/ d/b"),
        (["d/=1 d/a=1 d/s/=1 d/s/x", "d/a=2 d/s/y d/.wh..wh..opq"], "d/=1 d/a=2 d/s/ d/s/y"),
        (["a d/ d/x", ".wh..wh..opq b"], "b"),
        (["a", "no/.wh..wh..opq"], "a"),
        (["d/ d/a", "d/.wh..wh..opq", "d/c"], "d/ d/c"),
        (["d/ d/a", ".wh.d d/ d/.wh..wh..opq d/b d/.wh..wh..opq"], "d/ d/b"),
        # bookkeeping of aufs
        (["a", ".wh..wh.aufs .wh..wh.orph/ .wh..wh.plnk/"], "a"),
        (["d/", "d/.wh..wh.plnk"], "d/"),
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
        # parents: through symbolic links of what is there so far, made if missing
        (["x/y/a"], "x/ x/y/ x/y/a"),
        (["usr/lib/ lib->usr/lib", "lib/a"], "lib->usr/lib usr/ usr/lib/ usr/lib/a"),
        (["usr/lib/a lib->usr/lib", "lib/.wh.a"], "lib->usr/lib usr/ usr/lib/"),
        (["usr/lib/a lib->usr/lib", "lib/.wh..wh..opq"], "lib->usr/lib usr/ usr/lib/"),
        (["lib->usr/lib", "lib/a"], "lib->usr/lib usr/ usr/lib/ usr/lib/a"),
        (["d/ d/l->../e e/", "d/l/a"], "d/ d/l->../e e/ e/a"),
        (["d/ d/l->../../../e e/", "d/l/a"], "d/ d/l->../../../e e/ e/a"),
        (["d/ d/l->/e e/", "d/l/a"], "d/ d/l->/e e/ e/a"),
        (["a->b b->c c/", "a/x"], "a->b b->c c/ c/x"),
        (["l->.", "l/l/a"], "a l->."),
        (["l->q/../r", "l/a"], "l->q/../r r/ r/a"),  # what ".." leaves again is not made
        (["l->/q/s/../../r/t", "l/a"], "l->/q/s/../../r/t r/ r/t/ r/t/a"),
        (["r/ r/a l->q/../r", "l/.wh.a"], "l->q/../r r/"),
        (["r/ l->q/../r/s", "l/.wh.a"], "l->q/../r/s r/"),
        (["x/a", "x/ x/b"], "x/ x/a x/b"),
        (["d/ d/l->x/y", "d/l/a"], "d/ d/l->x/y d/x/ d/x/y/ d/x/y/a"),
        # names
        (["/a ./b .//c//d ../e x/../f"], "a b c/ c/d e f"),
        (["../../d/../a"], "a"),
        (["d/ d/a/.=2"], "d/ d/a=2"),
        (["./", "/", "a"], "a"),
    ],
)
def test_rule(layers: list[str], expected: str) -> None:
    assert shown(merge(*layers)) == expected


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["a", "a/b"], "entry 'a/b': a parent of it is not a directory"),
        (["b=>a"], "entry 'b': the target 'a' of the hard link does not exist"),
        (["a/ b=>a"], "entry 'b': the target 'a' of the hard link is a directory"),
        (["d/ d/a l->d", "b=>l"], None),  # a link to the symbolic link itself
        (["a->b b->a", "a/x"], "entry 'a/x': too many symbolic links on its path"),
        (["a->a", "a/x"], "too many symbolic links"),
        (["a->a", "a/.wh.x"], "too many symbolic links"),
        (["a", ".wh."], "the whiteout names no file"),
        (["a", ".wh.."], "the whiteout names no file"),
        (["a", ".wh..."], "the whiteout names no file"),
        (["."], "the root is not a directory"),
        (["a .=>a"], "the root is not a directory"),
    ],
)
def test_what_cannot_be_applied(layers: list[str], message: str | None) -> None:
    if message is None:
        merge(*layers)
        return
    with pytest.raises(ImageError) as caught:
        merge(*layers)
    assert message in caught.value.message
    assert caught.value.layer == "sha256:" + "a" * 64


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
    assert "d/x" in shown(merge(f"{links} l{MAX_SYMLINKS - 1}->d d/", "l0/x"))
    with pytest.raises(ImageError, match="too many symbolic links"):
        merge(f"{links} l{MAX_SYMLINKS - 1}->l l->d d/", "l0/x")


def test_chunks_count_sectors_over_all_layers() -> None:
    def file(name: bytes, *chunks: int) -> Entry:
        packed = b"".join(chunk.to_bytes(8, "little") for chunk in chunks)
        return Entry(name, stat.S_IFREG, size=1, chunk_size=4096, chunks=packed)

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
    cut_off = Entry(b"d", stat.S_IFREG, size=1, chunk_size=4096, chunks=bytes(7))
    with pytest.raises(ImageError, match="cut off"):
        LayerMerger().apply(layer([cut_off], sectors=4))


# -- a model ----------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)


@st.composite
def lines(draw: st.DrawFn) -> str:
    """An entry, or a whiteout, without symbolic links: the model does not follow them."""
    path = draw(PATHS)
    kind = draw(st.sampled_from(["file", "file", "dir", "dir", "hard", "whiteout", "opaque"]))
    parent, _, name = path.rpartition("/")
    prefix = f"{parent}/" if parent else ""
    uid = draw(st.integers(1, 99))
    return {
        "file": f"{path}={uid}",
        "dir": f"{path}/={uid}",
        "hard": f"{path}=>{draw(PATHS)}",
        "whiteout": f"{prefix}.wh.{name}",
        "opaque": f"{path}/.wh..wh..opq",
    }[kind]


@dataclass
class Model:
    """The rules of layer.md on a flat dict, slow and plain: path -> (owner, is it a directory).

    All whiteouts of a layer are applied to what is below, then its entries.
    """

    paths: dict[str, tuple[int, bool]] = field(default_factory=dict)

    def apply(self, items: list[str]) -> bool:
        """Apply a layer; return whether it can be."""
        for item in items:
            name = item.rpartition("/")[2]
            if name == ".wh..wh..opq":
                self.remove_below(item.rpartition("/")[0])
            elif name.startswith(".wh."):
                target = item.replace(".wh.", "")
                self.remove_below(target)
                self.paths.pop(target, None)
        return all(
            self.add(item) for item in items if not item.rpartition("/")[2].startswith(".wh.")
        )

    def remove_below(self, top: str) -> None:
        for path in [path for path in self.paths if path.startswith(top + "/")]:
            del self.paths[path]

    def add(self, item: str) -> bool:
        path, _, rest = item.partition("=")
        is_dir = path.endswith("/")
        path = path.rstrip("/")
        parent = path.rpartition("/")[0]
        while parent:
            if not self.paths.setdefault(parent, (0, True))[1]:
                return False
            parent = parent.rpartition("/")[0]
        if rest.startswith(">"):
            owner, target_is_dir = self.paths.get(rest[1:], (0, True))
            if target_is_dir:
                return False
        else:
            owner = int(rest)
        if not is_dir:
            self.remove_below(path)
        self.paths[path] = owner, is_dir
        return True

    def shown(self) -> str:
        return " ".join(
            f"{path}{'/' if is_dir else ''}{f'={owner}' if owner else ''}"
            for path, (owner, is_dir) in sorted(
                self.paths.items(), key=lambda item: item[0].split("/")
            )
        )


@settings(max_examples=400)
@given(st.lists(st.lists(lines(), max_size=8), max_size=4))
def test_equals_the_model(layers: list[list[str]]) -> None:
    model = Model()
    merger = LayerMerger()
    for items in layers:
        possible = model.apply(_in_order(items))
        try:
            merger.apply(layer(map(parse, _in_order(items))))
        except ImageError:
            assert not possible
            return
        assert possible
        assert shown(merger.root) == model.shown()


def _in_order(items: list[str]) -> list[str]:
    """Whiteouts first, as the model takes them; that their place is no matter has its cases."""
    return sorted(items, key=lambda item: not item.rpartition("/")[2].startswith(".wh."))


@given(st.lists(lines(), max_size=6), st.lists(lines(), max_size=6))
def test_the_place_of_a_whiteout_in_its_layer_is_no_matter(
    lower: list[str], upper: list[str]
) -> None:
    entries = [item for item in upper if ".wh." not in item and "=>" not in item]
    whiteouts = [item for item in upper if ".wh." in item]
    try:
        first = shown(merge(" ".join(lower), " ".join(whiteouts + entries)))
    except ImageError:
        return
    try:
        last = shown(merge(" ".join(lower), " ".join(entries + whiteouts)))
    except ImageError:
        return  # a file of the lower layer stood where a parent had to be
    assert last == first


def test_a_parent_that_is_hidden_later_is_as_if_made() -> None:
    lower = Entry(b"d", stat.S_IFDIR | 0o700, 5, 6, 7, 8, xattrs={b"user.a": b"b"})
    merger = LayerMerger()
    merger.apply(layer([lower]))
    merger.apply(layer([entry("d/new"), entry(".wh.d")]))
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
    merger.apply(layer(map(parse, links.split())))
    with pytest.raises(LimitError, match="steps to follow"):
        merger.apply(layer(entry(f"l30/{n}") for n in range(1000)))


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


UNKNOWN_TO_UMOCI = ("v/", "label", "x/acl", "x/base64")
"""Header types of old tars, access lists as text, attributes in base64."""


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
