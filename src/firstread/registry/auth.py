# SPDX-License-Identifier: Apache-2.0
"""Credentials of registries: in memory, in a file for each host, or where docker keeps them.

Owns the files and the credential helpers; `bearer` shows the credentials to a registry. Invariants:
no repr and no message has a secret; nothing is kept, so every look-up sees what a login wrote a
moment ago.

A directory of credentials has a file ``HOST.json``, or ``HOST_PORT_.json``, for each registry:
what docker's ``config.json`` has for it below ``auths``. To rotate credentials, rename a new file
over it.

Sources: docker's ``config.json`` (cli/config/configfile), containers-auth.json(5), and the protocol
of docker-credential-helpers (``get``: host on stdin, JSON on stdout).
"""

from __future__ import annotations

import base64
import logging
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from firstread.errors import AuthError, UsageError
from firstread.oci import gojson
from firstread.oci.reference import DEFAULT_HOST
from firstread.registry.credentials import Credentials
from firstread.registry.hosts import directories
from firstread.registry.logins import Logins
from firstread.units import MiB
from firstread.wholefile import read_limited

log = logging.getLogger("oci.auth")

T = TypeVar("T")

USED: Final = "used"
NOTHING: Final = "nothing for it"
ABSENT: Final = "not there"
MAX_FILE: Final = 4 * MiB  # bytes of credentials
HELPER_TIMEOUT = 30.0  # seconds; a helper may ask the user to unlock a key ring
_DOCKER_HUB_KEY = "https://index.docker.io/v1/"  # what docker login writes for docker.io
_HELPER_NAME = re.compile(r"[A-Za-z0-9_.-]+")


class _Login(msgspec.Struct, frozen=True):
    auth: str | None = None  # null is as good as nothing to docker, here and below
    username: str | None = None
    password: str | None = None
    identitytoken: str | None = None


class _ConfigFile(msgspec.Struct, frozen=True, rename="camel"):
    auths: dict[str, _Login | None] | None = None
    cred_helpers: dict[str, str | None] | None = None
    creds_store: str | None = None


class _HelperAnswer(msgspec.Struct, frozen=True, rename="pascal"):
    username: str
    secret: str


@dataclass(frozen=True, slots=True)
class LookUp:
    """The result of a search for credentials.

    Args:
        host: registry.
        credentials: None for none.
        searched: files and helpers, in that order, and what each had: ``used``, ``nothing for it``
            or ``not there``.
    """

    host: str
    credentials: Credentials | None
    searched: tuple[tuple[str, str], ...]

    @property
    def read_any(self) -> bool:
        """Whether any of them was there."""
        return any(had != ABSENT for _, had in self.searched)

    def __str__(self) -> str:
        searched = ", ".join(f"{name} ({had})" for name, had in self.searched)
        return f"looked for credentials of {self.host} in {searched}"


def look_up(
    host: str,
    repository: str = "",
    auth_file: Path | None = None,
    *,
    directory: Path | None = None,
    logins: Logins | None = None,
) -> LookUp:
    """Look for the credentials for a repository.

    Args:
        host: registry as in a reference, such as ``docker.io`` or ``localhost:5000``.
        repository: containers-auth.json may have credentials for a part of a registry.
        auth_file: the only file to look in; else that of `directory`, docker's, then podman's.
        directory: of a file for each host, see the module.
        logins: given to this process; they go before all files. Those of pulls that the registry
            has refused lately go after them.

    Raises:
        UsageError: a file is not valid.
        NodeError: a file cannot be read.
        AuthError: a credential helper failed.
    """
    searched: list[tuple[str, str]] = []
    for name, there, find in _sources(host, repository, auth_file, directory, logins):
        found = find()
        searched.append((name, USED if found else NOTHING if there() else ABSENT))
        if found is not None:
            return LookUp(host, found, tuple(searched))
    return LookUp(host, None, tuple(searched))


def _sources(
    host: str,
    repository: str,
    auth_file: Path | None,
    directory: Path | None,
    logins: Logins | None,
) -> Iterator[tuple[str, Callable[[], bool], Callable[[], Credentials | None]]]:
    """Yield the name of each source, whether it is there, and how to search it."""
    if logins is not None:
        yield "its memory", lambda: True, lambda: logins.find(host, repository)
    if auth_file is None and directory is not None:
        for path in _files_of(directory, host):
            yield str(path), path.exists, partial(_of_host, path)
    for path in [auth_file] if auth_file else auth_files():
        required = auth_file is not None
        yield str(path), path.exists, partial(_of_file, path, host, repository, required)
    if logins is not None and (refused := logins.pulled.find(f"{host}/{repository}", refused=True)):
        yield "what it has refused", lambda: True, lambda: refused


def _of_file(path: Path, host: str, repository: str, required: bool) -> Credentials | None:
    missing = None if required else b"{}"
    data = read_limited(path, MAX_FILE, "the credentials", missing=missing)
    return _search(_parse(data.strip() or b"{}", path), path, host, repository)


