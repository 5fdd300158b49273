# SPDX-License-Identifier: Apache-2.0
"""Which images a Kubernetes cluster runs: those of its pods that have not ended.

Owns the question to the API server. Invariants: the answer is bounded; the name is the one that the
pod states, since its next start pulls that.

The rights that it needs: ``list`` of pods, in all namespaces or in the one that is asked about.

Sources: Kubernetes API, core/v1 ``Pod``; "Retrieving large results sets in chunks".
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from firstread.errors import AuthError, ImageError, SourceError, TransportError, UsageError
from firstread.oci.untrusted import decode
from firstread.registry.answer import read_whole, release
from firstread.registry.backoff import Backoff
from firstread.registry.connections import Connections
from firstread.registry.hosts import Endpoint
from firstread.registry.options import AccessOptions
from firstread.sync.kubeconfig import ClusterAccess, in_memory

PAGE: Final = 50  # pods that we ask for at a time; one has 10 to 30 KB
MAX_PAGES: Final = 4000
MAX_IMAGES: Final = 50_000
MAX_EXPIRIES: Final = 10  # of a list; a server keeps what it lists from for 5 minutes or more
OK: Final = 200
GONE: Final = 410  # ResourceExpired
_ENDED: Final = ("Succeeded", "Failed")
_HINTS: Final[dict[type[SourceError], str]] = {
    SourceError: "check the server and the certificates of the kubeconfig",
    TransportError: "check that the server of the kubeconfig can be reached from here",
    AuthError: "the user of the kubeconfig needs the right to list pods",
}


class _Container(msgspec.Struct, frozen=True):
    image: str = ""


class _ImageVolume(msgspec.Struct, frozen=True):
    reference: str = ""


class _Volume(msgspec.Struct, frozen=True):
    image: _ImageVolume | None = None


class _Spec(msgspec.Struct, frozen=True, rename="camel"):
    containers: list[_Container] = []
    init_containers: list[_Container] = []
    ephemeral_containers: list[_Container] = []
    volumes: list[_Volume] = []


class _Status(msgspec.Struct, frozen=True):
    phase: str = ""


class _Pod(msgspec.Struct, frozen=True):
    spec: _Spec = _Spec()
    status: _Status = _Status()


class _Meta(msgspec.Struct, frozen=True):
    more: str = msgspec.field(name="continue", default="")


class _PodList(msgspec.Struct, frozen=True):
    items: list[_Pod] = []
    metadata: _Meta = _Meta()


class _Expired(_PodList, frozen=True):
    """Instead of a page: nobody knows its token any more. Has the token of the pods that follow.

    Those are listed as they are by then. Without a token the list begins anew.
    """


def running_images(
    access: ClusterAccess, namespace: str = "", options: AccessOptions | None = None
) -> list[str]:
    """Return the images of the pods of a cluster that have not ended, as the pods name them.

    Args:
        access: to the API server.
        namespace: of the pods; empty for all.
        options: time limits and retries.

    Raises:
        AuthError: the server refuses.
        SourceError: it does not answer, or gives no list of pods.
        UsageError: a certificate or key is not valid.
    """
    options = options or AccessOptions()
    path = f"/api/v1/namespaces/{quote(namespace, safe='')}/pods" if namespace else "/api/v1/pods"
    found: dict[str, None] = {}
    with ExitStack() as stack:
        server = _ApiServer(access, options, stack)
        for page in _pages(server, path, options):
            for pod in page.items:
                if pod.status.phase not in _ENDED:
                    found.update(dict.fromkeys(_images(pod.spec)))
            if len(found) > MAX_IMAGES:
                raise SourceError(f"the cluster runs more than {MAX_IMAGES} images")
    return list(found)


def _images(spec: _Spec) -> Iterator[str]:
    for container in (*spec.init_containers, *spec.containers, *spec.ephemeral_containers):
        yield from filter(None, [container.image])
    for volume in spec.volumes:
        if volume.image is not None and volume.image.reference:
            yield volume.image.reference


def _pages(server: _ApiServer, path: str, options: AccessOptions) -> Iterator[_PodList]:
    backoff, more, expiries = Backoff(options), "", 0
    for _ in range(MAX_PAGES):
        query = urlencode({"limit": PAGE, **({"continue": more} if more else {})})
        page = backoff.insist(partial(server.list_pods, f"{path}?{query}"))
        more = page.metadata.more
        if isinstance(page, _Expired):
            expiries += 1
            if expiries > MAX_EXPIRIES:
                raise SourceError(f"the list of pods has expired {expiries} times")
            continue
        yield page
        if not more:
            return
    raise SourceError(f"the list of pods has more than {MAX_PAGES} pages")


class _ApiServer:
    """The API server of a cluster.

    Args:
        access: how it is reached.
        options: time limits.
        stack: ends connections and gives certificates back.

    Raises:
        UsageError: a certificate or key is not valid.
    """

    def __init__(self, access: ClusterAccess, options: AccessOptions, stack: ExitStack) -> None:
        parts = urlsplit(access.server)
        clients: tuple[tuple[Path, Path | None], ...] = ()
        if access.certificate:
            certificate = stack.enter_context(in_memory(access.certificate, "certificate"))
            clients = ((certificate, stack.enter_context(in_memory(access.key, "key"))),)
        ca = stack.enter_context(in_memory(access.ca, "ca")) if access.ca else None
        endpoint = Endpoint(
            parts.scheme, parts.netloc, clients=clients, skip_verify=access.skip_verify
        )
        options = replace(options, ca_file=ca, insecure_tls=False)
        try:
            self._connections = Connections(endpoint, options)
        except UsageError:  # it would name a file that nobody knows
            raise UsageError("a certificate or key of the kubeconfig is not valid") from None
        stack.callback(self._connections.close)
        self._url, self._options = access.server, options
        self._what = f"cannot list the pods of {parts.netloc}"
        self._headers = {"Accept": "application/json"}
        if access.authorization:
            self._headers["Authorization"] = access.authorization

    def list_pods(self, target: str) -> _PodList:
        """Return a page of a list, or that it has expired, in one attempt.

        Raises:
            SourceError: the server gives none.
        """
        try:
            return self._ask(f"{self._url}{target}")
        except SourceError as exc:  # in the words for a registry, which this is not
            exc.message = exc.message.replace("registry ", "", 1)
            exc.hint = _HINTS.get(type(exc), exc.hint)
            if self._what not in exc.message:
                exc.message = f"{self._what}: {exc.message}"
            raise
        except ImageError as exc:
            raise SourceError(f"{self._what}: {exc.message}", hint=_HINTS[SourceError]) from exc

    def _ask(self, url: str) -> _PodList:
        response = self._connections.request("GET", url, self._headers, None)
        kind = {OK: _PodList, GONE: _Expired}.get(response.status)
        if kind is None:
            release(response)
            raise _refusal(self._what, response.status)
        data = read_whole(response, self._what, url, self._options.answer_timeout)
        return decode(data, kind, "the list of pods")


def _refusal(what: str, status: int) -> SourceError:
    kind: type[SourceError] = SourceError
    if status in (401, 403):
        kind = AuthError
    elif status == 429 or status >= 500:
        kind = TransportError
    return kind(f"{what}: it answers {status}")
