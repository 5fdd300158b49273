# SPDX-License-Identifier: Apache-2.0
"""Every parser of untrusted bytes as a function of bytes, for `make fuzz` and the tests.

A target takes bytes and either returns or raises one of its documented errors. Any other exception,
more than `MEMORY_BYTES` of additional address space, or more than `SECONDS`, is a defect.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import gzip
import io
import json
import os
import random
import shutil
import socket
import struct
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import zstandard

from firstread.config import load_config
from firstread.control.server import ControlServer
from firstread.convert.record import LayerRecord
from firstread.convert.stream import Feed, decompress
from firstread.convert.tar import TarReader
from firstread.device.fanotify import EVENT_BYTES, parse_events
from firstread.erofs.reader import read_tree
from firstread.erofs.validation import validate
from firstread.errors import (
    AuthError,
    FirstreadError,
    ImageError,
    NodeError,
    SourceError,
    UsageError,
)
from firstread.fetch.stats import Feed as Events
from firstread.layouts.tarindex import TarIndex
from firstread.mountinfo import parse_mountinfo
from firstread.mounts.nodestatus import Mounted, Steps
from firstread.mounts.table import MountTable, erofs_in
from firstread.oci.model import OCI_LAYER, Index, diff_ids, parse_config, parse_manifest
from firstread.oci.platform import host_platform
from firstread.oci.reference import parse_reference
from firstread.oci.repository import Repository
from firstread.oci.resolve import choose, resolve
from firstread.registry.access import Access
from firstread.registry.auth import look_up
from firstread.registry.backoff import pause_s
from firstread.registry.bearer import Authorizer, parse_challenge
from firstread.registry.credentials import Credentials
from firstread.registry.endpoint import follow
from firstread.registry.faults import retry_after
from firstread.registry.open import open_source
from firstread.registry.options import AccessOptions
from firstread.run.containers import ContainerStore, Record
from firstread.run.rundefaults import parse_image_config
from firstread.sectors.decode import SectorDecoder
from firstread.sectors.format import FrameTable, SectorEntry
from firstread.sectors.image import open_image, write_metadata
from firstread.starts.startset import start_set
from firstread.testing.entries import (
    Char,
    Dir,
    File,
    Hardlink,
    Item,
    Sparse,
    Symlink,
    to_tar,
    with_checksum,
)
from firstread.testing.erofsdump import dump
from firstread.testing.images import feature_image
from firstread.testing.packed import SMALL, converted, pack
from firstread.testing.programs import Program, tree_of
from firstread.units import MiB

SECONDS = 10.0  # of CPU
MEMORY_BYTES = 1024 * MiB

CORPUS = Path(__file__).parent / "corpus"


@dataclass(frozen=True)
class Target:
    """One parser.

    Args:
        run: parses the bytes.
        seeds: valid ones, to begin with.
        errors: that it may raise.
        tokens: fragments that are worth inserting.
    """

    run: Callable[[bytes], object]
    seeds: Callable[[], list[bytes]]
    errors: tuple[type[Exception], ...] = (ImageError,)
    tokens: list[bytes] = field(default_factory=list)

    def __call__(self, data: bytes) -> bool:
        """Feed `data`; return whether the target accepted it. Raises on a defect."""
        try:
            self.run(data)
        except self.errors:
            return False
        return True


def corpus(name: str) -> list[bytes]:
    """Return the files of the corpus of a target."""
    return [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]


# Material for seeds.

ITEMS: list[Item] = [
    File("file", b"content" * 9, xattrs={"user.a": b"\xff"}, mtime=-5, mtime_nsec=7),
    File("n" * 180),
    Dir("dir/"),
    Symlink("s", "t" * 150),
    Hardlink("h", "file"),
    Char("c", major=1, minor=3),
    *(
        Sparse(f"s{form}", 10**6, {n * 3000: b"x" * n for n in range(1, 5)}, form)
        for form in ("0.0", "0.1", "1.0")
    ),
]
TAR_TOKENS = [b"ustar", b"GNU.sparse.map=", b"path=", b"size=", b"SCHILY.xattr.", b"7" * 11]
JSON_TOKENS = [b"null", b"[" * 200, b'{"a":' * 200, b"1e999", b"-0", b"\\ud800", b"\xed\xa0\x80"]


@cache
def tars() -> list[bytes]:
    gnu = [*ITEMS[1:6], Sparse("s", 10**6, {n * 3000: b"x" * n for n in range(1, 40)}, "gnu")]
    return [to_tar(ITEMS, "pax"), to_tar(gnu, "gnu"), bytes(1024)]


@cache
def image() -> tuple[Any, bytes, bytes]:
    """Return manifest, metadata layer and metadata of a converted image."""
    place, manifest = converted(feature_image())
    layer = place.blobs[manifest.layers[0].digest]
    return manifest, layer, zstandard.ZstdDecompressor().decompressobj().decompress(layer)


@cache
def packed() -> tuple[bytes, SectorEntry, bytes]:
    """Return a record, one of its sectors, and the bytes of that."""
    layer, blob = pack(feature_image().layers[0])
    sector = LayerRecord.decode(layer.record).sectors[1]
    entry = SectorEntry(sector.id, sector.size, 0, 0, sector.length)
    return layer.record, entry, blob[sector.offset : sector.offset + sector.length]


def documents() -> list[bytes]:
    sha = "sha256:" + "0" * 64
    layer = {"mediaType": OCI_LAYER, "digest": sha, "size": 1, "annotations": {"a": "b"}}
    manifest = {"schemaVersion": 2, "config": layer, "layers": [layer], "subject": layer}
    platform = {"os": "linux", "architecture": "amd64", "variant": "v8"}
    index = {"schemaVersion": 2, "manifests": [layer | {"platform": platform}]}
    config = {
        "os": "linux",
        "architecture": "amd64",
        "rootfs": {"type": "layers", "diff_ids": [sha]},
        "config": {"Env": ["A=b"], "Cmd": ["sh"], "Volumes": {"/v": {}}, "StopSignal": "SIGINT"},
    }
    return [json.dumps(document).encode() for document in (manifest, index, config)]


# The parsers.


def run_tar(data: bytes, media_type: str = "") -> None:
    feed = Feed(decompress([data[:700], data[700:]], media_type))
    reader = TarReader(feed)
    for entry in reader:
        assert len(entry.path) <= 4095
        for offset, piece in reader.data(entry):
            assert offset + len(piece) <= entry.size
    feed.drain()


def run_tar_entries(data: bytes) -> None:
    """Repairs checksums, so that the parser reaches the content of headers."""
    blocks = [data[at : at + 512] for at in range(0, len(data), 512)]
    run_tar(
        b"".join(
            with_checksum(block) if block[257:262] == b"ustar" and len(block) == 512 else block
            for block in blocks
        )
    )


def run_manifest(data: bytes) -> None:
    document = parse_manifest(data)
    if isinstance(document, Index):
        choose(document, host_platform())


def run_config(data: bytes) -> None:
    config = parse_config(data)
    parse_image_config(config)
    diff_ids(config)


def run_metadata(data: bytes) -> None:
    validate(open_image(image()[0], data).erofs)


def run_erofs(data: bytes) -> None:
    """Parses only the tree, and skips the checks before it."""
    erofs = open_image(image()[0], image()[2][:2048] + data[2048:]).erofs
    read_tree(erofs)
    for _ in dump(erofs):
        pass


def run_metadata_layer(data: bytes) -> None:
    out = io.BytesIO()
    write_metadata([data], out)


def run_frame_table(data: bytes) -> None:
    FrameTable.unpack(data, SMALL.geometry)


def run_sector(data: bytes) -> None:
    entry = packed()[1]
    decoder = SectorDecoder(entry, SMALL.geometry)
    decoder.buffer[:] = data[: entry.length].ljust(entry.length, b"\0")
    for _ in decoder.advance(entry.length):
        pass


def run_layer_record(data: bytes) -> None:
    list(LayerRecord.decode(data).entries())


def run_plain_record(data: bytes) -> None:
    run_layer_record(zstandard.ZstdCompressor(level=1).compress(data))


def plain_records() -> list[bytes]:
    return [zstandard.ZstdDecompressor().decompress(packed()[0])]


def frame_tables() -> list[bytes]:
    _, entry, data = packed()
    return [data[: SMALL.geometry.table_size(entry.size)]]


def run_archive(data: bytes) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        index = TarIndex(file.fileno())
        for name in ("index.json", "s", "h"):
            member = index.find(name)
            assert member is None or member.offset + member.size <= len(data)


@cache
def scratch() -> Path:
    place = tempfile.mkdtemp(prefix="firstread-fuzz-")
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return Path(place)


def run_docker_config(data: bytes) -> None:
    path = scratch() / "config.json"
    path.write_bytes(data)
    with _environment(PATH="/nonexistent"):  # the bytes name the helper
        look_up("a.test", "b/c", path)


@contextlib.contextmanager
def _environment(**changes: str) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def run_token(data: bytes) -> None:
    """The first line is a challenge, the others are a token server's answer."""
    challenge, _, answer = data.partition(b"\n")
    authorizer = Authorizer(
        ["repository:b:pull"], lambda: Credentials("u", "p"), lambda request: answer, lambda: 0.0
    )
    authorizer.refused(challenge.decode("latin-1"), None)
    header = authorizer.header()
    assert header is None or (header.isprintable() and header.isascii())


