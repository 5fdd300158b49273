# SPDX-License-Identifier: Apache-2.0
"""The ways to start a container, as data: how each makes its image, and what it runs on a node.

Owns firstread's own modes and the two classic ones; `benchmarks.suite.peers` adds other
snapshotters. Performs nothing. Commands and files are templates with ``$NAME``: see `Mode`.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from benchmarks.places import LAZY, ORIGINAL, offers
from firstread.cli.main import VERBS
from firstread.testing.containerdconfig import containerd_version

Client = Literal["containerd", "run", "classic"]
BY = "@"
"""Between the name of a mode and that of its device, if one is named."""


@dataclass(frozen=True)
class Mode:
    """One way to pull and start.

    Args:
        name: on the command line.
        client: what pulls and starts: the CRI of containerd, ``firstread run``, or
            `benchmarks.classic`.
        setting: one line for the reader of figures.
        snapshotter: its name in containerd.
        tag: of the image in its format, in the registry.
        tailored: the image is made for one workload.
        convert: commands that make and push that image. They know ``$SOURCE``, ``$LAZY`` and
            ``$TARGET`` (images), ``$SOCKET`` (of containerd), ``$WORK`` (a directory), ``$LIST``
            (paths that the workload reads, see `benchmarks.suite.publish`) and ``$TRACE`` (files),
            and ``$FIRSTREAD``, ``$NODE`` (options that name a daemon), ``$WORKLOAD``, ``$UNTIL``
            and ``$COMMAND`` (each several words).
        options: of ``firstread run``.
        daemon: program and options of the snapshotter, with ``$ADDRESS`` (its socket), ``$ROOT``,
            ``$FILES`` (the directory of `files`) and ``$SOCKET``; empty for firstread's and
            containerd's own.
        files: its configuration, name to text, with the same words.
        programs: further ones that it needs in PATH.
        lazy: a start does not need the whole image.
        background: it may fetch the rest of the image while the workload starts.
        present: everything lies on the node before the clock starts.
        device: of firstread's daemon; empty for what it chooses.
        lacks: returns why the mode cannot run, or None.
    """

    name: str
    client: Client
    setting: str
    snapshotter: str = "firstread"
    tag: str = LAZY
    tailored: bool = False
    convert: tuple[tuple[str, ...], ...] = ()
    options: tuple[str, ...] = ()
    daemon: tuple[str, ...] = ()
    files: tuple[tuple[str, str], ...] = ()
    programs: tuple[str, ...] = ()
    lazy: bool = True
    background: bool = False
    present: bool = False
    device: str = ""
    lacks: Callable[[], str | None] = lambda: None

    def missing(self) -> str | None:
        """Return why this mode cannot run on this machine, or None."""
        named = {words[0] for words in (self.daemon, *self.convert) if words}
        named |= {"containerd"} if self.client == "containerd" else set()
        for program in sorted(name for name in named | set(self.programs) if name[0] != "$"):
            if not shutil.which(program):
                return f"{program} is not in PATH"
        if self.daemon and containerd_version()[0] < 2:
            return "it needs containerd 2 first in PATH"
        return self.lacks()


def by_devices(mode: Mode, devices: Sequence[str]) -> list[Mode]:
    """Return a mode of firstread once for each device, others as they are."""
    if not devices or mode.client == "classic" or mode.snapshotter != "firstread":
        return [mode]
    return [
        replace(
            mode,
            name=f"{mode.name}{BY}{device}",
            setting=f"{mode.setting}; by {device}",
            device=device,
        )
        for device in devices
    ]


def _no_verb(*verbs: str) -> str | None:
    absent = [verb for verb in verbs if verb not in VERBS]
    return f"firstread has no command {absent[0]!r}" if absent else None


def _no_option(verb: str, option: str) -> str | None:
    return None if offers(verb, option) else f"firstread {verb} has no option {option}"


_TRACES = ("$TRACE.1", "$TRACE.2")  # one run of a JVM in five does not read 1 % of what others do
_TRACED = (
    *(
        ("$FIRSTREAD", "trace", "$NODE", "--plain-http", "-o", file, "$UNTIL", "$LAZY", "$COMMAND")
        for file in _TRACES
    ),
    (
        *("$FIRSTREAD", "optimize", "--plain-http", "--trace", _TRACES[0], "--trace", _TRACES[1]),
        *("$LAZY", "$TARGET"),
    ),
)
_STATIC = (("$FIRSTREAD", "convert", "--plain-http", "$SOURCE", "$TARGET"),)


def _hot(name: str, client: Client) -> Mode:
    return Mode(
        name,
        client,
        "optimised with two traces of the workload",
        tag="hot",
        tailored=True,
        convert=_TRACED,
        lacks=lambda: _no_verb("trace", "optimize"),
    )


def _static(name: str, client: Client) -> Mode:
    setting = "the start set of the image's own command, without a trace"
    lacks = functools.partial(_no_option, "convert", "--no-hot")
    return Mode(name, client, setting, tag="static", convert=_STATIC, lacks=lacks)


_PRESENT = "all sectors on the node, in the page cache"
_CLASSIC = (
    "3 downloads at a time, verified and unpacked as they come, by igzip and GNU tar; overlay"
)
OWN = (
    Mode("lazy", "containerd", "converted, sectors on demand"),
    _static("static", "containerd"),
    _hot("hot", "containerd"),
    Mode("local", "containerd", _PRESENT, lazy=False, present=True),
    Mode("run-lazy", "run", "converted, sectors on demand, without containerd"),
    _static("run-static", "run"),
    _hot("run-hot", "run"),
    replace(
        _hot("run-hot-all", "run"),
        setting="the same; the rest of the image follows in the background",
        options=("--prefetch", "all"),
        background=True,
        lacks=lambda: _no_verb("trace", "optimize") or _no_option("run", "--prefetch"),
    ),
    Mode("run-local", "run", _PRESENT, lazy=False, present=True),
)
WHOLE = (
    Mode("overlayfs", "containerd", "containerd as it comes", "overlayfs", ORIGINAL, lazy=False),
    Mode("classic", "classic", _CLASSIC, "", ORIGINAL, lazy=False),
)
