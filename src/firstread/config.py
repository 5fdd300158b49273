# SPDX-License-Identifier: Apache-2.0
"""The configuration of a node: a TOML file, as values.

Owns names, defaults and checks of settings; an option of the command line overrides the file.
Invariant: a `Config` is valid, holds no secret, and survives a round trip through JSON: the
supervisor hands it to every fetcher.

A file, with the defaults::

    [node]
    device = "auto"                 # "fanotify", "flat", "loop", "mixed", "nbd" or "fuse";
                                    # "auto": the first that works
    metrics = ""                    # HOST:PORT for Prometheus
    workers = 4                     # requests at a time to one image repository
    health_s = 15.0                 # without a heartbeat, a fetcher counts as hung
    anchor_s = 300.0                # that reads wait for another daemon after all have died
    on_stop = "fail"                # or "wait": reads treat a stop (SIGTERM) like a death
    log_level = "INFO"

    [policy]                        # of a mount without its own
    stall_s = 300.0                 # how long a read waits for a failing source
    on_corruption = "refetch"       # "refetch", "quarantine" or "fail"
    require = ""                    # "lazy": never mount in another way

    [cache]
    max_bytes = 0                   # of all sectors and metadata, such as "20GiB"; 0: no limit
    max_files = 0                   # likewise, in files, each an inode; 0: no limit
    min_free_bytes = 0              # that the file system of the store keeps free; 0: no limit
    verify = "once"                 # check present sectors on their first read after a mount, if
                                    # this fetcher has not checked or fetched them, or somebody has
                                    # written to them since; "mount": after each mount; "never"

    [prefetch]                      # of a mount and an image that say nothing
    mode = "hot"                    # "none", "hot": what a start reads, or "all" of the image
    rate = 0                        # bytes/s of what "all" fetches in the background; 0: no limit
    quiet_s = 10.0                  # without a read of an absent sector, before "all" begins
    [trace]
    collect = ""                    # directory for a trace of every cold start, see docs/traces.md

    [registry]
    hosts_dirs = ["/etc/containerd/certs.d"]  # HOST/hosts.toml below, as containerd has them
    credentials_dir = ""            # of files HOST.json, see docs/registries.md
    connect_timeout_s = 5.0         # until a connection is established
    first_byte_timeout_s = 20.0     # until an answer begins
    stall_timeout_s = 20.0          # until its next bytes arrive
    answer_timeout_s = 60.0         # until a manifest, a list or a token is complete
    least_rate = 256                # bytes/s of an answer, over any stall_timeout_s of waiting
    hedge_share = 0.05              # of requests that may go to two endpoints
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_type_hints

import msgspec

from firstread.errors import UsageError
from firstread.units import MAX_SECONDS, parse_size
from firstread.userdirs import configuration
from firstread.wholefile import read_limited

DeviceName = Literal["auto", "fanotify", "flat", "loop", "mixed", "nbd", "fuse"]
DEVICES = get_args(DeviceName)[1:]  # as `firstread.daemon.choice` has them, the best first
MAX_CONFIG_BYTES = 1 << 20
MAX_WORKERS = 64  # as in the option of the command line


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of the file; missing settings have their defaults."""

    def _check(self, name: str, *, least: int) -> None:
        if getattr(self, name) < least:
            raise ValueError(f"{name} must be {least} at least")

    def _check_seconds(self, name: str, *, least: float) -> None:
        if not least <= getattr(self, name) < MAX_SECONDS:
            raise ValueError(f"{name} must be {least:g} at least, and below {MAX_SECONDS:,.0f}")

    def _take_size(self, name: str) -> None:
        """Replace a human-readable size by its number of bytes."""
        value = getattr(self, name)
        if isinstance(value, str):
            try:
                msgspec.structs.force_setattr(self, name, parse_size(value))
            except UsageError as exc:
                raise ValueError(f"{name}: {exc.message}") from exc
        self._check(name, least=0)


class NodeTable(_Table, frozen=True):
    """Settings of the daemon's processes."""

    device: DeviceName = "auto"
    metrics: str = ""
    workers: int = 4
    health_s: float = 15.0
    anchor_s: float = 300.0
    on_stop: Literal["fail", "wait"] = "fail"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    def __post_init__(self) -> None:
        self._check("workers", least=1)
        if self.workers > MAX_WORKERS:
            raise ValueError(f"workers must be {MAX_WORKERS} at most")
        self._check_seconds("health_s", least=2)
        self._check_seconds("anchor_s", least=0)


