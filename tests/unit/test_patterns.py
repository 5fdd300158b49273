# SPDX-License-Identifier: Apache-2.0
"""Regular expressions over the text of others take time that grows with the text, and no faster.

All of them are found in the source, so that a new one has to be put into one of the two tables.
Times are those of the processor: 64 KiB of the worst text, which no other thread waits out.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest
from urllib3 import HTTPResponse

import firstread
from firstread.convert.acl import parse_acl
from firstread.convert.pax import parse_records
from firstread.daemon.logs import JsonFormatter
from firstread.errors import FirstreadError, from_os_error
from firstread.layouts import tarindex
from firstread.mountinfo import unescaped
from firstread.nesting import MAX_DEPTH, is_deep
from firstread.oci import gojson
from firstread.oci.platform import parse_platform
from firstread.oci.reference import parse_reference
from firstread.redact import redact
from firstread.registry import hosts
from firstread.registry.bearer import parse_challenge
from firstread.registry.faults import from_response, retry_after
from firstread.registry.referrerlists import next_page
from firstread.run import parse, runtime
from firstread.snapshotter.filters import parse_filters
from firstread.snapshotter.service import status_of
from firstread.traces.tracefile import unescape
from firstread.tune.link import parse_link
from firstread.units import KiB, parse_size

TOP = Path(firstread.__file__).parent
SIZE = 64 * KiB
LIMIT_S = 0.05

Measured = Callable[[str], object]


def using(name: str, method: str) -> Measured:
    """Return what one pattern does with a text; of bytes, if it is a pattern of those."""
    module, _, attribute = name.rpartition(".")
    pattern = getattr(import_module(f"firstread.{module}"), attribute)

    def apply(text: str) -> object:
        return getattr(pattern, method)(text if isinstance(pattern.pattern, str) else text.encode())

    return apply


def error_body(text: str) -> object:
    body = json.dumps({"errors": [{"code": "X", "message": text}]}).encode()
    return said(body)


def said(body: bytes) -> object:
    response = HTTPResponse(body=io.BytesIO(body), status=500, preload_content=False)
    return from_response(response, "cannot", "https://r.example/", ["secret", "aaaaa"])


def log_line(text: str) -> object:
    record = logging.makeLogRecord({"msg": text, "fields": {"a": text, "b": [text]}})
    return JsonFormatter().format(record)


def filter_of(text: str) -> object:
    for expression in (text, f'labels."a"=={text}', f"name~={text}", f"name~=/{text}/"):
        with contextlib.suppress(FirstreadError):
            parse_filters([expression])(lambda path: text)
    return None


# What sees the text of others: registries, images, clients, containers, files of other programs.
MEASURED: dict[str, Measured] = {
    "convert.acl._LINE": lambda text: parse_acl(text.encode()),
    "convert.acl._SEPARATOR": lambda text: parse_acl(text.encode()),
    "convert.layertask._SECRET_NAME": using("convert.layertask._SECRET_NAME", "fullmatch"),
    "convert.pax._DECIMAL": using("convert.pax._DECIMAL", "fullmatch"),
    "convert.pax._TIME": using("convert.pax._TIME", "fullmatch"),
    "convert.record._KEY": using("convert.record._KEY", "fullmatch"),
    "convert.stream._GZIP": using("convert.stream._GZIP", "match"),
    "convert.stream._ZSTD": using("convert.stream._ZSTD", "match"),
    "engines.naming._TEXT": using("engines.naming._TEXT", "fullmatch"),
    "mounts.startspans._CONTEXT": using("mounts.startspans._CONTEXT", "fullmatch"),
    "mountinfo._OCTAL": lambda text: unescaped(text.encode()),
    "nesting._OTHER": lambda text: is_deep("[" * (MAX_DEPTH + 1) + text),
    "registry.auth._HELPER_NAME": using("registry.auth._HELPER_NAME", "fullmatch"),
    "registry.bearer._ESCAPED": lambda text: parse_challenge(f'Bearer realm="{text}"'),
    "registry.bearer._PART": lambda text: parse_challenge(f"Bearer {text}"),
    "registry.bearer._VISIBLE": using("registry.bearer._VISIBLE", "fullmatch"),
    "layouts.dockerarchive._BLOB": using("layouts.dockerarchive._BLOB", "fullmatch"),
    "oci.gojson._ESCAPE": lambda text: gojson.load(json.dumps(text + "\ud800")),
    "registry.hosts._DURATION": hosts._duration,
    "registry.hosts._DURATIONS": hosts._duration,
    "registry.hosts._HOST": using("registry.hosts._HOST", "fullmatch"),
    "registry.hosts._TOKEN": using("registry.hosts._TOKEN", "fullmatch"),
    "registry.hosts._VALUE": using("registry.hosts._VALUE", "fullmatch"),
    "layouts.ingest._TEMPORARY": using("layouts.ingest._TEMPORARY", "fullmatch"),
    "oci.platform._WORD": parse_platform,
    "oci.untrusted._MISSING": using("oci.untrusted._MISSING", "fullmatch"),
    "oci.reference._DIGEST": lambda text: parse_reference(f"a@{text}"),
    "oci.reference._FOREIGN": parse_reference,
    "oci.reference._HOST": lambda text: parse_reference(f"{text}/a"),
    "oci.reference._REPOSITORY": lambda text: parse_reference(f"r.example/{text}"),
    "oci.reference._TAG": lambda text: parse_reference(f"oci:a:{text}"),
    "registry.referrerlists._RELATION": lambda text: next_page(f"<a>;{text}"),
    "registry.referrerlists._TARGET": next_page,
    "registry.api._CONTENT_RANGE": using("registry.api._CONTENT_RANGE", "fullmatch"),
    "registry.connections._CHUNK_SIZE": using("registry.connections._CHUNK_SIZE", "fullmatch"),
    "registry.upload._RANGE": using("registry.upload._RANGE", "fullmatch"),
    "redact._ADDRESS": using("redact._ADDRESS", "search"),
    "redact._PATTERNS": redact,
    "redact._URLS": redact,
    "run.containers._ID": using("run.containers._ID", "fullmatch"),
    "run.overlay._PLAIN_PATH": using("run.overlay._PLAIN_PATH", "fullmatch"),
    "run.parse._HOSTNAME": parse.check_hostname,
    "run.parse._NAME": using("run.parse._NAME", "fullmatch"),
    "run.parse.parse_signal": parse.parse_signal,  # of the image, too
    "run.runtime._NOT_INVOKABLE": lambda text: runtime._create_error("a", text, "runc", 1),
    "run.runtime._STATED": runtime._is_not_found,
    "sectors.attached._GENERATION": using("sectors.attached._GENERATION", "fullmatch"),
    "sectors.hotnote._NOTE": using("sectors.hotnote._NOTE", "fullmatch"),
    "sectors.hotnote._RANGE": using("sectors.hotnote._RANGE", "fullmatch"),
    "sectors.storelayout._SECTOR_NAME": using("sectors.storelayout._SECTOR_NAME", "fullmatch"),
    "snapshotter.filters._ATOM": filter_of,
    "snapshotter.filters._ESCAPE": lambda text: filter_of(f'"{text}"'),
    "snapshotter.filters._FIELD": filter_of,
    "snapshotter.filters._OPERATOR": filter_of,
    "snapshotter.filters._PATTERN": filter_of,
    "snapshotter.filters._QUOTED": filter_of,
    "starts.jsmodules._REQUIRED": using("starts.jsmodules._REQUIRED", "findall"),
    "starts.pymodules._APPLICATION": using("starts.pymodules._APPLICATION", "fullmatch"),
    "starts.pymodules._FROM": using("starts.pymodules._FROM", "match"),
    "starts.pymodules._NAME": using("starts.pymodules._NAME", "fullmatch"),
    "starts.pymodules._STRINGS": using("starts.pymodules._STRINGS", "split"),
    "starts.pymodules._VERSION": using("starts.pymodules._VERSION", "fullmatch"),
    "snapshotter.filters._REPEAT": using("snapshotter.filters._REPEAT", "findall"),
    "snapshotter.filters._REPEATED_GROUP": using("snapshotter.filters._REPEATED_GROUP", "search"),
    "snapshotter.filters._SPACE": filter_of,
    "snapshotter.filters._VALUE": filter_of,
    "snapshotter.filters._value": filter_of,
    "snapshotter.filters.holds": filter_of,
    "traces.tracefile._ESCAPED": unescape,
    "tune.link._LINK": parse_link,
    "units._SIZE": parse_size,
}
# Measured besides, since several patterns, or loops, work together in it.
TOGETHER: dict[str, Measured] = {
    "an error of a registry, as JSON": error_body,
    "an error of a registry": lambda text: said(text.encode()),
    "a pax header of an archive": lambda text: tarindex._pax_records(text.encode()),
    "a pax header of a layer": lambda text: parse_records(text.encode()),
    "a wait that is asked for": lambda text: retry_after({"Retry-After": text}),
    "a line of the log": log_line,
    "an error for a client": lambda text: status_of(from_os_error(OSError(5, text), text)),
}
# What sees what we, or whoever gives the command, wrote; or a few characters of a program's answer.
OWN = {
    "doctor.installable.containerd_major": "what containerd --version prints",
    "cli.logs.convert": "the command line",
    "config._choices": "what the configuration says, which root wrote",
    "device.scanners._MARK": "what the kernel says of a descriptor",
    "convert.stream._REFUSED": "matched at the start of a layer, without repetition",
    "run.parse.parse_cpus": "the command line",
    "run.readiness.parse_pattern": "the command line; lines of output are cut first",
    "run.parse.parse_moment": "the command line",
    "run.parse.parse_device": "the command line",
    "run.parse.parse_extra_host": "the command line",
    "run.parse.parse_rlimit": "the command line",
    "snapshotter.tomltext._VALUE": "containerd's configuration, which root wrote",
    "snapshotter.tomltext.lines_of": "containerd's configuration, which root wrote",
}
PIECES = [
    *'a1. "\',=:/\\-<[(?*|;\té', "a.", "a-", "a__", 'a="', '\\"', 'a="\\', "Bearer ", ", Basic ",
    "require('", "from .", "import a,", '"""',
    "a,", "http://", "http://a", "://a", "/v2", "/v2?", "a.a://", "Basic\t", "password=", "'auth':",
    '"auth" ', "'auth':\"", "Authorization: Basic aaaaaaa ", "a?", "<>;", "<a>;rel", "<a>; ",
    '<a>;"', ";rel=", "; rel ", "executable file ", 'exec: "', 'exec: "": stat ', "user:a:",
    ",u::rwx", "'token':'\\", '\\"token\\":\\"', "token='", "_token=",
    "aaaaaaaaaaaaaaaaaaaaaaaa_secret", "authorization: basic ", "://a@",
    "1s", "1.", ".1ms", "1.1h1", "a*", "(a|a)", "(a*)*", "a?a", "[a]*", "\\n", "\n", "x\n ",
    "5 a=\n",
]  # fmt: skip


