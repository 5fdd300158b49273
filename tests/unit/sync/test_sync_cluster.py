# SPDX-License-Identifier: Apache-2.0
"""The images of a cluster, by kubeconfig, from an API server that checks what it is shown."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import ssl
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from firstread.errors import AuthError, NodeError, SourceError, TransportError, UsageError
from firstread.registry.options import AccessOptions
from firstread.sync.cluster import running_images
from firstread.sync.kubeconfig import read_kubeconfig
from firstread.testing.certificates import make_certificate
from firstread.testing.httpfaults import plain, send
from firstread.testing.serving import QuietHandler, QuietServer, serving

TOKEN = "token-of-the-robot"
FAST = AccessOptions(retries=0)


def pod(phase: str, *images: str, **spec: Any) -> dict[str, Any]:
    containers = [{"name": f"c{number}", "image": image} for number, image in enumerate(images)]
    return {"spec": {"containers": containers, **spec}, "status": {"phase": phase}}


PODS = [
    pod("Running", "r.example/team/app:v1", "busybox"),
    pod("Pending", "r.example/team/app:v1", initContainers=[{"image": "r.example/init:1"}]),
    pod("Succeeded", "r.example/ended:1"),
    pod(
        "Running",
        ephemeralContainers=[{"image": "r.example/debug:1"}],
        volumes=[{"name": "a"}, {"name": "m", "image": {"reference": "r.example/model:1"}}],
        initContainers=None,
    ),
]


class ApiServer(QuietServer):
    """Lists pods, one a page, to who shows the token or a certificate."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.status = 200
        self.body: bytes | None = None
        self.expires: list[str] = []  # tokens, each for the next answer in place of a page
        self.needs_token = True


class Handler(QuietHandler):
    server: ApiServer

    def do_GET(self) -> None:
        server, parts = self.server, urlsplit(self.path)
        server.asked.append(parts.path)
        query = parse_qs(parts.query)
        status, at = server.status, int(query.get("continue", ["0"])[0])
        if "continue" in query and server.expires:
            document: dict[str, Any] = {"kind": "Status", "code": 410, "reason": "Expired"}
            document["metadata"] = {"continue": token} if (token := server.expires.pop()) else {}
            send(self, plain(410, {}, json.dumps(document).encode()))
            return
        if server.needs_token and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            status = 401
        more = {"continue": str(at + 1)} if at + 1 < len(PODS) else {}
        document = {"kind": "PodList", "metadata": more, "items": PODS[at : at + 1]}
        data = server.body if server.body is not None else json.dumps(document).encode()
        send(self, plain(status, {}, data))


def api(context: ssl.SSLContext | None = None) -> AbstractContextManager[ApiServer]:
    """Serve an API while the block runs, by TLS if there is a context."""
    server = ApiServer()
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    return serving(server)


def write(path: Path, server: ApiServer, user: dict[str, Any], **cluster: Any) -> Path:
    scheme = "https" if isinstance(server.socket, ssl.SSLSocket) else "http"
    url = f"{scheme}://127.0.0.1:{server.server_address[1]}"
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": url, **cluster}}],
        "users": [{"name": "u", "user": user}],
    }
    path.write_text(yaml.safe_dump(document))
    return path


def images(path: Path, namespace: str = "") -> list[str]:
    return running_images(read_kubeconfig(path), namespace, FAST)


EXPECTED = [
    "r.example/team/app:v1",
    "busybox",
    "r.example/init:1",
    "r.example/debug:1",
    "r.example/model:1",
]


def test_a_token(tmp_path: Path) -> None:
    with api() as server:
        assert images(write(tmp_path / "config", server, {"token": TOKEN})) == EXPECTED
        assert server.asked == ["/api/v1/pods"] * len(PODS)
        (tmp_path / "token").write_text(f"{TOKEN}\n")
        path = write(tmp_path / "config", server, {"tokenFile": "token", "token": "old"})
        assert images(path, "a b") == EXPECTED
        assert server.asked[-1] == "/api/v1/namespaces/a%20b/pods"
        path = write(tmp_path / "config", server, {"token": "wrong"})
        with pytest.raises(AuthError, match="it answers 401") as caught:
            images(path)
        assert "wrong" not in str(caught.value)
        assert "list pods" in (caught.value.hint or "")


