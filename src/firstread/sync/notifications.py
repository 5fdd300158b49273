# SPDX-License-Identifier: Apache-2.0
"""What registries say of pushes: two forms of webhook, read as untrusted bytes. Pure.

Owns the forms. Invariant: a notification gives names of tags that a reference can have, or
ImageError, nothing else; it never says which registry to ask.

* *CNCF distribution*: an envelope of events
  (``application/vnd.docker.distribution.events.v1+json``). A push of an image gives an event for
  each blob and manifest; that of its tag names the tag.
* *Harbor*: one event ``PUSH_ARTIFACT`` with the tags of one repository.

Sources: distribution, docs "Notifications" and ``notifications/event.go``; Harbor,
``src/pkg/notifier/model/event.go``.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from firstread.errors import ImageError, LimitError, UsageError
from firstread.oci.model import INDEXES, MANIFESTS
from firstread.oci.reference import Reference, parse_reference
from firstread.oci.untrusted import decode

MAX_EVENTS: Final = 1000  # of a notification; registries send one, or a few

_PUSHED: Final = "PUSH_ARTIFACT"


class _Target(msgspec.Struct, frozen=True, rename="camel"):
    repository: str = ""
    tag: str = ""
    digest: str = ""
    media_type: str = ""


class _Event(msgspec.Struct, frozen=True):
    action: str = ""
    target: _Target = _Target()


class _Resource(msgspec.Struct, frozen=True):
    digest: str = ""
    tag: str = ""


class _Repository(msgspec.Struct, frozen=True):
    repo_full_name: str = ""


class _Data(msgspec.Struct, frozen=True):
    resources: list[_Resource] = []
    repository: _Repository = _Repository()


class _Notification(msgspec.Struct, frozen=True):
    """Either form: Harbor's has a type, the other one events."""

    events: list[_Event] | None = None
    type: str | None = None
    event_data: _Data = _Data()


class Pushed(NamedTuple):
    """A tag that was pushed.

    Args:
        name: the tag, in the registry that notifies.
        digest: of what it named then; empty if the notification does not say.
    """

    name: Reference
    digest: str


def parse_notification(data: bytes, host: str) -> list[Pushed]:
    """Return the tags of images that a notification tells of, each once.

    Args:
        data: body of the request.
        host: the registry that notifies, whatever the notification says.

    Raises:
        ImageError: it is no notification of either form (LimitError: it is too long).
    """
    found = decode(data, _Notification, "the notification")
    if found.events is not None:
        if len(found.events) > MAX_EVENTS:
            raise LimitError(f"the notification has more than {MAX_EVENTS} events")
        told = [
            (event.target.repository, event.target.tag, event.target.digest)
            for event in found.events
            if event.action == "push" and event.target.media_type in MANIFESTS | INDEXES
        ]
    elif found.type is not None:
        if len(found.event_data.resources) > MAX_EVENTS:
            raise LimitError(f"the notification has more than {MAX_EVENTS} resources")
        repository = found.event_data.repository.repo_full_name
        resources = found.event_data.resources if found.type == _PUSHED else []
        told = [(repository, each.tag, each.digest) for each in resources]
    else:
        raise ImageError("the notification is of no known form")
    pushed: dict[Reference, str] = {}
    for repository, tag, digest in told:
        name = _name(host, repository, tag)
        if name is not None:
            pushed[name] = digest
    return [Pushed(name, digest) for name, digest in pushed.items()]


def _name(host: str, repository: str, tag: str) -> Reference | None:
    """Return the reference of a tag; None for a push without one, or of what can be no image."""
    try:
        name = parse_reference(f"{host}/{repository}:{tag}")
    except UsageError:
        return None
    return name if (name.host, name.repository, name.tag) == (host, repository, tag) else None
