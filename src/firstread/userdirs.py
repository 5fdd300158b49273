# SPDX-License-Identifier: Apache-2.0
"""The directories of a node by default: those of the machine for root, of the user for others.

Owns their names; makes nothing.

Source: XDG Base Directory Specification 0.8, which has a relative path count as unset.
"""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from firstread.errors import UsageError
from firstread.idmaps import owner

_NAME = "firstread"


def store_directory() -> Path:
    """Return the directory of sectors, images and mounts.

    Raises:
        UsageError: this user has no home directory.
    """
    if not owner():
        return Path("/var/lib", _NAME)
    return _directory("XDG_DATA_HOME", ".local/share")


def runtime_directory() -> Path:
    """Return the directory of the daemon's socket.

    Where nothing gives the user one, as after su(1), it lies in the store.

    Raises:
        UsageError: this user has no home directory.
    """
    user = owner()
    if not user:
        return Path("/run", _NAME)
    for place in (os.environ.get("XDG_RUNTIME_DIR", ""), f"/run/user/{user}"):
        if os.path.isabs(place) and os.access(place, os.W_OK):
            return Path(place, _NAME)
    return store_directory() / "run"


def configuration() -> Path:
    """Return the configuration, which need not exist.

    Raises:
        UsageError: this user has no home directory.
    """
    if not owner():
        return Path("/etc", _NAME, "config.toml")
    return _directory("XDG_CONFIG_HOME", ".config") / "config.toml"


def _directory(variable: str, below_home: str) -> Path:
    given = os.environ.get(variable, "")
    return Path(given if os.path.isabs(given) else _home() / below_home, _NAME)


def _home() -> Path:
    home = os.environ.get("HOME", "")
    if not os.path.isabs(home):
        try:
            home = pwd.getpwuid(owner()).pw_dir
        except KeyError:
            home = ""
    if not os.path.isabs(home):
        raise UsageError(
            f"user {owner()} has no home directory for the store of a node",
            hint="set HOME, or give --root, --run-dir and --config",
        )
    return Path(home)
