# SPDX-License-Identifier: Apache-2.0
"""As much of a Kubernetes API as a kubelet needs to be given pods and secrets that are not static.

Owns the objects, in memory, and tells watchers of changes. A static pod can have no
`imagePullSecrets`, and no kubelet evicts one. Knows nothing of resources: any collection exists.

Source: the Kubernetes API conventions: lists, watches (with ``sendInitialEvents``), merge patches.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import sys
import threading
import urllib.parse
from typing import Any, Final, Self

from firstread.testing.serving import QuietHandler, serving

NODE: Final = "node"
_WATCH_S: Final = 5.0  # between looks of a watch at whether the server ends


class ApiServer(contextlib.ExitStack):
    """The API on a free port of the loopback interface; a context manager."""

    def __init__(self) -> None:
        super().__init__()
        self._objects: dict[str, dict[str, Any]] = {}  # by path
        self._events: list[tuple[str, str, dict[str, Any]]] = []  # type, path, object
        self._changed = threading.Condition()
        self.ended = False
        self._server = _Server(self)

    def __enter__(self) -> Self:
        self.enter_context(serving(self._server))
        self.callback(self._end_watches)
        return self

    def _end_watches(self) -> None:
        with self._changed:
            self.ended = True
            self._changed.notify_all()

    def kubeconfig(self) -> dict[str, Any]:
        """Return the configuration of a client."""
        server = f"http://127.0.0.1:{self._server.server_address[1]}"
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": server}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }

    def put(self, path: str, document: dict[str, Any]) -> dict[str, Any]:
        """Put an object at a path such as ``/api/v1/namespaces/default/pods/NAME``."""
        with self._changed:
            kind = "MODIFIED" if path in self._objects else "ADDED"
            document.setdefault("metadata", {})["resourceVersion"] = str(len(self._events) + 1)
            self._objects[path] = document
            self._events.append((kind, path, document))
            self._changed.notify_all()
            return document

    def create(self, collection: str, document: dict[str, Any]) -> dict[str, Any]:
        """Put an object below ``/api/v1/…``."""
        return self.put(f"{collection}/{document['metadata']['name']}", document)

    def object(self, path: str) -> dict[str, Any] | None:
        """Return the object at a path, if there is one."""
        with self._changed:
            return self._objects.get(path)

    def patch(self, path: str, change: dict[str, Any]) -> dict[str, Any] | None:
        """Merge a change into an object; lists are replaced, unlike in a strategic patch."""
        with self._changed:
            before = self._objects.get(path)
            return None if before is None else self.put(path, _merged(before, change))

    def delete(self, path: str) -> dict[str, Any] | None:
        """Remove an object."""
        with self._changed:
            document = self._objects.pop(path, None)
            if document is not None:
                self._events.append(("DELETED", path, document))
                self._changed.notify_all()
            return document

    def listing(self, collection: str) -> tuple[list[dict[str, Any]], int]:
        """Return the objects of a collection, of all namespaces if it names none; the version."""
        with self._changed:
            found = [each for path, each in self._objects.items() if _is_of(path, collection)]
            return found, len(self._events)

    def after(self, collection: str, version: int) -> tuple[list[tuple[str, dict[str, Any]]], int]:
        """Wait for events of a collection after a version; return them, and the version then."""
        with self._changed:
            self._changed.wait_for(lambda: self.ended or len(self._events) > version, _WATCH_S)
            news = self._events[version:]
            return [(kind, each) for kind, path, each in news if _is_of(path, collection)], len(
                self._events
            )


def _is_of(path: str, collection: str) -> bool:
    parent = path.rpartition("/")[0]
    prefix, _, resource = collection.rpartition("/")
    namespaced = parent.startswith(f"{prefix}/namespaces/") and parent.endswith(f"/{resource}")
    return parent == collection or ("/namespaces/" not in collection and namespaced)


def _kind(collection: str) -> str:
    """Return what the objects of a collection are."""
    resource = collection.rpartition("/")[2]
    return {"csidrivers": "CSIDriver", "runtimeclasses": "RuntimeClass"}.get(
        resource, resource.removesuffix("s").capitalize()
    )


def _version(collection: str) -> str:
    parts = collection.strip("/").split("/")
    return parts[1] if parts[0] == "api" else "/".join(parts[1:3])


def _merged(before: Any, change: Any) -> Any:
    if not isinstance(before, dict) or not isinstance(change, dict):
        return change
    merged = dict(before)
    for key, value in change.items():
        if key.startswith("$"):
            continue  # a directive of a strategic patch
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merged(before.get(key), value)
    return merged


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, api: ApiServer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.api = api

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a kubelet that ends
            super().handle_error(request, client_address)


class _Handler(QuietHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path, query = self._target()
        document = self.server.api.object(path)
        if document is not None:
            self._answer(200, document)
        elif "watch" in query:
            self._watch(path, query)
        elif self._is_object(path):
            self._missing(path)
        else:
            items, version = self.server.api.listing(path)
            metadata = {"resourceVersion": str(version)}
            document = {"apiVersion": _version(path), "kind": f"{_kind(path)}List"}
            self._answer(200, {**document, "metadata": metadata, "items": items})

    def do_POST(self) -> None:
        path, _ = self._target()
        document = self._body()
        if not document.get("metadata", {}).get("name"):  # an event, a review
            self._answer(201, document)
        else:
            self._answer(201, self.server.api.create(path, document))

    def do_PUT(self) -> None:
        path, _ = self._target()
        self._answer(200, self.server.api.put(path.removesuffix("/status"), self._body()))

    def do_PATCH(self) -> None:
        path, _ = self._target()
        document = self.server.api.patch(path.removesuffix("/status"), self._body())
        if document is None:
            self._missing(path)
        else:
            self._answer(200, document)

    def do_DELETE(self) -> None:
        path, _ = self._target()
        self._body()
        document = self.server.api.delete(path)
        if document is None:
            self._missing(path)
        else:
            self._answer(200, document)

    def _target(self) -> tuple[str, dict[str, str]]:
        split = urllib.parse.urlsplit(self.path)
        return split.path, dict(urllib.parse.parse_qsl(split.query))

    @staticmethod
    def _is_object(path: str) -> bool:
        """Return whether a path names an object, not a collection."""
        parts = path.strip("/").split("/")
        del parts[: 2 if parts[0] == "api" else 3]
        if parts[:1] == ["namespaces"] and len(parts) > 2:
            del parts[:2]
        return len(parts) > 1

    def _watch(self, path: str, query: dict[str, str]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        api = self.server.api
        version = int(query.get("resourceVersion") or 0)
        if query.get("sendInitialEvents") == "true" or not version:
            items, version = api.listing(path)
            for item in items:
                self._event("ADDED", item)
            if query.get("sendInitialEvents") == "true":
                done = {"k8s.io/initial-events-end": "true"}
                metadata = {"resourceVersion": str(version), "annotations": done}
                mark = {"apiVersion": _version(path), "kind": _kind(path), "metadata": metadata}
                self._event("BOOKMARK", mark)
        while not api.ended:
            events, version = api.after(path, version)
            for kind, item in events:
                self._event(kind, item)
        self.close_connection = True

    def _event(self, kind: str, item: dict[str, Any]) -> None:
        line = json.dumps({"type": kind, "object": item}).encode() + b"\n"
        self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))

    def _body(self) -> dict[str, Any]:
        length = int(self.headers.get("Content-Length") or 0)
        return dict(json.loads(self.rfile.read(length) or b"{}"))

    def _missing(self, path: str) -> None:
        status = {"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": 404}
        self._answer(404, {**status, "reason": "NotFound", "message": f"{path} is not there"})

    def _answer(self, code: int, document: dict[str, Any]) -> None:
        data = json.dumps(document).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