def run_headers(data: bytes) -> None:
    text = data.decode("latin-1")
    parse_challenge(text)
    wait = pause_s(1, 0.1, 10, retry_after({"Retry-After": text}))
    assert wait is None or 0 <= wait <= 10
    follow("https://r.test/v2/", text)


def run_reference(data: bytes) -> None:
    reference = parse_reference(data.decode("utf-8", "surrogateescape"))
    assert parse_reference(str(reference)) == reference


def run_container(data: bytes) -> None:
    store = ContainerStore(scratch() / "state")
    directory = store.directory(Record(id="a" * 64))
    directory.mkdir(exist_ok=True)
    (directory / "record.json").write_bytes(data)
    assert len(store.list()) == 1


def run_mounts(data: bytes) -> None:
    table = MountTable(scratch())
    (scratch() / "mounts/x.json").write_bytes(data)
    table.load()


def run_toml(data: bytes) -> None:
    path = scratch() / "config.toml"
    path.write_bytes(data)
    load_config(path)


def run_mountinfo(data: bytes) -> None:
    """The kernel writes it, but users choose the names in it."""
    name = data
    for character, escape in ((b" ", b"\\040"), (b"\n", b"\\012"), (b"\t", b"\\011")):
        name = name.replace(character, escape)
    line = b"1 0 0:1 / /%s rw - erofs %s ro\n" % (name, name or b"none")
    assert len(erofs_in(parse_mountinfo(line))) == 1


