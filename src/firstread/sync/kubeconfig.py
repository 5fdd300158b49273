# SPDX-License-Identifier: Apache-2.0
"""``kubectl``'s configuration: which API server, whom it trusts, and what it wants to see.

Owns the file and the plugins that it names; asks no server. Invariants: no repr and no message has
a secret; keys that stand in the file reach OpenSSL without a file of their own on a disk.

Not taken: ``auth-provider``, which kubectl has given up, and ``as``, impersonation.

Sources: Kubernetes, client-go ``tools/clientcmd/api/v1/types.go``; ``ExecCredential`` of
client.authentication.k8s.io/v1 (and v1beta1).
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from firstread.errors import AuthError, NodeError, UsageError
from firstread.registry.credentials import Credentials
from firstread.registry.endpoint import is_address
from firstread.structs import completed
from firstread.units import MiB
from firstread.wholefile import read_limited

MAX_FILE: Final = 4 * MiB  # bytes
MAX_TOKEN: Final = 64 * 1024  # characters
PLUGIN_S: Final = 60.0  # seconds for a plugin; it may talk to a cloud
_VERSIONS: Final = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")

_Name = Annotated[str, msgspec.Meta(min_length=1)]


class _Cluster(msgspec.Struct, frozen=True, rename="kebab"):
    server: str = ""
    certificate_authority: str = ""
    certificate_authority_data: str = ""
    insecure_skip_tls_verify: bool = False
    tls_server_name: str = ""
    proxy_url: str = ""


class _Variable(msgspec.Struct, frozen=True):
    name: str
    value: str


class _Plugin(msgspec.Struct, frozen=True, rename="camel"):
    command: _Name
    api_version: str = ""
    args: list[str] | None = None
    env: list[_Variable] | None = None


class _User(msgspec.Struct, frozen=True, rename="kebab"):
    client_certificate: str = ""
    client_certificate_data: str = ""
    client_key: str = ""
    client_key_data: str = ""
    token: str = ""
    token_file: str = msgspec.field(name="tokenFile", default="")
    username: str = ""
    password: str = ""
    exec: _Plugin | None = None
    auth_provider: Any = None
    impersonated: str = msgspec.field(name="as", default="")


class _Context(msgspec.Struct, frozen=True):
    cluster: str = ""
    user: str = ""


class _NamedCluster(msgspec.Struct, frozen=True):
    name: str
    cluster: _Cluster


class _NamedUser(msgspec.Struct, frozen=True):
    name: str
    user: _User | None = None


class _NamedContext(msgspec.Struct, frozen=True):
    name: str
    context: _Context


class _Config(msgspec.Struct, frozen=True):
    clusters: list[_NamedCluster] | None = None
    users: list[_NamedUser] | None = None
    contexts: list[_NamedContext] | None = None
    current_context: str = msgspec.field(name="current-context", default="")


class _Issued(msgspec.Struct, frozen=True, rename="camel"):
    token: str = ""
    client_certificate_data: str = ""
    client_key_data: str = ""


class _ExecCredential(msgspec.Struct, frozen=True, rename="camel"):
    api_version: str = ""
    status: _Issued | None = None


@dataclass(frozen=True, slots=True)
class ClusterAccess:
    """How an API server is reached.

    Args:
        server: URL.
        ca: certificates to trust, PEM; empty for the system's.
        skip_verify: accept any certificate.
        certificate: to show, PEM; empty for none.
        key: of it.
        authorization: value of the header; empty for none.
    """

    server: str
    ca: bytes = b""
    skip_verify: bool = False
    certificate: bytes = b""
    key: bytes = field(default=b"", repr=False)
    authorization: str = field(default="", repr=False)


def read_kubeconfig(path: Path, context: str = "") -> ClusterAccess:
    """Return how the cluster of a context is reached; run the plugin that it names, if any.

    Args:
        path: of the file.
        context: name; empty for the current one.

    Raises:
        UsageError: the file is not valid, has no such context, or asks for what we do not do.
        NodeError: a file cannot be read; PyYAML is not installed.
        AuthError: a plugin fails.
    """
    config = _load(path)
    name = context or config.current_context
    contexts = {each.name: each.context for each in config.contexts or []}
    if name not in contexts:
        raise UsageError(
            f"{path} has no context {name!r}" if name else f"{path} names no current context",
            hint=f"choose one with --context: {', '.join(sorted(contexts)[:16]) or 'it has none'}",
        )
    chosen = contexts[name]
    cluster = {each.name: each.cluster for each in config.clusters or []}.get(chosen.cluster)
    user = {each.name: each.user for each in config.users or []}.get(chosen.user) or _User()
    if cluster is None or not is_address(cluster.server):
        raise UsageError(f"{path}: context {name!r} leads to no server")
    _check(path, cluster, user)
    place = path.absolute().parent
    access = ClusterAccess(
        server=cluster.server.rstrip("/"),
        ca=_data(place, cluster.certificate_authority_data, cluster.certificate_authority),
        skip_verify=cluster.insecure_skip_tls_verify,
    )
    return _with_user(access, place, user, cluster.server)


def _check(path: Path, cluster: _Cluster, user: _User) -> None:
    unknown = {
        "tls-server-name": cluster.tls_server_name,
        "proxy-url": cluster.proxy_url,
        "auth-provider": user.auth_provider,
        "as": user.impersonated,
    }
    for name, value in unknown.items():
        if value:
            hint = "set HTTPS_PROXY" if name == "proxy-url" else "use another context or user"
            raise UsageError(f"{path}: {name} is not supported", hint=hint)


def _with_user(access: ClusterAccess, place: Path, user: _User, server: str) -> ClusterAccess:
    certificate = _data(place, user.client_certificate_data, user.client_certificate)
    key = _data(place, user.client_key_data, user.client_key)
    token = user.token
    if user.token_file:  # it is the newer one, as client-go has it
        token = read_limited(place / user.token_file, MAX_TOKEN).decode(errors="replace").strip()
    if user.exec is not None and not (token or certificate):
        issued = _run(user.exec, place, server)
        token = issued.token
        certificate, key = issued.client_certificate_data.encode(), issued.client_key_data.encode()
    authorization = f"Bearer {token}" if token else ""
    if user.username and not token:
        authorization = Credentials(user.username, user.password).basic()
    fits = authorization.isascii() and authorization.isprintable()
    if not fits or len(authorization) > MAX_TOKEN:
        raise UsageError("the token for the cluster is not one that a header can have")
    return replace(access, certificate=certificate, key=key, authorization=authorization)


def _load(path: Path) -> _Config:
    try:
        import yaml  # noqa: PLC0415 - an optional dependency
    except ImportError:
        raise NodeError(
            "reading a kubeconfig needs PyYAML, which is not installed",
            hint="pip install 'firstread[kubernetes]'",
        ) from None
    try:
        return msgspec.convert(yaml.safe_load(read_limited(path, MAX_FILE)) or {}, _Config)
    except yaml.YAMLError as exc:  # its message would quote the file
        mark = getattr(exc, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark is not None else ""
        raise UsageError(f"{path} is not valid YAML{where}") from None
    except (msgspec.ValidationError, RecursionError, ValueError) as exc:
        text = str(exc) if isinstance(exc, msgspec.ValidationError) else type(exc).__name__
        raise UsageError(f"{path} is not a kubeconfig: {text}") from None


def _data(place: Path, encoded: str, name: str) -> bytes:
    """Return what is in the configuration itself, or in a file that it names."""
    if not encoded:
        return read_limited(place / name, MAX_FILE) if name else b""
    try:
        return base64.b64decode(encoded, validate=True)
    except ValueError:  # of what is not even ASCII it is no binascii.Error
        raise UsageError("a certificate or key in the kubeconfig is not base64") from None


def _run(plugin: _Plugin, place: Path, server: str) -> _Issued:
    """Run a plugin; return what it issues."""
    if plugin.api_version not in _VERSIONS:
        raise UsageError(
            f"{plugin.command} speaks {plugin.api_version or 'no version'}",
            hint=f"we speak {' and '.join(_VERSIONS)}: a newer plugin does",
        )
    command = str(place / plugin.command) if "/" in plugin.command else plugin.command
    spec = {"interactive": False, "cluster": {"server": server}}
    info = {"apiVersion": plugin.api_version, "kind": "ExecCredential", "spec": spec}
    given = {variable.name: variable.value for variable in plugin.env or []}
    try:
        done = subprocess.run(
            [command, *(plugin.args or [])],
            env={**os.environ, **given, "KUBERNETES_EXEC_INFO": json.dumps(info)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=PLUGIN_S,
            check=False,
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as exc:
        raise AuthError(f"{plugin.command} failed: {type(exc).__name__}") from None
    if done.returncode:
        raise AuthError(f"{plugin.command} failed with exit code {done.returncode}")
    try:
        issued = msgspec.json.decode(done.stdout, type=completed(_ExecCredential)).status
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        issued = None
    if issued is None:
        raise AuthError(f"{plugin.command} gave no credentials")
    return issued


@contextlib.contextmanager
def in_memory(data: bytes, name: str) -> Iterator[Path]:
    """Give a path of `data` for the block, on no disk."""
    fd = os.memfd_create(name)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