class PolicyTable(_Table, frozen=True):
    """Policies of a mount without its own."""

    stall_s: float = 300.0
    on_corruption: Literal["refetch", "quarantine", "fail"] = "refetch"
    require: Literal["", "lazy"] = ""

    def __post_init__(self) -> None:
        self._check_seconds("stall_s", least=0)


class CacheTable(_Table, frozen=True):
    """Limits for images, in bytes and files (0: none), and the time of checks."""

    max_bytes: int | str = 0
    max_files: int = 0
    min_free_bytes: int | str = 0
    verify: Literal["mount", "once", "never"] = "once"

    def __post_init__(self) -> None:
        self._take_size("max_bytes")
        self._take_size("min_free_bytes")
        self._check("max_files", least=0)


class PrefetchTable(_Table, frozen=True):
    """How much a node fetches that nobody reads yet."""

    mode: Literal["none", "hot", "all"] = "hot"
    rate: int | str = 0
    quiet_s: float = 10.0

    def __post_init__(self) -> None:
        self._take_size("rate")
        self._check_seconds("quiet_s", least=0)


class RegistryTable(_Table, frozen=True):
    """Settings for reaching registries."""

    hosts_dirs: list[str] = msgspec.field(default_factory=lambda: ["/etc/containerd/certs.d"])
    credentials_dir: str = ""
    connect_timeout_s: float = 5.0
    first_byte_timeout_s: float = 20.0
    stall_timeout_s: float = 20.0
    answer_timeout_s: float = 60.0
    least_rate: int | str = 256
    hedge_share: float = 0.05

    def __post_init__(self) -> None:
        for name in ("connect_timeout_s", "first_byte_timeout_s", "stall_timeout_s"):
            self._check_seconds(name, least=0.001)
        self._check_seconds("answer_timeout_s", least=0.001)
        self._take_size("least_rate")
        if not 0 <= self.hedge_share <= 1:
            raise ValueError("hedge_share must be from 0 to 1")


class TraceTable(_Table, frozen=True):
    """Traces that the daemon keeps."""

    collect: str = ""

    def __post_init__(self) -> None:
        if self.collect and not Path(self.collect).is_absolute():
            raise ValueError("collect must be an absolute path")


class Config(_Table, frozen=True):
    """All tables."""

    node: NodeTable = NodeTable()
    policy: PolicyTable = PolicyTable()
    cache: CacheTable = CacheTable()
    prefetch: PrefetchTable = PrefetchTable()
    trace: TraceTable = TraceTable()
    registry: RegistryTable = RegistryTable()

    @classmethod
    def from_builtins(cls, document: Any) -> Self:
        """Return the configuration from the result of `to_builtins`, or from a TOML file.

        Raises:
            UsageError: it has an unknown setting, or an invalid value.
        """
        try:
            return msgspec.convert(document, cls)
        except (msgspec.ValidationError, ValueError) as exc:
            raise UsageError(f"the configuration is not valid: {exc}{_choices(exc)}") from exc

    def to_builtins(self) -> dict[str, Any]:
        """Return it as JSON types."""
        document: dict[str, Any] = msgspec.to_builtins(self)
        return document

    def override(self, table: str, **settings: Any) -> Self:
        """Return a configuration with other values; None leaves a value unchanged."""
        given = {name: value for name, value in settings.items() if value is not None}
        document = self.to_builtins()
        document[table] |= given
        return type(self).from_builtins(document)


def _choices(error: Exception) -> str:
    """Return the words that a setting can have, if an error is about a word that it cannot."""
    found = re.search(r"Invalid enum value .*`\$\.(\w+)\.(\w+)`$", str(error))
    if found is None:
        return ""
    table = get_type_hints(Config)[found[1]]
    return f", which is one of {', '.join(map(repr, get_args(get_type_hints(table)[found[2]])))}"


def load_config(path: Path | None = None) -> Config:
    """Read a configuration.

    Args:
        path: of the file, which must exist; None for this user's, which need not.

    Raises:
        UsageError: it is not valid; names the file.
        NodeError: it cannot be read.
    """
    source = path or configuration()
    missing = b"" if path is None else None
    data = read_limited(source, MAX_CONFIG_BYTES, "the configuration", missing=missing)
    try:
        return Config.from_builtins(tomllib.loads(data.decode()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise UsageError(f"{source} is not valid TOML: {exc}") from exc
    except UsageError as exc:
        raise UsageError(f"{source}: {exc.message}", hint="see docs/node.md") from exc
