# SPDX-License-Identifier: Apache-2.0
"""The same image, link and containerd: firstread beside other lazy snapshotters.

Owns the commands that convert, pull and run the image with each of them, as its own manual says. No
Debian package has them: the benchmark leaves out those that are not in PATH, and its setting says
so. It needs containerd 2, whose own client pulls lazily for all.

Each run is a new node: containerd, snapshotter and their directories. The clock runs from the start
of the client that pulls to the line that the workload prints. Invariant: a run that has fetched the
whole image was not lazy and counts as a failure; bytes are those that the registry sent.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.images.build import default_cache, read_layers
from benchmarks.places import LAZY, ORIGINAL, storage, warm
from benchmarks.pods import PAUSE, READY, Site, far_registry, publish_pods
from benchmarks.report import Section, page
from benchmarks.run import LARGE, MB, MBIT_S, RTT_S, SERVER
from benchmarks.scratch import scratch_directory
from benchmarks.setting import describe
from firstread.run.overlay import unmount_below
from firstread.testing.containerd import Containerd
from firstread.testing.containerdconfig import containerd_version
from firstread.testing.patience import PATIENCE_S
from firstread.testing.registry import DockerRegistry

NAME = "peers"
RUNS = 3
PULL_S = 900.0
DOCS = Path(__file__).parents[1] / "docs/peers.md"
HEAD = """\
# Comparison with other lazy snapshotters

