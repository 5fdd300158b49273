# SPDX-License-Identifier: Apache-2.0
"""How this node reaches registries: settings, what is known of endpoints, credentials in memory.

Owns the settings and the endpoint health that all mounts share, and how many requests may wait for
registries. Invariant: credentials that were given to the daemon stay in the memory of its
processes: no record, no message and no answer has them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from firstread.config import RegistryTable
from firstread.errors import FirstreadError, UsageError
from firstread.fetch.stats import Feed
from firstread.mounts.headed import HeadedRepository
from firstread.mounts.heads import Head, Heads
from firstread.mounts.nodestatus import EndpointStatus
from firstread.mounts.pulls import PATIENT, Pulls, Seats, Waiting
from firstread.mounts.secrets import SecretMemory
from firstread.mounts.warm import WarmRepositories
from firstread.oci.model import Descriptor
from firstread.oci.reference import Reference, parse_reference
from firstread.oci.repository import Repository
from firstread.registry.access import NODE_ACCESS, Access
from firstread.registry.credentials import Credentials
from firstread.registry.health import KnownEndpoints
from firstread.registry.hosts import Endpoint
from firstread.registry.login import try_login
from firstread.registry.logins import Logins
from firstread.registry.open import open_source
from firstread.registry.remote import RemoteRepository

log = logging.getLogger("network")

T = TypeVar("T")

# At a time, of all registries and of one. Each waiter has a thread of the control server, which has
# more: it answers what needs no registry however many registries hang.
WAITING = (384, 192)
PULLS = (192, 64)


class Network:
    """Registries, as all mounts of a node see them.

    Args:
        settings: ``[registry]`` of the configuration.
        memory: where given credentials survive a fetcher.
        feed: told when an endpoint fails, and when it works again.
    """

    def __init__(self, settings: RegistryTable, memory: SecretMemory, feed: Feed) -> None:
        self._known = KnownEndpoints(self._note)
        self._feed = feed
        self._memory = memory
        self._logins = Logins()
        self._logins.load(memory.load())
        self._lock = threading.RLock()
        # Of each scope: what it had before, then what is being tried, the latest last.
        self._tried: dict[str, list[Credentials | None]] = {}
        self._heads = Heads()
        self._warm = WarmRepositories()
        self._calls: Pulls[Any] = Pulls(Seats(*WAITING), Seats(*PULLS, "pulls wait"))
        directory = settings.credentials_dir
        self._options = replace(
            NODE_ACCESS,
            hosts_dirs=tuple(map(Path, settings.hosts_dirs)),
            credentials_dir=Path(directory) if directory else None,
            logins=self._logins,
            who=f"the daemon (process {os.getpid()})",
            connect_timeout=settings.connect_timeout_s,
            first_byte_timeout=settings.first_byte_timeout_s,
            read_timeout=settings.stall_timeout_s,
            answer_timeout=settings.answer_timeout_s,
            least_rate=float(settings.least_rate),
            hedge_share=settings.hedge_share,
        )

    def endpoints(self) -> list[EndpointStatus]:
        """Return the health of each endpoint that this process has asked."""
        return [EndpointStatus(**each) for each in self._known.documents()]

    def open(self, reference: Reference, access: Access) -> Repository:
        """Open the repository of an image for reading. As `open_source`."""
        return open_source(reference, access.options(self._options), self._known)

    def open_warm(self, reference: Reference, access: Access) -> Repository:
        """`open`, with the connections of the last pull from there.

        Args:
            reference: of a repository, without tag and digest.
            access: to it.
        """
        key = self._key(reference, access)
        opened = self._warm.take(key) or self.open(reference, access)
        return HeadedRepository(opened, self._heads, key)

    def connect_ahead(self, repository: Repository) -> None:
        """`RemoteRepository.connect_ahead` in a thread of its own; a disk needs none."""
        if isinstance(repository, RemoteRepository):
            thread = threading.Thread(target=repository.connect_ahead, name="connect", daemon=True)
            with contextlib.suppress(RuntimeError):  # no thread is left: so it is made when needed
                thread.start()

    def begin_head(self, repository: Repository, access: Access, blob: Descriptor) -> Head | None:
        """As `Heads.begin`; a disk is near enough without that."""
        if not isinstance(repository, RemoteRepository):
            return None
        key = self._key(repository.shared().reference, access)
        return self._heads.begin(key, blob, repository)

    def head_of(self, reference: Reference, access: Access, blob: Descriptor) -> Head | None:
        """Return the first bytes of a blob, if they came beside a pull; as `open_warm`."""
        return self._heads.find(self._key(reference, access), blob)

    def _keep(self, repository: Repository, access: Access) -> None:
        """Keep the connections of a pull that went well for the lane that may follow."""
        if isinstance(repository, RemoteRepository):
            shared = repository.shared()
            self._warm.keep(self._key(shared.reference, access), shared)
        else:
            repository.close()

    def _key(self, reference: Reference, access: Access) -> Hashable:
        """Return what has to be the same for one to use the connections of another."""
        return reference, access, self.given(reference)

    def ask(
        self,
        what: Hashable,
        reference: Reference,
        access: Access,
        work: Callable[[Repository, Callable[..., None]], T],
        waiter: Waiting = PATIENT,
    ) -> tuple[T, float]:
        """Ask the registry of an image in a thread of its own, for as long as somebody waits.

        Args:
            what: is asked; a second caller who asks the same joins the first.
            reference: of the image.
            access: to its registry.
            work: is given the opened repository, and calls its second argument when it knows what
                the name means, with digests of it: who asks for one of them joins, too.
            waiter: who waits for it.

        Returns:
            what `work` returns, and when it knew (monotonic seconds).

        Raises:
            FirstreadError: as `work` and `Pulls.wait`; names the image.
        """

        def key(place: Reference) -> Hashable:
            return what, self._key(place, access)

        def run(on_resolved: Callable[..., None]) -> T:
            def resolved(*digests: str) -> None:
                on_resolved(*(key(replace(reference, tag=None, digest=each)) for each in digests))

            repository = self.open(reference, access)
            try:
                done = work(repository, resolved)
            except BaseException:
                repository.close()
                raise
            self._keep(repository, access)
            return done

        registry = reference.host or reference.transport
        try:
            return self._calls.wait(key(reference), registry, run, waiter)
        except FirstreadError as exc:
            exc.about(image=str(reference))
            raise

    def prove_login(
        self, scope: str, credentials: Credentials, access: Access, waiter: Waiting = PATIENT
    ) -> None:
        """Keep credentials in memory if the registry takes them.

        Args:
            scope: as `login`.
            credentials: as `login`.
            access: to the registry.
            waiter: who waits for it.

        Raises:
            FirstreadError: the registry refuses them, or cannot be asked; nothing is kept then.
        """
        key = ("login", scope, credentials, access)
        registry = scope.partition("/")[0]
        self._calls.wait(
            key, registry, lambda _: self.try_login(scope, credentials, access), waiter
        )
        self.login(scope, credentials)

    def login(self, scope: str, credentials: Credentials | None) -> None:
        """Keep credentials in memory, until others come or the daemon ends.

        Args:
            scope: ``HOST``, or ``HOST/REPOSITORY`` for a part of it.
            credentials: in place of those that it had; None for none.

        Raises:
            UsageError: `scope` is none; there are too many.
        """
        if not scope or scope.startswith("/"):
            raise UsageError(f"{scope!r} is neither HOST nor HOST/REPOSITORY")
        with self._lock:
            before = self._logins.put(scope, credentials)
            try:
                self._memory.save(self._logins.dump())
            except UsageError:
                self._logins.put(scope, before)
                raise

    def pulled(self, reference: Reference, credentials: Credentials | None) -> None:
        """Keep what a successful pull has shown, if anything, for the repository of its image.

        Raises:
            UsageError: there are too many.
        """
        with self._lock:
            self._logins.pulled.keep(_repository(reference), credentials)
            self._memory.save(self._logins.dump())

    def wants_pull(self, reference: Reference) -> bool:
        """Return whether the registry refuses all credentials; a pull may bring others."""
        return self._logins.pulled.is_wanted(_repository(reference))

    def trying_pull_secrets(
        self, reference: Reference, several: Sequence[Credentials], *, foretold: bool
    ) -> AbstractContextManager[None]:
        """Have credentials for the repository of an image in a block. As `PullSecrets.trying`."""
        return self._logins.pulled.trying(_repository(reference), several, foretold=foretold)

    def given(self, reference: Reference) -> Credentials | None:
        """Return the credentials in memory for an image."""
        if reference.transport != "docker":
            return None
        return self._logins.find(reference.host, reference.repository)

    def try_login(self, scope: str, credentials: Credentials, access: Access) -> None:
        """Show credentials to a registry. As `firstread.registry.login.try_login`."""
        options = replace(access.options(self._options), auth_file=None, who="")
        try:
            try_login(scope, credentials, options)
        except FirstreadError:
            self._logins.note_refused(credentials)
            raise

    @contextmanager
    def trying(self, image: str, credentials: Credentials) -> Iterator[None]:
        """Keep credentials for the repository of `image`, unless the block fails.

        Several may be tried at once: one that fails leaves the others, and what was there before.
        """
        reference = parse_reference(image)
        if reference.transport != "docker":
            raise UsageError("a password makes no sense here: it is no registry", image=image)
        scope = _repository(reference)
        with self._lock:
            before = self._logins.exactly(scope)
            self.login(scope, credentials)
            self._tried.setdefault(scope, [before]).append(credentials)
        worked = False
        try:
            yield
            worked = True
        finally:
            with self._lock:
                self._tried_out(scope, credentials, worked=worked)

    def _tried_out(self, scope: str, credentials: Credentials, *, worked: bool) -> None:
        """Note what came of credentials that were tried; the lock is held."""
        tried = self._tried[scope]
        tried.remove(credentials)
        if len(tried) == 1:
            del self._tried[scope]
        if worked:
            tried[0] = credentials
            return
        self._logins.note_refused(credentials)
        if self._logins.exactly(scope) == credentials and credentials not in tried:
            self.login(scope, tried[-1])

    def _note(self, state: str, endpoint: Endpoint, why: str) -> None:
        fields = {"endpoint": endpoint.name, "registry": endpoint.namespace or endpoint.host}
        if state == "healthy":
            log.info("an endpoint works again", extra={"fields": fields})
        else:
            log.warning("an endpoint rests", extra={"fields": fields | {"error": why}})
        self._feed.tell("endpoint", state=state, error=why or None, **fields)


def _repository(reference: Reference) -> str:
    return f"{reference.host}/{reference.repository}"