@pytest.mark.parametrize("token", [b"\xff", "\u20ac".encode(), b"two\nlines"])
def test_a_token_that_no_header_can_have(tmp_path: Path, token: bytes) -> None:
    (tmp_path / "token").write_bytes(token)
    with api() as server, pytest.raises(UsageError, match="the token for the cluster"):
        images(write(tmp_path / "config", server, {"tokenFile": "token"}))


def test_a_plugin_issues_a_token(tmp_path: Path) -> None:
    plugin = tmp_path / "plugin"
    answer = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential"}
    plugin.write_text(
        "#!/bin/sh\n"
        '[ "$1 $GIVEN" = "get here" ] || exit 3\n'
        'case $KUBERNETES_EXEC_INFO in *"interactive\\": false"*) ;; *) exit 4;; esac\n'
        f"echo '{json.dumps(answer | {'status': {'token': TOKEN}})}'\n"
    )
    plugin.chmod(0o755)
    version = answer["apiVersion"]
    user = {
        "exec": {
            "apiVersion": version,
            "command": "./plugin",
            "args": ["get"],
            "env": [{"name": "GIVEN", "value": "here"}],
        }
    }
    with api() as server:
        assert images(write(tmp_path / "config", server, user)) == EXPECTED
        for change, message in (
            ({"args": ["no"]}, "exit code 3"),
            ({"command": "./none"}, "FileNotFoundError"),
            ({"command": "true"}, "gave no credentials"),
        ):
            path = write(tmp_path / "config", server, {"exec": user["exec"] | change})
            with pytest.raises(AuthError, match=message):
                images(path)
        path = write(tmp_path / "config", server, {"exec": {"command": "a", "apiVersion": "v0"}})
        with pytest.raises(UsageError, match="speaks v0"):
            images(path)


def open_files() -> list[str]:
    found = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{number}"))
    return found


def test_certificates_in_the_file_touch_no_disk(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path / "server")
    client, client_key = make_certificate(tmp_path / "client")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(client)
    context.verify_mode = ssl.CERT_REQUIRED

    def inline(path: Path) -> str:
        return base64.b64encode(path.read_bytes()).decode()

    embedded = {"client-certificate-data": inline(client), "client-key-data": inline(client_key)}
    files = {"client-certificate": "client/server.pem", "client-key": "client/server.key"}
    with api(context) as server:
        server.needs_token = False
        ca = {"certificate-authority-data": inline(certificate)}
        assert images(write(tmp_path / "config", server, embedded, **ca)) == EXPECTED
        assert not [name for name in open_files() if name.startswith("/memfd:key")]
        ca_file = {"certificate-authority": "server/server.pem"}
        assert images(write(tmp_path / "config", server, files, **ca_file)) == EXPECTED
        with pytest.raises(SourceError, match="certificate is not trusted") as caught:
            images(write(tmp_path / "config", server, embedded))
        assert "registry" not in str(caught.value)
        skip = {"insecure-skip-tls-verify": True}
        assert images(write(tmp_path / "config", server, embedded, **skip)) == EXPECTED
        swapped = embedded | {"client-key-data": inline(key)}
        with pytest.raises(UsageError, match="certificate or key of the kubeconfig"):
            images(write(tmp_path / "config", server, swapped, **ca))


def test_a_server_that_fails(tmp_path: Path) -> None:
    with api() as server:
        path = write(tmp_path / "config", server, {"token": TOKEN})
        server.status = 503
        with pytest.raises(TransportError, match="cannot list the pods of 127"):
            images(path)
        server.status, server.body = 200, b"<html>"
        with pytest.raises(SourceError, match="cannot list the pods"):
            images(path)
    with pytest.raises(TransportError, match="cannot be reached"):
        images(path)