def repeated(piece: str) -> str:
    return (piece * (SIZE // len(piece) + 1))[:SIZE]


def cpu_seconds(measured: Measured, text: str) -> float:
    """Return the least of three times: the others had a garbage collection in them."""
    times = []
    for _ in range(3):
        begun = time.thread_time()
        with contextlib.suppress(FirstreadError):
            measured(text)
        times.append(time.thread_time() - begun)
        if times[-1] < LIMIT_S:
            break
    return min(times)


ONCE = {measured: name for name, measured in reversed({**MEASURED, **TOGETHER}.items())}


@pytest.mark.parametrize("measured", ONCE, ids=ONCE.values())
def test_the_worst_text_takes_moments(measured: Measured) -> None:
    slow = {
        piece: seconds
        for piece in PIECES
        if (seconds := cpu_seconds(measured, repeated(piece))) >= LIMIT_S
    }
    assert slow == {}


def patterns() -> Iterator[str]:
    """Yield where the source has a regular expression: module, and the name or function."""
    for path in sorted(TOP.rglob("*.py")):
        parts = path.relative_to(TOP).with_suffix("").parts
        if parts[0] != "testing":
            yield from (f"{'.'.join(parts)}.{owner}" for owner in _owners(path))


def _owners(path: Path) -> Iterator[str]:
    pending: list[tuple[ast.AST, str]] = [(ast.parse(path.read_text()), "")]
    while pending:
        node, owner = pending.pop()
        pending += [(child, _owner(child) or owner) for child in ast.iter_child_nodes(node)]
        called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        if called.startswith("re.") and called != "re.escape":
            yield owner


def _owner(node: ast.AST) -> str:
    if isinstance(node, ast.FunctionDef):
        return node.name
    target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
    return target.id if isinstance(target, ast.Name) and target.id.isupper() else ""


def test_no_pattern_is_forgotten() -> None:
    assert set(patterns()) == MEASURED.keys() | OWN.keys()
    assert not MEASURED.keys() & OWN.keys()


def test_no_module_hides_its_patterns() -> None:
    """They are found by the name of the module ``re``."""
    for path in TOP.rglob("*.py"):
        assert not re.search(r"^from re import|import re as", path.read_text(), re.MULTILINE), path