def _files_of(directory: Path, host: str) -> list[Path]:
    """Return what a directory can have for `host` alone."""
    places = directories(directory, host)[:-1]
    return [place.with_name(f"{place.name}.json") for place in places]


def _of_host(path: Path) -> Credentials | None:
    """Return the credentials in a file for one host alone."""
    data = read_limited(path, MAX_FILE, "the credentials", missing=b"{}")
    try:
        return _decode(gojson.decode(data, _Login), path)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise UsageError(
            f"the credentials in {path} are not valid",
            hint='such as {"username": "…", "password": "…"}; see docs/registries.md',
        ) from None


def auth_files() -> Iterator[Path]:
    """Yield the files to look in; the first has precedence."""
    home = Path(os.environ.get("HOME") or "/root")
    yield Path(os.environ.get("DOCKER_CONFIG") or home / ".docker") / "config.json"
    if explicit := os.environ.get("REGISTRY_AUTH_FILE"):
        yield Path(explicit)
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        yield Path(runtime) / "containers/auth.json"
    yield Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "containers/auth.json"


def _parse(data: bytes, path: Path) -> _ConfigFile:
    try:
        return gojson.decode(data, _ConfigFile)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # The message of a decoder could quote the file, so not even the log gets it.
        raise UsageError(
            f"the credentials in {path} are not valid JSON of docker's format",
            hint="log in again, or name another file with --authfile",
        ) from None


def _search(config: _ConfigFile, path: Path, host: str, repository: str) -> Credentials | None:
    """Return the credentials that one file has.

    An entry for just this host in ``credHelpers`` decides, even if it names no helper.
    """
    helper = _by_host(config.cred_helpers or {}).get(host, config.creds_store)
    if helper and (found := _ask_helper(helper, host)):
        return found
    logins = _by_host(config.auths or {})
    parts = [host, *repository.split("/")]
    for count in range(len(parts), 0, -1):  # the most specific first
        if (login := logins.get("/".join(parts[:count]))) is not None:
            return _decode(login, path)
    return None


def _by_host(table: dict[str, T]) -> dict[str, T]:
    """Return a table by `normal_key`; of several keys for a host the one that docker writes."""
    return {normal_key(key): table[key] for key in sorted(table, key=_is_exact)}


def _is_exact(key: str) -> bool:
    return key in (normal_key(key), _DOCKER_HUB_KEY)


def normal_key(key: str) -> str:
    """Return ``host`` or ``host/path`` of a key.

    Docker ignores the path of a URL: ``https://host/some/ui/`` is all of the host. Without a scheme
    the path is a part of the registry to podman, apart from the version of an API.
    """
    _, scheme, rest = key.partition("://")
    if scheme:
        key = rest.partition("/")[0].partition("?")[0].rpartition("@")[2]
    else:
        key = key.removesuffix("/").removesuffix("/v1").removesuffix("/v2")
    return DEFAULT_HOST if key in ("index.docker.io", "registry-1.docker.io") else key


def _decode(login: _Login, path: Path) -> Credentials | None:
    username, password = login.username or "", login.password or ""
    if login.auth:
        try:
            username, password = decode_pair(login.auth)
        except ValueError:
            raise UsageError(f"an entry of {path} is damaged", hint="log in again") from None
    identity_token = login.identitytoken or ""
    if not (username or identity_token):
        return None  # what docker leaves in the file when a helper has the secret
    return Credentials(username, password, identity_token)


def decode_pair(text: str) -> tuple[str, str]:
    """Return user name and password of docker's ``auth``. Raises ValueError: it is damaged."""
    # As Go reads it: line ends may be anywhere. Padding need not be there.
    text = text.replace("\n", "").replace("\r", "")
    pair = base64.b64decode(text + "=" * (-len(text) % 4), validate=True).decode()
    username, _, password = pair.partition(":")
    return username, password.strip("\0")  # old versions of docker padded it


def _ask_helper(name: str, host: str) -> Credentials | None:
    """Run ``docker-credential-NAME get``."""
    if not _HELPER_NAME.fullmatch(name):
        raise UsageError(f"{name!r} is not the name of a credential helper")
    program = f"docker-credential-{name}"
    server = _DOCKER_HUB_KEY if host == DEFAULT_HOST else host
    try:
        done = subprocess.run(
            [program, "get"],
            input=server.encode(),
            capture_output=True,
            timeout=HELPER_TIMEOUT,
            check=False,
        )
    except FileNotFoundError:
        # Common where a configuration came from another machine; public images still work.
        log.warning("%s is not installed; going on without credentials for %s", program, host)
        return None
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise AuthError(f"{program} failed for {host}: {type(exc).__name__}") from exc
    if done.returncode:
        if b"not found" in done.stdout + done.stderr:
            return None
        raise AuthError(f"{program} failed for {host} with exit code {done.returncode}")
    try:
        answer = gojson.decode(done.stdout, _HelperAnswer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise AuthError(f"{program} gave no valid answer for {host}") from None
    return Credentials.of(answer.username, answer.secret)