@pytest.mark.parametrize(("tokens", "requests"), [(["1"], 5), ([""], 6), (["", "2", "", "1"], 10)])
def test_a_list_that_expires_goes_on(tmp_path: Path, tokens: list[str], requests: int) -> None:
    """Behind the pods that are known, if the server says how; else from the first."""
    with api() as server:
        server.expires = tokens
        found = images(write(tmp_path / "config", server, {"token": TOKEN}))
        assert sorted(found) == sorted(EXPECTED)
        assert len(server.asked) == requests


@pytest.mark.parametrize("token", ["", "1"])
def test_a_list_that_always_expires_ends(tmp_path: Path, token: str) -> None:
    with api() as server:
        server.expires = [token] * 1000
        with pytest.raises(SourceError, match="expired 11 times"):
            images(write(tmp_path / "config", server, {"token": TOKEN}))
        assert len(server.asked) <= 22


def test_a_list_of_pods_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firstread.sync.cluster.MAX_PAGES", len(PODS) - 1)
    with api() as server, pytest.raises(SourceError, match="more than 3 pages"):
        images(write(tmp_path / "config", server, {"token": TOKEN}))


def test_a_plugin_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firstread.sync.kubeconfig.PLUGIN_S", 0.1)
    version = "client.authentication.k8s.io/v1"
    user = {"exec": {"apiVersion": version, "command": "sleep", "args": ["60"]}}
    with api() as server:
        path = write(tmp_path / "config", server, user)
        with pytest.raises(AuthError, match="TimeoutExpired"):
            read_kubeconfig(path)


DAMAGED = {
    "no YAML": ("a: [secret", "is not valid YAML in line 1"),
    "no object": ("- secret", "is not a kubeconfig"),
    "a wrong type": ("users: [{name: u, user: {token: [secret]}}]", "is not a kubeconfig"),
    "no context": ("current-context: a", "has no context 'a'"),
    "empty": ("", "names no current context"),
    "no server": (
        "{current-context: a, contexts: [{name: a, context: {cluster: c, user: u}}]}",
        "leads to no server",
    ),
    "no address": (
        "{current-context: a, contexts: [{name: a, context: {cluster: c, user: u}}],"
        " clusters: [{name: c, cluster: {server: 'https://[::1'}}]}",
        "leads to no server",
    ),
    "deep": ("[" * 5000, "is not"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file(tmp_path: Path, name: str) -> None:
    text, message = DAMAGED[name]
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        read_kubeconfig(path)
    assert str(path) in caught.value.message
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("encoded", ["a", "é"])
def test_a_certificate_that_is_not_base64(tmp_path: Path, encoded: str) -> None:
    with api() as server:
        path = write(tmp_path / "config", server, {}, **{"certificate-authority-data": encoded})
        with pytest.raises(UsageError, match="is not base64"):
            read_kubeconfig(path)


def test_unsupported_fields_are_named(tmp_path: Path) -> None:
    with api() as server:
        path = write(tmp_path / "config", server, {}, **{"proxy-url": "http://a"})
        with pytest.raises(UsageError, match="proxy-url is not supported"):
            read_kubeconfig(path)
        path = write(tmp_path / "config", server, {"as": "somebody"})
        with pytest.raises(UsageError, match="as is not supported"):
            read_kubeconfig(path)
        path = write(tmp_path / "config", server, {"auth-provider": {"name": "gcp"}})
        with pytest.raises(UsageError, match="auth-provider is not supported"):
            read_kubeconfig(path)
    with pytest.raises(NodeError):
        read_kubeconfig(tmp_path / "none")


def test_without_pyyaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    with pytest.raises(NodeError) as caught:
        read_kubeconfig(tmp_path / "config")
    assert "firstread[kubernetes]" in (caught.value.hint or "")