def run_events(data: bytes) -> None:
    for event in parse_events(data):
        assert 0 <= event.offset < 1 << 64


class _Network:
    """Knows no passwords."""

    def trying(self, image: str, *_: object) -> contextlib.AbstractContextManager[None]:
        parse_reference(image)
        return contextlib.nullcontext()

    def prove_login(self, scope: str, *_: object) -> None:
        parse_reference(scope)


class _Node:
    """A node that does nothing."""

    def mount(self, name: str, directory: str | None, access: Access, **_: Any) -> Mounted:
        steps = Steps(0.0, 0.0, 0.0)
        return Mounted(f"{directory}", str(parse_reference(name)), {}, "fanotify", 1, steps)

    def umount(self, directory: str, *, lazy: bool = False) -> None:
        Path(directory).is_absolute()

    @property
    def network(self) -> _Network:
        return _Network()

    def holds(self, holder: str) -> bool:
        return bool(holder.encode(errors="replace"))

    def release(self, holder: str) -> None:
        assert holder is not None

    def pin(self, directory: str) -> None:
        Path(directory).is_absolute()

    def status(self) -> dict[str, Any]:
        return {"mounts": []}


class _Control(ControlServer):
    """Remembers what its handlers raised."""

    raised: BaseException | None = None

    def handle_error(self, request: Any, client_address: Any) -> None:
        exc = sys.exception() if sys.version_info >= (3, 12) else sys.exc_info()[1]
        if not isinstance(exc, OSError):
            self.raised = exc


@cache
def control() -> tuple[_Control, str]:
    listener = socket.socket(socket.AF_UNIX)
    path = str(scratch() / "control.sock")
    listener.bind(path)
    listener.listen()
    node: Any = _Node()
    server = _Control(listener, node, Events(), lambda status: status, lambda: b"m 1\n")
    threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
    return server, path


def run_control(data: bytes) -> None:
    if b"/events" in data:
        return  # answered without end
    server, path = control()
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(SECONDS)
        peer.connect(path)
        with contextlib.suppress(ConnectionError):
            peer.sendall(data)
            peer.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while part := peer.recv(65536):
                answer += part
    raised, server.raised = server.raised, None
    if raised is not None:
        raise raised
    assert b"internal error" not in answer, answer


class _Saying:
    """A server that answers everybody the same, and a proxy for all names."""

    def __init__(self) -> None:
        self.words = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            peer, _ = self._listener.accept()
            with peer, contextlib.suppress(OSError):
                peer.settimeout(1)
                request = b""
                while b"\r\n\r\n" not in request and (part := peer.recv(65536)):
                    request += part
                peer.sendall(self.words)


