# SPDX-License-Identifier: Apache-2.0
"""The features of tar and of the OCI image specification, a function each.

Sources: OCI image-spec layer.md; where it is silent, containerd's behaviour.
"""

from __future__ import annotations

from collections.abc import Callable

from firstread.testing.entries import (
    Block,
    Char,
    Dir,
    Fifo,
    File,
    Global,
    Hardlink,
    Opaque,
    Raw,
    Sparse,
    SparseForm,
    Symlink,
    Whiteout,
    encode,
    with_checksum,
)
from firstread.testing.featurestory import BASE, GNU, SECOND, USTAR, Story, content
from firstread.units import KiB, MiB

ACL = bytes.fromhex(  # user::rw-,user:1000:rwx,group::r--,group:1:r--,mask::rwx,other::r--
    "02000000 01000600ffffffff 02000700e8030000 04000400ffffffff"
    "08000400 01000000 10000700ffffffff 20000400ffffffff"
)
CAPABILITY = bytes.fromhex("01000002 00200000 00000000 00000000 00000000")  # cap_net_raw=ep


def _base(story: Story) -> None:
    story.say(BASE, Dir("./", mode=0o755, mtime=1_600_000_000))
    story.see(Dir("", mode=0o755, mtime=1_600_000_000))
    story.both(
        BASE,
        Dir("etc/", mtime=1_600_000_001),
        File("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n", mtime=1_600_000_002),
        File("etc/shadow", b"root:*:::::::\n", mode=0o640, gid=42, mtime=1_600_000_002),
        Dir("usr/"),
        Dir("usr/lib/"),
        Dir("tmp/", mode=0o1777),
    )


def _whiteouts(story: Story) -> None:
    """A whiteout hides what lower layers have, and nothing of its own layer."""
    story.both(BASE, Dir("w/"), File("w/kept", b"kept"))
    story.say(
        BASE,
        File("w/file", b"hidden"),
        Dir("w/dir/"),
        File("w/dir/in", b"hidden with it"),
        File("w/dir/sub/in", b"hidden with it"),
        Symlink("w/link", "kept"),
        File("w/before", b"old"),
        File("w/after", b"old"),
        File("w/again", b"old"),
    )
    story.say(SECOND, *map(Whiteout, ("w/file", "w/dir", "w/link", "w/nothing", "w/again")))
    story.say(SECOND, Whiteout("w/before"))
    story.both(SECOND, File("w/before", b"new, after its whiteout"))
    story.both(SECOND, File("w/after", b"new, before its whiteout"))
    story.say(SECOND, Whiteout("w/after"))
    story.both(USTAR, File("w/again", b"back, two layers later"))


def _opaque(story: Story) -> None:
    """An opaque directory hides its lower content; it can come after the new one."""
    for name in ("o", "o/early", "o/late", "o/alone"):
        story.both(BASE, Dir(f"{name}/", mode=0o750, mtime=5))
    for name in ("o/early", "o/late", "o/alone"):
        story.say(BASE, File(f"{name}/old", b"old"), File(f"{name}/sub/old", b"old"))
        story.say(BASE, File(f"{name}/both", b"old"))
    story.both(SECOND, Dir("o/early/", mode=0o700, mtime=6))
    story.say(SECOND, Opaque("o/early"))
    story.both(SECOND, File("o/early/new", b"new"), File("o/early/both", b"new"))
    story.both(SECOND, File("o/late/new", b"new"), File("o/late/both", b"new"))
    story.say(SECOND, Opaque("o/late"), Opaque("o/alone"))


def _type_changes(story: Story) -> None:
    """A new entry replaces the old one, except a directory over a directory."""
    story.say(
        BASE,
        File("t/file-dir", b"a file"),
        Dir("t/dir-file/"),
        File("t/dir-file/in", b"gone"),
        Symlink("t/link-file", "kept"),
        File("t/file-link", b"a file"),
        Dir("t/dir-link/"),
        File("t/dir-link/in", b"gone"),
        Symlink("t/link-dir", "kept-dir"),
        Char("t/char-file", major=1, minor=3),
        Dir("t/dir-dir/", mode=0o700, uid=5, mtime=1),
    )
    story.both(BASE, File("t/kept", b"not overwritten"), Dir("t/kept-dir/"))
    story.both(BASE, File("t/dir-dir/in", b"stays"))
    story.both(
        SECOND,
        Dir("t/file-dir/"),
        File("t/file-dir/in", b"new"),
        File("t/dir-file", b"a file"),
        File("t/link-file", b"a file, and its target is untouched"),
        Symlink("t/file-link", "kept"),
        Symlink("t/dir-link", "kept-dir"),
        Dir("t/link-dir/"),
        File("t/link-dir/in", b"not in the target"),
        File("t/char-file", b"a file"),
        Dir("t/dir-dir/", mode=0o755, uid=6, mtime=2),
    )


