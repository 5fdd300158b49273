# SPDX-License-Identifier: Apache-2.0
"""Other lazy snapshotters as modes: each with its defaults, and with its best settings.

Owns their command lines and configurations, taken from their manuals. No Debian package has them;
the suite leaves out those whose programs are not in PATH.
"""

from __future__ import annotations

import json
from dataclasses import replace

from benchmarks.places import ORIGINAL
from benchmarks.suite.modes import Mode

CTR = ("ctr", "--address", "$SOCKET", "images")
FETCH = (*CTR, "pull", "--local", "--plain-http", "$SOURCE")
PUSH = (*CTR, "push", "--local", "--plain-http", "$TARGET")
CTR_REMOTE = ("ctr-remote", "--address", "$SOCKET", "images")
OPTIMIZE = (*CTR_REMOTE, "optimize", "--oci", "--net-host", "$WORKLOAD")
RECORD = (*OPTIMIZE, "--record-out", "$LIST", "$SOURCE", "recorded")
"""Paths that a workload reads, found by stargz's own tool, for all peers that want a list."""


def _stargz() -> list[Mode]:
    convert = (FETCH, (*CTR_REMOTE, "convert", "--estargz", "--oci", "$SOURCE", "$TARGET"), PUSH)
    daemon = ("containerd-stargz-grpc", "--address", "$ADDRESS", "--root", "$ROOT")
    default = Mode(
        "stargz",
        "containerd",
        "converted without a workload profile, default configuration",
        "stargz",
        "estargz",
        convert=convert,
        daemon=daemon,
    )
    best = replace(
        default,
        name="stargz-best",
        setting="optimised for the workload, FUSE passthrough",
        tag="estargz-optimized",
        tailored=True,
        convert=(FETCH, (*OPTIMIZE, "$SOURCE", "$TARGET"), PUSH),
        daemon=(*daemon, "--config", "$FILES/stargz.toml"),
        files=(("stargz.toml", "[fuse]\npassthrough = true\n"),),
    )
    return [default, best]


_SOCI_PREFETCH = """
[content_store]
  type = "soci"
[prefetch]
  enable = true
"""
_SOCI_PARALLEL = """
[content_store]
  type = "containerd"
  containerd_address = "$SOCKET"
[pull_modes.soci_v1]
  enable = false
[pull_modes.soci_v2]
  enable = false
[pull_modes.parallel_pull_unpack]
  enable = true
  max_concurrent_downloads = -1
  max_concurrent_downloads_per_image = 10
  concurrent_download_chunk_size = "8mb"
  max_concurrent_unpacks = -1
  max_concurrent_unpacks_per_image = 10
  discard_unpacked_layers = true
"""
"""docs/parallel-mode.md of SOCI."""


def _soci() -> list[Mode]:
    make = ("soci", "--address", "$SOCKET", "--root", "$WORK", "convert")
    daemon = ("soci-snapshotter-grpc", "--address", "$ADDRESS", "--root", "$ROOT")
    configured = (*daemon, "--config", "$FILES/soci.toml")
    default = Mode(
        "soci",
        "containerd",
        "default: layers below 10 MiB have no index",
        "soci",
        "soci",
        convert=(FETCH, (*make, "$SOURCE", "$TARGET"), PUSH),
        daemon=daemon,
    )
    everything = ("--min-layer-size", "0")
    indexed = replace(
        default,
        name="soci-all",
        setting="all layers have an index",
        tag="soci-all",
        convert=(FETCH, (*make, *everything, "$SOURCE", "$TARGET"), PUSH),
    )
    listed = (*make, *everything, "--prefetch-files-json", "$LIST.json", "$SOURCE", "$TARGET")
    best = replace(
        default,
        name="soci-best",
        setting="all layers have an index; prefetches the files that the workload reads",
        tag="soci-optimized",
        tailored=True,
        convert=(FETCH, RECORD, listed, PUSH),
        daemon=configured,
        files=(("soci.toml", _SOCI_PREFETCH),),
        programs=("ctr-remote",),
    )
    parallel = replace(
        default,
        name="soci-parallel",
        setting="parallel pull and unpack of the original image",
        tag=ORIGINAL,
        convert=(),
        daemon=configured,
        files=(("soci.toml", _SOCI_PARALLEL),),
        lazy=False,
    )
    return [default, indexed, best, parallel]


_NYDUS = """
version = 1
root = "$ROOT"
address = "$ADDRESS"
daemon_mode = "dedicated"
cleanup_on_close = true
[system]
enable = false
[daemon]
nydusd_path = "$FILES/nydusd"
nydusd_config = "$FILES/nydusd.json"
fs_driver = "fusedev"
recover_policy = "none"
threads_number = 4
[log]
log_to_stdout = true
level = "info"
[metrics]
address = ""
"""
"""misc/snapshotter/config.toml of nydus-snapshotter with our paths, and without restart, cgroup and
metrics."""
_NYDUSD = """\
#!/bin/sh
exec nydusd "$@" --rlimit-nofile 0
"""
"""nydusd wants a million open files, and ends where it may not raise its limit."""


def _nydusd(*, prefetch: bool, everything: bool = True) -> tuple[tuple[str, str], ...]:
    """Return the files: misc/snapshotter/nydusd-config.fusedev.json, for plain HTTP."""
    fetch = {"threads_count": 8, "merging_size": 1 << 20, "prefetch_all": everything}
    registry = {"timeout": 5, "connect_timeout": 5, "retry_limit": 2, "scheme": "http"}
    config = {
        "device": {
            "backend": {"type": "registry", "config": registry},
            "cache": {"type": "blobcache"},
        },
        "mode": "direct",
        "digest_validate": False,
        "iostats_files": False,
        "enable_xattr": True,
        "amplify_io": 1 << 20,
        "fs_prefetch": {"enable": prefetch, **(fetch if prefetch else {})},
    }
    return ("nydus.toml", _NYDUS), ("nydusd.json", json.dumps(config)), ("nydusd", _NYDUSD)


def _nydus() -> list[Mode]:
    make = ("nydusify", "convert", "--source", "$SOURCE", "--target", "$TARGET", "--plain-http")
    convert = (*make, "--source-insecure", "--target-insecure", "--work-dir", "$WORK")
    default = Mode(
        "nydus",
        "containerd",
        "as shipped: prefetches everything with 8 threads",
        "nydus",
        "nydus",
        convert=(convert,),
        daemon=("containerd-nydus-grpc", "--config", "$FILES/nydus.toml"),
        files=_nydusd(prefetch=True),
        programs=("nydusd", "nydus-image"),
        background=True,
    )
    on_demand = replace(
        default,
        name="nydus-lazy",
        setting="without prefetch",
        files=_nydusd(prefetch=False),
        background=False,
    )
    best = replace(
        default,
        name="nydus-best",
        setting="prefetches the files that the workload reads",
        tag="nydus-optimized",
        tailored=True,
        convert=(FETCH, RECORD, (*convert, "--prefetch-patterns")),
        files=_nydusd(prefetch=True, everything=False),
        programs=(*default.programs, "ctr-remote"),
        background=False,
    )
    return [default, on_demand, best]


PEERS = (*_stargz(), *_soci(), *_nydus())