@cache
def saying() -> _Saying:
    return _Saying()


def run_registry(data: bytes) -> None:
    """One whole answer to every request of resolving an image and reading a range."""
    server = saying()
    server.words = data
    options = AccessOptions(
        plain_http=True, retries=0, connect_timeout=1.0, read_timeout=1.0, auth_file=_no_logins()
    )
    reference = parse_reference(f"{server.address}/a:b")
    manifest = image()[0]
    proxy = f"http://{server.address}"  # a Location must not lead out of this process
    for ask in (resolve, lambda repository: _read(repository, manifest.layers[1])):
        with _environment(http_proxy=proxy, https_proxy=proxy, no_proxy=""):
            repository = open_source(reference, options)
        try:
            ask(repository)
        except (SourceError, ImageError, UsageError):
            continue
        finally:
            repository.close()


def _read(repository: Repository, blob: Any) -> None:
    with repository.open_blob(blob, offset=100, length=64) as stream:
        buffer = memoryview(bytearray(64))
        assert stream.readinto(buffer) <= 64


@cache
def _no_logins() -> Path:
    path = scratch() / "logins.json"
    path.write_text("{}")
    return path


def answers() -> list[bytes]:
    manifest = documents()[0]
    size = image()[0].layers[1].size

    def answer(status: str, body: bytes, *headers: str) -> bytes:
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
        return "\r\n".join(lines).encode() + body

    kind = "Content-Type: application/vnd.oci.image.manifest.v1+json"
    realm = 'WWW-Authenticate: Bearer realm="http://t.test/token",service="s",scope="repository:a"'
    return [
        answer("200 OK", manifest, kind, "Docker-Content-Digest: sha256:" + "0" * 64),
        answer("206 Partial Content", bytes(64), f"Content-Range: bytes 100-163/{size}"),
        answer("401 Unauthorized", b"{}", realm),
        answer("200 OK", b'{"token":"abc","expires_in":60}'),
        answer("307 Temporary Redirect", b"", "Location: http://b.test/x"),
        answer("429 Too Many", b'{"errors":[{"code":"A","message":"b"}]}', "Retry-After: 7"),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ]


def requests() -> list[bytes]:
    def post(path: str, document: object) -> bytes:
        body = json.dumps(document).encode()
        return f"POST {path} HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body

    access = {"plain_http": True, "auth_file": "/a"}
    return [
        b"GET /status HTTP/1.0\r\n\r\n",
        post("/mount", {"image": "a.test/b", "directory": "/d", "access": access, "holder": "h"}),
        post("/umount", {"directory": "/d", "lazy": True}),
        post("/pin", {"directory": "/d"}) + b"GET /metrics HTTP/1.1\r\n\r\n",
    ]


def events() -> list[bytes]:
    body = struct.pack("=IBBHQii", EVENT_BYTES, 3, 0, 24, 0x00100000, 5, 6)
    return [(body + struct.pack("=BBHIQQ", 6, 0, 24, 0, 4096, 8192)) * 2]


def run_start_set(data: bytes) -> None:
    """Take the bytes for every kind of file that a search for a start set reads."""
    python: dict[str, bytes | str] = {"bin/python3.11": Program().image(), "bin/node": "python3.11"}
    files: dict[str, bytes | str] = dict.fromkeys(
        ("app", "lib/a.so", "etc/ld.so.cache", "a.py", "a.js", "package.json", "lib/modules"), data
    )
    root, read = tree_of({**python, **files})
    for command in (["/app"], ["python3.11", "a.py"], ["node", "a.js"], [data.decode("latin1")]):
        start_set(root, read, {"config": {"Cmd": command, "Env": ["PATH=/bin"]}})


def start_files() -> list[bytes]:
    program = Program(needed=(b"a.so",), code=1, constants=1, unwinding=1).image()
    return [program[: 20 * 4096], b"#!/app\n", b"from a.b import (c,\nd)\n", b"require('./a')"]