def _hard_links(story: Story) -> None:
    """A link joins whatever is at its target, in a lower layer too; replacing a name parts it."""
    one = File("l/one", content("one", 5000), mode=0o640, uid=7, mtime=77)
    story.say(BASE, one, Hardlink("l/two", "l/one", mode=0o640, uid=7, mtime=77))
    story.say(SECOND, Hardlink("l/sub/three", "/l/two", mode=0o640, uid=7, mtime=77))
    story.see_links(one, b"l/one", b"l/two", b"l/sub/three")

    parted = File("l/parted", b"two names, then one")
    story.say(BASE, parted, Hardlink("l/replaced", "l/parted"), Hardlink("l/hidden", "l/parted"))
    story.see_links(parted, b"l/parted")
    story.say(SECOND, Whiteout("l/hidden"))
    story.both(SECOND, File("l/replaced", b"on its own"))

    link = Symlink("l/symlink", "one")
    story.say(BASE, link, Hardlink("l/symlink-two", "l/symlink", mode=0o777))
    story.see_links(link, b"l/symlink", b"l/symlink-two")
    fifo = Fifo("l/fifo", mode=0o600)
    story.say(GNU, fifo, Hardlink("l/fifo-two", "./l/fifo", mode=0o600))
    story.see_links(fifo, b"l/fifo", b"l/fifo-two")


def _duplicates(story: Story) -> None:
    """The last entry of a path holds; children of a directory stay."""
    story.say(BASE, File("d/file", b"first"), Dir("d/dir/", mode=0o700))
    story.both(BASE, File("d/dir/in", b"stays"))
    story.say(BASE, File("d/spelled", b"first"), Symlink("d/kind", "file"))
    story.say(BASE, File(".//d/./spelled", b"last, spelled otherwise", mtime=3))
    story.see(File("d/spelled", b"last, spelled otherwise", mtime=3))
    story.both(BASE, File("d/file", b"last", mode=0o600), Dir("d/dir/", mode=0o711, mtime=4))
    story.both(BASE, File("d/kind", b"was a link"))


def _confined(story: Story) -> None:
    """Nothing leaves the root: not a name, and not a symbolic link on its way."""
    story.say(BASE, File("../../climbed", b"a"), File("/absolute/file", b"b"))
    story.see(File("climbed", b"a"), File("absolute/file", b"b"))
    story.say(BASE, File("p/q/../../p/../down", b"c"))
    story.see(File("down", b"c"))
    story.both(BASE, Symlink("out", "../../../outside"), Symlink("far", "/etc/passwd"))
    story.say(BASE, File("out/file", b"d"))
    story.see(File("outside/file", b"d"))


def _linked_parents(story: Story) -> None:
    """Parents that are symbolic links of their own layer are followed.

    One that is a link of a lower layer becomes a directory, with the attributes of its target.
    """
    story.both(BASE, Symlink("lib", "usr/lib"), Symlink("abs", "/usr/share"))
    story.both(BASE, Dir("usr/share/"), Symlink("chain", "abs/../lib"))
    story.say(BASE, File("abs/here", b"1"), File("chain/chained", b"2"))
    story.see(File("usr/share/here", b"1"), File("usr/lib/chained", b"2"))
    story.say(BASE, Symlink("lib64", "opt/lib"))
    story.both(BASE, Dir("opt/lib/", mode=0o750, uid=3, mtime=8), File("opt/lib/old", b"3"))
    story.both(SECOND, File("lib64/new", b"4"))
    story.see(Dir("lib64/", mode=0o750, uid=3, mtime=8))
    story.say(GNU, Whiteout("lib64/old"), Hardlink("lib64/linked", "lib64/new"))
    story.see_links(File("lib64/new", b"4"), b"lib64/new", b"lib64/linked")
    for name, entry in (("file", File("nodir/file", b"")), ("fifo", Fifo("nodir/fifo"))):
        story.say(BASE, entry)
        story.both(SECOND, File(f"nodir/{name}/in", b"its parent was none"))


def _missing_parents(story: Story) -> None:
    story.both(BASE, File("missing/parents/of/a/file", b"x"))
    story.both(SECOND, Symlink("missing/parents/of/b/link", "x"))
    story.both(SECOND, Dir("missing/late/"), File("missing/late/in/file", b"y"))
    story.both(USTAR, Dir("missing/late/in/", mode=0o700, mtime=9))


