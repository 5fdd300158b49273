# SPDX-License-Identifier: Apache-2.0
"""The requests that a daemon answers: the table of routes, with the documents of their requests.

Owns the translation of requests into calls of `Node`. Knows nothing of sockets. Fields of a request
that are not known come from a later version, and are ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeVar

import msgspec

from firstread.fetch.policy import AS_CONFIGURED, Asked
from firstread.fetch.tracelog import SeenReads
from firstread.mounts.node import Node
from firstread.mounts.nodestatus import Mounted, MountHistory, Pulled
from firstread.mounts.pulls import Waiting
from firstread.mounts.startspans import checked_context
from firstread.oci.reference import parse_reference
from firstread.registry.access import Access
from firstread.registry.credentials import Credentials
from firstread.registry.pullsecrets import MAX_EACH
from firstread.structs import completed

T = TypeVar("T")


class Password(msgspec.Struct):
    """What a client gives a daemon for a registry."""

    username: str
    password: str

    def credentials(self) -> Credentials:
        """Return it as registries take it. Raises UsageError."""
        return Credentials.of(self.username, self.password)


class PullRequest(msgspec.Struct):
    """``POST /pull``: see `Node.pull`. The secrets count for this call only.

    ``foretold`` says that somebody else pulls the image, and that it is only wanted early.
    """

    image: str
    access: Access = Access()
    policy: str = "missing"
    context: str = ""
    pull_secrets: Annotated[list[Password], msgspec.Meta(max_length=MAX_EACH)] = []
    foretold: bool = False

    def __post_init__(self) -> None:
        self.context = checked_context(self.context)


class MountRequest(PullRequest):
    """``POST /mount``: see `Node.mount`."""

    directory: str | None = None
    holder: str = ""
    policies: Asked = AS_CONFIGURED
    login: Password | None = None
    command: str = ""


class LoginRequest(msgspec.Struct):
    """``POST /login``: see `Network.prove_login`."""

    scope: str
    login: Password
    access: Access = Access()


class PulledRequest(msgspec.Struct):
    """``POST /pulled``: see `Network.pulled`."""

    image: str
    login: Password | None


class WantsPullRequest(msgspec.Struct):
    """``POST /wants-pull``: see `Network.wants_pull`."""

    image: str


class UmountRequest(msgspec.Struct):
    """``POST /umount``: see `Node.umount`."""

    directory: str
    lazy: bool = False


class PinRequest(msgspec.Struct):
    """``POST /pin``: see `Node.pin`."""

    directory: str


class HistoryRequest(msgspec.Struct):
    """``POST /history``: see `Node.history`."""

    directory: str


class SeenRequest(msgspec.Struct):
    """``POST /seen``: see `Node.seen`."""

    directory: str


class ReleaseRequest(msgspec.Struct):
    """``POST /release``: see `Node.release`."""

    holder: str


class PruneRequest(msgspec.Struct):
    """``POST /cache/prune``: see `OnlineMaintenance.prune`."""

    keep_bytes: int
    dry_run: bool


class DropRequest(msgspec.Struct):
    """``POST /cache/drop``: see `OnlineMaintenance.drop`."""

    digests: list[str]


class VerifyRequest(msgspec.Struct):
    """``POST /cache/verify``: see `OnlineMaintenance.verify`."""

    repair: bool


@dataclass
class Call:
    """A request that is being answered.

    Args:
        node: that is asked.
        body: of the request.
        client: who waits for the answer.
        complete: adds to the status what the node does not know.
        taking_long: limits calls that take long.
        undo: what to do if the client does not take the answer.
    """

    node: Node
    body: dict[str, Any]
    client: Waiting
    complete: Callable[[Any], object]
    taking_long: Callable[[], AbstractContextManager[None]]
    undo: Callable[[], None] = lambda: None

    def read(self, kind: type[T]) -> T:
        """Return the request as what it has to be. Raises ValueError if it is not."""
        return msgspec.convert(self.body, completed(kind))


def _status(call: Call) -> object:
    return call.complete(call.node.status())


def _mount(call: Call) -> Mounted:
    node, request = call.node, call.read(MountRequest)
    holder, given = request.holder, request.login
    if holder and not node.holds(holder):
        call.undo = lambda: node.release(holder)
    trying = node.network.trying(request.image, given.credentials()) if given else nullcontext()
    with trying, _trying_pull_secrets(call, request):
        mounted = node.mount(
            request.image,
            request.directory,
            request.access,
            policy=request.policy,
            holder=holder,
            asked=request.policies,
            command=request.command,
            waiter=call.client,
            context=request.context,
        )
    if request.directory is not None:
        call.undo = lambda: node.umount(mounted.mountpoint)
    return mounted


def _pull(call: Call) -> Pulled:
    request = call.read(PullRequest)
    reference = parse_reference(request.image)
    context = request.context
    with _trying_pull_secrets(call, request):
        image = call.node.pull(
            reference, request.access, request.policy, waiter=call.client, context=context
        )
    return Pulled(image.digest, image.config)


def _trying_pull_secrets(call: Call, request: PullRequest) -> AbstractContextManager[None]:
    secrets = [each.credentials() for each in request.pull_secrets]
    if not secrets and not request.foretold:
        return nullcontext()
    reference = parse_reference(request.image)
    return call.node.network.trying_pull_secrets(reference, secrets, foretold=request.foretold)


def _login(call: Call) -> None:
    request = call.read(LoginRequest)
    credentials = request.login.credentials()
    call.node.network.prove_login(request.scope, credentials, request.access, call.client)


def _pulled(call: Call) -> None:
    request = call.read(PulledRequest)
    credentials = request.login.credentials() if request.login else None
    call.node.network.pulled(parse_reference(request.image), credentials)


def _wants_pull(call: Call) -> object:
    reference = parse_reference(call.read(WantsPullRequest).image)
    return {"wants_pull": call.node.network.wants_pull(reference)}


def _umount(call: Call) -> None:
    request = call.read(UmountRequest)
    call.node.umount(request.directory, lazy=request.lazy)


def _release(call: Call) -> None:
    call.node.release(call.read(ReleaseRequest).holder)


def _pin(call: Call) -> None:
    call.node.pin(call.read(PinRequest).directory)


def _history(call: Call) -> MountHistory:
    return call.node.history(call.read(HistoryRequest).directory)


def _seen(call: Call) -> SeenReads:
    return call.node.seen(call.read(SeenRequest).directory)


def _list_cache(call: Call) -> object:
    return call.node.maintenance.listing()


def _prune(call: Call) -> object:
    request = call.read(PruneRequest)
    return call.node.maintenance.prune(request.keep_bytes, dry_run=request.dry_run)


def _drop(call: Call) -> object:
    return call.node.maintenance.drop(call.read(DropRequest).digests)


def _verify(call: Call) -> object:
    request = call.read(VerifyRequest)
    with call.taking_long():
        return call.node.maintenance.verify(repair=request.repair, check=call.client.check)


ROUTES: Final[dict[tuple[str, str], Callable[[Call], object]]] = {
    ("GET", "/status"): _status,
    ("GET", "/cache"): _list_cache,
    ("POST", "/mount"): _mount,
    ("POST", "/umount"): _umount,
    ("POST", "/release"): _release,
    ("POST", "/pin"): _pin,
    ("POST", "/history"): _history,
    ("POST", "/seen"): _seen,
    ("POST", "/login"): _login,
    ("POST", "/pulled"): _pulled,
    ("POST", "/wants-pull"): _wants_pull,
    ("POST", "/pull"): _pull,
    ("POST", "/cache/prune"): _prune,
    ("POST", "/cache/drop"): _drop,
    ("POST", "/cache/verify"): _verify,
}
"""By method and path: gives the document of the answer, or None. Beside them the handler answers
``GET /events`` and ``GET /metrics``, which are not documents."""