TARGETS: dict[str, Target] = {
    "archive": Target(run_archive, tars, tokens=TAR_TOKENS),
    "config": Target(run_config, documents, tokens=JSON_TOKENS),
    "container": Target(
        run_container,
        lambda: [b'{"id":"a","started":1.5,"attendant":{"pid":1,"start_ticks":2,"boot":"b"}}'],
        (),
        JSON_TOKENS,
    ),
    "control": Target(run_control, requests, (), [b"Content-Length: ", b"-1", *JSON_TOKENS]),
    "docker-config": Target(
        run_docker_config,
        lambda: [
            b'{"auths":{"https://a.test/v1/":{"auth":"%s"}}}' % base64.b64encode(b"u:p"),
            b'{"credsStore":"x","credHelpers":{"a.test":"y"},"auths":{"a.test/b":{"username":"u"}}}',
        ],
        (UsageError, AuthError),
        JSON_TOKENS,
    ),
    "erofs": Target(run_erofs, lambda: [image()[2]]),
    "events": Target(run_events, events, (NodeError,)),
    "frame-table": Target(run_frame_table, frame_tables),
    "gzip": Target(
        lambda data: run_tar(data, "gzip"),
        lambda: [gzip.compress(tar) for tar in tars()],
        tokens=[b"\x1f\x8b\x08\x1f"],
    ),
    "headers": Target(
        run_headers,
        lambda: [
            b'Bearer realm="https://t/x",service="s",scope="a:b:c", Basic realm="r"',
            b"Wed, 21 Oct 2026 07:28:00 GMT",
            b"120",
            b"https://h.test:99/p?q",
        ],
        (FirstreadError,),
        [b"9" * 30, b"+9999", b"[::1", b":99999"],
    ),
    "layer-record": Target(run_layer_record, lambda: [packed()[0]]),
    "layer-record-plain": Target(run_plain_record, plain_records),
    "manifest": Target(run_manifest, documents, tokens=JSON_TOKENS),
    "metadata": Target(run_metadata, lambda: [image()[2]]),
    "metadata-layer": Target(run_metadata_layer, lambda: [image()[1]]),
    "mountinfo": Target(run_mountinfo, lambda: [b"mnt", b"a\\040b - erofs x"], ()),
    "mounts": Target(
        run_mounts,
        lambda: [b'{"mountpoint":"/m","image":"a","digest":"b","access":{},"holders":["h"]}'],
        (),
        JSON_TOKENS,
    ),
    "reference": Target(
        run_reference,
        lambda: [b"a.test:5000/b/c:d@sha256:" + b"0" * 64, b"oci:dir:tag", b"docker-archive:x"],
        (UsageError,),
    ),
    "registry": Target(run_registry, answers, (), [b"\r\n", b"Content-Length: 99999999999\r\n"]),
    "sector": Target(run_sector, lambda: [packed()[2]]),
    "start-set": Target(run_start_set, start_files, (), [b"import ", b"require('", b"\x7fELF"]),
    "tar": Target(run_tar, tars, tokens=TAR_TOKENS),
    "tar-entries": Target(run_tar_entries, tars, tokens=TAR_TOKENS),
    "token": Target(
        run_token,
        lambda: [
            b'Bearer realm="https://t/x",service="s"\n{"token":"a","expires_in":60}',
            b'Basic realm="r"\n{}',
        ],
        (AuthError,),
        [b"1e999", b"-1e308", b'"access_token":"', *JSON_TOKENS],
    ),
    "toml": Target(run_toml, lambda: [b'[cache]\nmax_bytes = "20GiB"\n'], (UsageError, NodeError)),
    "zstd": Target(
        lambda data: run_tar(data, "zstd"),
        lambda: [zstandard.compress(tar) for tar in tars()],
        tokens=[b"\x50\x2a\x4d\x18", b"\x28\xb5\x2f\xfd"],
    ),
}


def damage(data: bytes, others: list[bytes], tokens: list[bytes], rng: random.Random) -> bytes:
    """Return `data` with some bytes changed."""
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        place = rng.randrange(len(damaged) + 1)
        match rng.randrange(7):
            case 0:
                damaged[place : place + 1] = bytes([rng.randrange(256)])
            case 1 if damaged:
                damaged[place % len(damaged)] ^= 1 << rng.randrange(8)
            case 2 if tokens:
                token = rng.choice(tokens)
                damaged[place : place + rng.choice((0, len(token)))] = token
            case 3:
                del damaged[place : place + rng.choice((1, 4, 64, 512))]
            case 4:
                other = rng.choice(others)
                start = rng.randrange(len(other) + 1)
                damaged[place:place] = other[start : start + rng.choice((1, 8, 64, 512))]
            case 5:
                size = rng.choice((1, 2, 4, 8))
                number = rng.choice((0, (1 << 8 * size) - 1, rng.getrandbits(8 * size)))
                damaged[place : place + size] = number.to_bytes(size, "little")
            case 6:
                del damaged[place:]
    return bytes(damaged[: 1 * MiB])