def _owners_and_modes(story: Story) -> None:
    story.both(
        BASE,
        Dir("m/", mode=0o2775, gid=50),
        File("m/suid", b"#!", mode=0o4755),
        File("m/sgid", b"#!", mode=0o2755),
        File("m/none", b"unreadable", mode=0),
        File("m/sticky", b"", mode=0o1644),
        File("m/big-pax", b"", uid=70_000, gid=4_000_000_000),
        File("m/huge-pax", b"", uid=4_294_967_294, gid=65_536),
    )
    story.both(GNU, File("m/big-gnu", b"", uid=3_000_000_000, gid=2_500_000))
    story.both(USTAR, File("m/ustar", b"", uid=65_535, gid=2_097_151))


def _times(story: Story) -> None:
    story.both(
        BASE,
        File("time/ns", b"", mtime=1_700_000_000, mtime_nsec=123_456_789),
        File("time/one-ns", b"", mtime=0, mtime_nsec=1),
        File("time/negative", b"", mtime=-86_400),
        File("time/negative-ns", b"", mtime=-2, mtime_nsec=500_000_000),
        File("time/2039", b"", mtime=2_177_452_800),
        File("time/2107", b"", mtime=4_323_369_600, mtime_nsec=999_999_999),
        File("time/9999", b"", mtime=253_402_300_799),
        Symlink("time/link", "ns", mtime=12, mtime_nsec=34),
        Dir("time/dir/", mtime=56, mtime_nsec=78),
    )
    story.both(GNU, File("time/gnu-negative", b"", mtime=-1), File("time/gnu", b"", mtime=1 << 33))
    story.both(USTAR, File("time/ustar", b"", mtime=8_589_934_591))


def _xattrs(story: Story) -> None:
    """Shared ones, unique ones, and those that are not text."""
    common = {"user.shared": b"the same in many files", "user.mime_type": b"text/plain"}
    for number in range(40):
        unique = {"user.unique": b"%d" % number} if number % 4 == 0 else {}
        story.both(BASE, File(f"x/f{number:02}", b"", xattrs={**common, **unique}))
    story.both(
        BASE,
        File("x/capability", b"", mode=0o755, xattrs={"security.capability": CAPABILITY}),
        File("x/binary", b"", xattrs={"user.binary": bytes(range(256))}),
        File("x/empty", b"", xattrs={"user.empty": b""}),
        File("x/large", b"", xattrs={"user.large": content("xattr", 2000)}),
        File("x/name", b"", xattrs={"user." + "n" * 250: b"long name"}),
        Dir("x/dir/", xattrs={"user.on": b"a directory"}),
    )
    kept = {"user.replaced": b"new"}
    story.say(BASE, File("x/replaced", b"", xattrs={"user.gone": b"", "user.replaced": b"old"}))
    story.both(SECOND, File("x/replaced", b"", xattrs=kept))

    acl = "system.posix_acl_access"
    text = "user::rw-,user:a:rwx:1000,group::r--,group:1:r--,mask::rwx,other::r--"
    story.both(BASE, File("x/acl", b"", mode=0o674, xattrs={acl: ACL}))
    story.say(BASE, File("x/acl-text", b"", records=[("SCHILY.acl.access", text)]))
    story.see(File("x/acl-text", b"", mode=0o674, xattrs={acl: ACL}))
    story.say(BASE, File("x/base64", b"", records=[("LIBARCHIVE.xattr.user.%C3%A9", "AP8")]))
    story.see(File("x/base64", b"", xattrs={"user.é": b"\0\xff"}))


def _global_headers(story: Story) -> None:
    """A global header holds until another changes it; an entry's own header goes first."""
    story.say(SECOND, Global([("comment", "of the archive"), ("gid", "4242"), ("mtime", "5.5")]))
    story.say(SECOND, File("g/from-global", b""), File("g/own", b"", records=[("gid", "7")]))
    story.see(File("g/from-global", b"", gid=4242, mtime=5, mtime_nsec=500_000_000))
    story.see(File("g/own", b"", gid=7, mtime=5, mtime_nsec=500_000_000))
    story.say(SECOND, File("g/taken-back", b"", gid=8, records=[("gid", "")]))
    story.see(File("g/taken-back", b"", gid=8, mtime=5, mtime_nsec=500_000_000))
    story.say(SECOND, Global([("gid", ""), ("mtime", "")]))
    story.both(SECOND, File("g/after", b"", gid=9, mtime=10))


