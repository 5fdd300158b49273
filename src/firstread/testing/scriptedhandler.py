# SPDX-License-Identifier: Apache-2.0
"""The HTTP side of `firstread.testing.scripted`: routes, answers, logins and uploads.

Owns enough of the distribution specification for one client at a time to push and pull, a token
server, and a blob store as a target of redirects. Checks clients more strictly than real registries
do. Everything is in memory.
"""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from dataclasses import dataclass, field
from email.message import Message
from itertools import count
from typing import Any, Final
from urllib.parse import parse_qs, urlencode, urlsplit

from firstread.oci.model import OCI_INDEX, sha256_digest
from firstread.testing.httpfaults import (
    LOOP,
    HangUpError,
    Script,
    instead,
    plain,
    refusal,
    send,
)
from firstread.testing.requestbody import RequestBody
from firstread.testing.serving import QuietHandler, QuietServer

USERNAME: Final = "tester"
PASSWORD: Final = "open sesame"
IDENTITY_TOKEN: Final = "identity of the tester"
TOKEN_PREFIX: Final = "token-of-the-tester-"  # of each bearer token
SIGNATURE: Final = "secret-of-the-store"  # in the addresses that blobs are redirected to


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as it came in."""

    method: str
    path: str
    query: str
    headers: Message

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass(slots=True)
class RegistryState:
    """The settings of a registry, its content, and the requests that it has seen."""

    script: Script
    auth: str
    lifetime: float
    redirect: bool
    relative: bool
    patch: bool
    moves: bool
    mounts: bool
    says: str
    referrers: bool
    page: int
    filters: bool
    password: str = PASSWORD
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    uploads: dict[str, bytearray] = field(default_factory=dict)
    tokens: dict[str, tuple[float, list[str]]] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    numbers: Any = field(default_factory=lambda: count(1))
    lock: threading.RLock = field(default_factory=threading.RLock)


class ScriptedServer(QuietServer):
    """Hands each request to a handler, with the state of its registry."""

    state: RegistryState


class ScriptedHandler(QuietHandler):
    """Answers one client's requests."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: ScriptedServer
    timeout = 20

    def _serve(self) -> None:
        state = self.server.state
        parts = urlsplit(self.path)
        with state.lock:
            state.seen.append(Seen(self.command, parts.path, parts.query, self.headers))
        self._fault = state.script.pick(self.command, parts.path)
        try:
            if not self._failed() and self._authorized(parts.path, parts.query):
                self._route(parts.path, {k: v[0] for k, v in parse_qs(parts.query).items()})
        except (HangUpError, ConnectionError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PATCH = do_PUT = do_DELETE = _serve  # noqa: N815

    def _is(self, action: str) -> bool:
        return self._fault is not None and self._fault.action == action

    def _failed(self) -> bool:
        """Follow the script; return whether its answer replaces ours."""
        answer = instead(self._fault, self.server.state.says)
        if answer is not None:
            self._body()
            send(self, answer)
        return answer is not None

    def _authorized(self, path: str, query: str) -> bool:
        state = self.server.state
        if path == "/token":
            self._token(query)
            return False
        if path.startswith("/store/") or not state.auth:
            return True
        shown = self.headers.get("Authorization", "")
        if state.auth == "basic":
            challenge = 'Basic realm="tests"'
            good = shown == _basic(state.password)
        else:
            realm = f"http://{self.headers['Host']}/token"
            name = re.split("/(?:blobs|manifests|referrers)/", path.removeprefix("/v2/"))[0]
            need = "pull" if self.command in ("GET", "HEAD") else "push"
            scope = f"repository:{name}:{need}"
            challenge = f'Bearer realm="{realm}",service="tests",scope="{scope}"'
            until, scopes = state.tokens.get(shown.removeprefix("Bearer "), (0.0, []))
            good = time.monotonic() < until and (
                path == "/v2/"
                or any(s.startswith(f"repository:{name}:") and need in s for s in scopes)
            )
        if not good:
            self._body()
            self._error(401, "UNAUTHORIZED", "log in", {"WWW-Authenticate": challenge})
        return good

    def _token(self, query: str) -> None:
        """Answer a token request: anyone may pull, the tester may push."""
        state = self.server.state
        fields = parse_qs(self._body().decode() or query)
        scopes = " ".join(fields.get("scope", [])).split()
        known = self.headers.get("Authorization") == _basic(state.password) or fields.get(
            "refresh_token"
        ) == [IDENTITY_TOKEN]
        if ("Authorization" in self.headers or "refresh_token" in fields) and not known:
            self._error(401, "UNAUTHORIZED", "wrong password")
            return
        if not known:
            scopes = [scope.replace(",push", "") for scope in scopes]
        token = f"{TOKEN_PREFIX}{next(state.numbers)}"
        state.tokens[token] = (time.monotonic() + state.lifetime, scopes)
        document = {"token": token, "expires_in": state.lifetime}
        self._answer(200, {}, json.dumps(document).encode())

    def _route(self, path: str, query: dict[str, str]) -> None:
        if path == "/v2/":
            self._answer(200, {}, b"{}")
            return
        for pattern, methods in _ROUTES:
            match = pattern.fullmatch(path)
            if match is not None and self.command in methods:
                getattr(self, methods[self.command])(*match.groups(), query)
                return
        self._error(404, "UNSUPPORTED", "there is no such thing")

    def _manifest(self, _name: str, reference: str, _query: dict[str, str]) -> None:
        found = self.server.state.manifests.get(reference)
        if found is None:
            self._error(404, "MANIFEST_UNKNOWN", "manifest unknown")
            return
        self._answer(200, {"Content-Type": found[0]}, found[1])

    def _again(self, _query: dict[str, str]) -> None:
        self._answer(307, {"Location": LOOP})

    def _put_manifest(self, _name: str, reference: str, _query: dict[str, str]) -> None:
        data = self._body()
        entry = (self.headers.get("Content-Type", ""), data)
        self.server.state.manifests.update({reference: entry, sha256_digest(data): entry})
        headers = {"Docker-Content-Digest": sha256_digest(data)}
        subject = json.loads(data).get("subject")
        if subject and self.server.state.referrers:
            headers["OCI-Subject"] = subject["digest"]
        self._answer(201, headers)

    def _referrers(self, name: str, subject: str, query: dict[str, str]) -> None:
        """List what refers to a manifest, in the order of the digests."""
        state = self.server.state
        if not state.referrers:
            self._answer(404, {"Content-Type": "text/plain"}, b"404 page not found\n")
            return
        wanted = query.get("artifactType") if state.filters else None
        entries = _referring(state.manifests, subject, wanted)
        headers = {"Content-Type": OCI_INDEX}
        if wanted:
            headers["OCI-Filters-Applied"] = "artifactType"
        start = int(query.get("from", "0"))
        end = start + (state.page or len(entries) or 1)
        if end < len(entries):
            rest = urlencode(query | {"from": str(end)})
            headers["Link"] = f'</v2/{name}/referrers/{subject}?{rest}>; rel="next"'
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries[start:end]}
        self._answer(200, headers, json.dumps(index).encode())

    def _blob(self, name: str, digest: str, _query: dict[str, str]) -> None:
        if self.server.state.redirect and self.command == "GET":
            port = self.server.server_address[1]
            store = f"http://localhost:{port}/store/{digest}?signature={SIGNATURE}-{name}"
            self._answer(307, {"Location": store})
        else:
            self._stored(digest, {})

    def _stored(self, digest: str, _query: dict[str, str]) -> None:
        data = self.server.state.blobs.get(digest)
        if data is None:
            self._error(404, "BLOB_UNKNOWN", "blob unknown to registry")
            return
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if match is None or self._is("ignore-range"):
            self._answer(200, {}, data)
            return
        start, end = int(match[1]), min(int(match[2]), len(data) - 1)
        if self._is("wrong-range"):
            start += 1
        if start > end:
            self._error(416, "RANGE_INVALID", "beyond the end")
            return
        part = {"Content-Range": f"bytes {start}-{end}/{len(data)}"}
        self._answer(206, part, data[start : end + 1])

    def _start_upload(self, name: str, query: dict[str, str]) -> None:
        self._body()
        state = self.server.state
        if state.mounts and query.get("mount") in state.blobs:
            self._answer(201, {"Location": f"/v2/{name}/blobs/{query['mount']}"})
            return
        upload = f"u{next(state.numbers)}"
        state.uploads[upload] = bytearray()
        self._upload_state(name, upload, 202)

    def _upload_state(self, name: str, upload: str, status: int) -> None:
        """Answer with the next address of the upload; the old one becomes invalid."""
        state = self.server.state
        content = state.uploads.pop(upload)
        following = f"u{next(state.numbers)}"
        state.uploads[following] = content
        base = "" if state.relative else f"http://{self.headers['Host']}"
        headers = {"Location": f"{base}/v2/{name}/blobs/uploads/{following}?state=x"}
        if content:
            headers["Range"] = f"0-{len(content) - 1}"
        self._answer(status, headers)

    def _append(self, name: str, upload: str, _query: dict[str, str]) -> None:
        state = self.server.state
        if not state.patch:
            self._body()
            self._error(405, "UNSUPPORTED", "PATCH")
        elif self._receive(upload):
            if state.moves:
                self._upload_state(name, upload, 202)
            else:
                self._answer(202, {})

    def _receive(self, upload: str) -> bool:
        """Append the arriving body to the upload; return whether the upload took it."""
        content = self.server.state.uploads.get(upload)
        if content is None:
            self._body()
            self._error(404, "BLOB_UPLOAD_UNKNOWN", "upload unknown")
            return False
        wanted = self.headers.get("Content-Range")
        if wanted is not None and int(wanted.split("-")[0]) != len(content):
            self._body()
            self._error(416, "RANGE_INVALID", "not where the upload is")
            return False
        if self._fault is not None and self._is("hangup"):
            content += RequestBody(self).whole(self._fault.number())
            raise HangUpError
        data = self._body()
        if self._fault is not None and self._is("short"):
            data = data[: -int(self._fault.number())]
        content += data
        return True

    def _finish_upload(self, name: str, upload: str, query: dict[str, str]) -> None:
        state = self.server.state
        if not self._receive(upload):
            return
        content = bytes(state.uploads.pop(upload))
        if sha256_digest(content) != query.get("digest"):
            self._error(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
            return
        state.blobs[query["digest"]] = content
        self._answer(201, {"Location": f"/v2/{name}/blobs/{query['digest']}"})

    def _ask_upload(self, name: str, upload: str, _query: dict[str, str]) -> None:
        if upload in self.server.state.uploads:
            self._upload_state(name, upload, 204)
        else:
            self._error(404, "BLOB_UPLOAD_UNKNOWN", "upload unknown")

    def _cancel_upload(self, _name: str, upload: str, _query: dict[str, str]) -> None:
        self.server.state.uploads.pop(upload, None)
        self._answer(204, {})

    def _body(self) -> bytes:
        return RequestBody(self).whole()

    def _error(
        self, status: int, code: str, message: str, extra: dict[str, str] | None = None
    ) -> None:
        send(self, refusal(status, code, message, extra), self._fault)

    def _answer(self, status: int, headers: dict[str, str], data: bytes = b"") -> None:
        """Send an answer, with what the script does to it."""
        send(self, plain(status, headers, data), self._fault)


_ROUTES: Final = [
    (re.compile(r"/v2/(.+)/manifests/([^/]+)"), {"GET": "_manifest", "PUT": "_put_manifest"}),
    (re.compile(r"/v2/(.+)/referrers/([^/]+)"), {"GET": "_referrers"}),
    (re.compile(r"/v2/(.+)/blobs/uploads/"), {"POST": "_start_upload"}),
    (
        re.compile(r"/v2/(.+)/blobs/uploads/([^/]+)"),
        {
            "PATCH": "_append",
            "PUT": "_finish_upload",
            "GET": "_ask_upload",
            "DELETE": "_cancel_upload",
        },
    ),
    (re.compile(r"/v2/(.+)/blobs/([^/]+)"), {"GET": "_blob", "HEAD": "_blob"}),
    (re.compile(r"/store/([^/]+)"), {"GET": "_stored"}),
    (re.compile(LOOP), {"GET": "_again", "HEAD": "_again"}),
]


def _referring(
    manifests: dict[str, tuple[str, bytes]], subject: str, artifact_type: str | None
) -> list[dict[str, Any]]:
    """Return the entries of a list of referrers (distribution-spec, "Listing Referrers")."""
    entries = []
    for digest in sorted(name for name in manifests if ":" in name):
        media_type, data = manifests[digest]
        document = json.loads(data)
        kind = document.get("artifactType") or document.get("config", {}).get("mediaType")
        if (document.get("subject") or {}).get("digest") != subject:
            continue
        if artifact_type in (None, kind):
            entries.append(
                {
                    "mediaType": media_type,
                    "digest": digest,
                    "size": len(data),
                    "artifactType": kind,
                    "annotations": document.get("annotations", {}),
                }
            )
    return entries


def _basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"{USERNAME}:{password}".encode()).decode()