`python -m benchmarks.peers --docs` writes this page. It needs the others and containerd 2 in PATH;
no Debian package has them. Each converts the same image, and pulls and runs it as its manual says.
"""
NOTE = """
A sector file holds a prefix of its sector, so a read near the end fetches everything before it. A
workload that reads little of many sectors fetches more bytes here than with a snapshotter that
fetches chunks of single files. A workload that reads more needs fewer requests, and no later read
passes through FUSE.
"""
WORKLOADS: dict[str, tuple[str, ...]] = {
    "a web server": SERVER,
    "numpy, scipy and pandas are imported": (),  # the command of the image
}


@dataclass(frozen=True)
class Peer:
    """A snapshotter.

    Args:
        name: of it in containerd.
        tag: of the image in its format.
        daemon: its program and options, with ``SOCKET`` and ``ROOT`` for the paths; empty for ours
            and containerd's own.
        convert: commands that make and push the image, with ``SOURCE`` and ``TARGET``; the client
            has containerd's address in its environment.
        pull: command that pulls ``IMAGE``.
        lazy: it does not fetch the whole image.
    """

    name: str
    tag: str
    daemon: tuple[str, ...] = ()
    convert: tuple[tuple[str, ...], ...] = ()
    pull: tuple[str, ...] = ("ctr", "images", "pull", "--plain-http", "IMAGE")
    lazy: bool = True

    def missing(self) -> str | None:
        """Return a program that is not in PATH."""
        programs = {command[0] for command in (self.daemon, self.pull, *self.convert) if command}
        return next((name for name in sorted(programs) if not shutil.which(name)), None)


_FETCH = ("ctr", "images", "pull", "--local", "--plain-http", "SOURCE")
_PUSH = ("ctr", "images", "push", "--local", "--plain-http", "TARGET")

PEERS = {
    "overlayfs": Peer("overlayfs", ORIGINAL, lazy=False),
    "firstread": Peer(
        "firstread",
        LAZY,
        pull=("ctr", "images", "pull", "--plain-http", "--snapshotter", "firstread", "IMAGE"),
    ),
    "stargz": Peer(
        "stargz",
        "estargz",
        ("containerd-stargz-grpc", "--address", "SOCKET", "--root", "ROOT"),
        (
            _FETCH,
            ("ctr-remote", "images", "convert", "--estargz", "--oci", "SOURCE", "TARGET"),
            _PUSH,
        ),
        ("ctr-remote", "images", "rpull", "--plain-http", "IMAGE"),
    ),
    "soci": Peer(
        "soci",
        "soci",
        ("soci-snapshotter-grpc", "--address", "SOCKET", "--root", "ROOT"),
        (_FETCH, ("soci", "--root", "ROOT", "convert", "SOURCE", "TARGET"), _PUSH),
        ("ctr", "images", "pull", "--plain-http", "--snapshotter", "soci", "IMAGE"),
    ),
}


@dataclass
class Ready:
    """A run that became ready; seconds from the start of the pull.

    Args:
        pulled_s: the client has pulled.
        ready_s: the workload says so.
        sent_bytes: that the registry has sent.
        requests: that it has answered.
    """

    pulled_s: float
    ready_s: float
    sent_bytes: int
    requests: int

    def __str__(self) -> str:
        return (
            f"{self.ready_s:.1f} s (pull {self.pulled_s:.1f}), {self.sent_bytes / MB:.1f} MB"
            f" in {self.requests} requests"
        )


def measure() -> Section:
    """Every installed snapshotter, with both workloads."""
    if containerd_version()[0] < 2:
        raise RuntimeError("this takes containerd 2 first in PATH")
    peers = {name: peer for name, peer in PEERS.items() if not peer.missing()}
    publish_pods(LARGE)
    with scratch_directory() as scratch:
        with DockerRegistry(storage=storage()) as registry:
            for peer in peers.values():
                _convert(peer, Site(registry, registry.host, scratch))
        title = f"Beside other snapshotters, at {MBIT_S} Mbit/s and {RTT_S * 1000:.0f} ms"
        section = Section(NAME, title, describe(scratch))
        with far_registry() as (link, registry, host):
            section.setting["link"] = f"{link}; {link.measure()}"
            section.setting["runs"] = f"median of {RUNS}, each on a new node; overlayfs: 1"
            section.setting["versions"] = "; ".join(_versions(peers))
            for name in PEERS.keys() - peers.keys():
                section.setting[name] = f"left out, {PEERS[name].missing()} is not here"
            section.start()
            site = Site(registry, host, scratch)
            for workload, command in WORKLOADS.items():
                found = {name: _middle(site, peer, command) for name, peer in peers.items()}
                ours = found.pop("firstread")
                for name, ready in found.items():
                    section.add(
                        f"{workload}: {name} takes longer",
                        ready.ready_s / ours.ready_s,
                        "x",
                        None,
                        f"{name} {ready}; firstread {ours}",
                    )
    return section


def _convert(peer: Peer, site: Site) -> None:
    """Put the image into the registry in the format of `peer`."""
    tags = storage() / f"docker/registry/v2/repositories/bench/{LARGE}/_manifests/tags"
    if not peer.convert or (tags / peer.tag).exists():
        return
    with _node(site, peer, f"convert-{peer.name}") as node:
        root = str(site.scratch / "convert")
        names = {"SOURCE": site.image(ORIGINAL), "TARGET": site.image(peer.tag), "ROOT": root}
        for command in peer.convert:
            _run(node, command, names)


def _middle(site: Site, peer: Peer, command: Sequence[str]) -> Ready:
    runs = [_start(site, peer, command) for _ in range(RUNS if peer.lazy else 1)]
    return sorted(runs, key=lambda run: run.ready_s)[len(runs) // 2]


def _start(site: Site, peer: Peer, command: Sequence[str]) -> Ready:
    """Pull and run the image on a new node."""
    image = site.image(peer.tag)
    with _node(site, peer, "node") as node:
        warm(LARGE)
        site.registry.forget()
        began = time.monotonic()
        _run(node, peer.pull, {"IMAGE": image})
        pulled = time.monotonic()
        options = ("--rm", "--net-host", "--snapshotter", peer.name)
        run = ["ctr", "--address", str(node.socket), "run", *options, image, "one", *command]
        with subprocess.Popen(run, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            if not any(line.strip() == READY for line in process.stdout):
                raise RuntimeError(f"{image} does not become ready with {peer.name}")
            ready = time.monotonic()
            counts = site.registry.counts
            found = Ready(
                pulled - began,
                ready - began,
                counts.bytes_of("GET"),
                counts.requests_of("GET"),
            )
            _end(node, process)
    whole = sum(layer.size for layer in read_layers(default_cache(), LARGE))
    if peer.lazy and found.sent_bytes > whole / 2:
        raise RuntimeError(f"{peer.name} was not lazy: {found}")
    return found


def _end(node: Containerd, process: subprocess.Popen[str]) -> None:
    node.ctr("tasks", "kill", "--signal", "SIGKILL", "one", namespace="default")
    process.wait(PATIENCE_S)


@contextlib.contextmanager
def _node(site: Site, peer: Peer, name: str) -> Iterator[Containerd]:
    """Yield a new node with the daemon of `peer`."""
    scratch = site.scratch / name
    scratch.mkdir()
    socket, root = scratch / "peer.sock", scratch / "peer"
    proxies = {peer.name: socket} if peer.daemon else {}
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        if peer.daemon:
            places = {"SOCKET": str(socket), "ROOT": str(root)}
            log = stack.enter_context((scratch / "peer.log").open("wb"))
            daemon = subprocess.Popen(
                [places.get(word, word) for word in peer.daemon], stdout=log, stderr=log
            )
            stack.callback(_stop, daemon)
            stack.callback(unmount_below, root)  # its daemon leaves them
            _await(socket.exists)
        pause = f"{site.host}/{PAUSE}"
        yield stack.enter_context(Containerd(scratch, pause, proxies=proxies))


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(PATIENCE_S)


def _await(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError("a snapshotter does not start")
        time.sleep(0.05)


def _run(node: Containerd, command: Sequence[str], names: dict[str, str]) -> None:
    program, *arguments = (names.get(word, word) for word in command)
    done = subprocess.run(
        [program, "--address", str(node.socket), *arguments],
        capture_output=True,
        text=True,
        timeout=PULL_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")


def _versions(peers: dict[str, Peer]) -> Iterator[str]:
    yield f"containerd {'.'.join(map(str, containerd_version()))}"
    for peer in peers.values():
        if peer.daemon:
            option = "-version" if "stargz" in peer.daemon[0] else "--version"
            done = subprocess.run(
                [peer.daemon[0], option], capture_output=True, text=True, check=False
            )
            yield (done.stdout or done.stderr).strip().splitlines()[0]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--docs", action="store_true", help=f"write docs/{DOCS.name}")
    options = parser.parse_args()
    section = measure()
    if options.docs:
        written = page({NAME: section.to_dict()}, [NAME]).partition("\n## ")[2]
        DOCS.write_text(f"{HEAD}\n## {written}{NOTE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