def _names(story: Story) -> None:
    """Names are bytes; the longest have 255, paths 4095."""
    story.both(
        BASE,
        File(b"n/\xff\xfe\x80", b"not UTF-8"),
        File("n/" + "x" * 255, b"255 bytes"),
        File("n/" + "é" * 127 + "y", b"255 bytes of UTF-8"),
        Dir(b"n/" + b"\xe9" * 200 + b"/"),
        File("n/ with space\n and line end", b""),
        File("n/-leading-dash", b""),
        File("n/...", b"three dots are a name"),
        Symlink(b"n/link", b"\xff/\xfe"),
        File("n/ü/日本/ω", b"UTF-8"),
        File("/".join(["deep-" + "d" * 25] * 60) + "/file", b"deep"),
        Symlink("n/100", "a" * 100),
        Symlink("n/101", "a" * 101),
        Symlink("n/longest", "t/" * 2047 + "t"),
    )
    story.both(GNU, File("n/" + "gnu-" * 60, b""), Symlink("n/gnu-link", "b" * 300))
    story.both(USTAR, File("n/" + "p" * 140 + "/" + "s" * 99, b"prefix and name"))


def _special_files(story: Story) -> None:
    story.both(
        BASE,
        Char("dev/null", mode=0o666, major=1, minor=3),
        Char("dev/tty", mode=0o620, gid=5, major=5, minor=0),
        Block("dev/sda", mode=0o660, gid=6, major=8, minor=0),
        Block("dev/large", mode=0o600, major=259, minor=1_048_575),
        Fifo("dev/initctl", mode=0o600, mtime=11),
    )
    story.both(USTAR, Char("dev/full", mode=0o666, major=1, minor=7))


def _sparse(story: Story) -> None:
    """All four encodings; holes at either end, data across sectors and off block bounds."""
    forms: tuple[SparseForm, ...] = ("gnu", "0.0", "0.1", "1.0")
    for form in forms:
        layer = GNU if form == "gnu" else BASE
        data = {
            number * 300_001: content(f"{form} {number}", 512 * (1 + number % 4))
            for number in range(30)
        }
        story.both(layer, Sparse(f"s/many-{form}", 9_500_000, data, form, mtime=13))
        edge = {4 * MiB - 3: content(form, 4608), 5 * MiB: content(form, 4099)}
        story.both(layer, Sparse(f"s/edge-{form}", 6 * MiB + 1, edge, form))
        story.both(layer, Sparse(f"s/hole-{form}", 3 * MiB, {}, form))
        story.both(layer, Sparse(f"s/full-{form}", 5, {0: b"dense"}, form))


def _sizes(story: Story) -> None:
    """Both sides of every bound of blocks, frames and sectors, and the same content twice."""
    blocks = (0, 1, 511, 512, 513, 4095, 4096, 4097, 8192, 40_960)
    frames = (256 * KiB - 1, 256 * KiB, 256 * KiB + 1, MiB)
    sectors = (4 * MiB - 1, 4 * MiB, 4 * MiB + 1, 9 * MiB)
    for size in (*blocks, *frames, *sectors):
        story.both(BASE, File(f"size/{size}", content(f"size {size}", size)))
    story.both(SECOND, File("size/copy", content("size 40960", 40_960)))
    story.both(SECOND, File("size/zeros", bytes(3 * MiB)), File("size/text", b"abc\n" * 100_000))
    story.say(BASE, File("size/shrinks", content("large", 300_000)))
    story.both(SECOND, File("size/shrinks", b"small"))


def _many_names(story: Story) -> None:
    """A directory of several blocks, most of its files small, a few empty."""
    story.both(BASE, Dir("many/"))
    for number in range(3000):
        text = b"" if number % 10 == 0 else b"file number %d\n" % number
        story.both(BASE, File(f"many/name-{number:04}", text, mtime=1_500_000_000 + number))


def _old_types(story: Story) -> None:
    """Headers of before POSIX, and types that are regular files in disguise."""
    story.say(USTAR, File("v/dir/", type=b"\0"), File("v/file", b"v7", type=b"\0"))
    story.see(Dir("v/dir/", mode=0o644), File("v/file", b"v7"))
    story.say(USTAR, File("v/contiguous", b"7", type=b"7"), File("v/unknown", b"Z", type=b"Z"))
    story.see(File("v/contiguous", b"7"), File("v/unknown", b"Z"))
    story.say(USTAR, File("label", type=b"V"))
    block = encode(File("v/no-magic", mode=0o600, uid=3, mtime=14), "ustar")
    story.say(USTAR, Raw(with_checksum(block[:257] + bytes(255))))
    story.see(File("v/no-magic", mode=0o600, uid=3, mtime=14))


FEATURES: tuple[Callable[[Story], None], ...] = (
    _base,
    _whiteouts,
    _opaque,
    _type_changes,
    _hard_links,
    _duplicates,
    _confined,
    _linked_parents,
    _missing_parents,
    _owners_and_modes,
    _times,
    _xattrs,
    _global_headers,
    _names,
    _special_files,
    _sparse,
    _sizes,
    _many_names,
    _old_types,
)
