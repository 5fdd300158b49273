# SPDX-License-Identifier: Apache-2.0
"""What refers to a manifest in a registry: the lists of the distribution specification.

Owns both ways to keep and read such a list: the registry's referrers API, and the tag
``sha256-<hex>`` that clients keep up themselves where a registry has no such API (docker-registry
2.8 has none). Does not know the purpose of the artifacts. Invariants: we bound a list that others
wrote in size, pages and entries before we believe it; its entries for other artifacts survive our
change, unknown fields included; nothing writes the subject's manifest.

Facts about the lists:

* A registry with the API answers a manifest that has a subject with ``OCI-Subject``; without that
  header the client has to keep the tag. It must not answer 404 to the list of a manifest that
  nothing refers to, so 404 means that there is no API. Others say 400, 403, 405 or 501, or send the
  page of a web front end with status 200.
* Fronts of registries without the API redirect the question to a web page on another host (GHCR and
  GAR do: 303, and the page answers 429), or say 401, 406, 410 or 422 (Artifactory).
* A registry may leave the filtering by type to the client.
* Two clients that change the tag at once can lose each other's entry: registries know no
  conditional PUT that all of them honour. See `add_to_tag`.

So the list is an optional question. It takes `QUESTION_S` at most, and no outcome counts against
the registry. Any answer but a list means that there is no API: we read the tag instead, and leave
the API alone for `NO_API_S`. After no answer at all (it hangs, 429, 5xx) we leave it alone for
`UNANSWERED_S` at least; if the tag has nothing either, that is an error, since an empty list would
be a lie.

Source: distribution-spec v1.1, "Listing Referrers", "Pushing Manifests with Subject" and "Referrers
Tag Schema".
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final
from urllib.parse import urlencode

from firstread.errors import ImageError, LimitError, SourceError, TransportError
from firstread.oci.model import (
    OCI_INDEX,
    Descriptor,
)
from firstread.oci.referrers import MAX_ENTRIES, of_type, referrers_tag, with_entry
from firstread.registry.answer import Answer
from firstread.registry.backoff import Backoff, once_more
from firstread.registry.calls import given_up, within
from firstread.registry.endpoint import follow, origin
from firstread.registry.faults import retry_after
from firstread.registry.health import Declined
from firstread.registry.publishing import publish_manifest
from firstread.registry.transport import ANY, Transport

MAX_PAGES: Final = 16  # of one list; an image has some signatures, SBOMs and attestations
ATTEMPTS: Final = 8  # to get an entry into a tag's list that others change as well
SETTLE_S: Final = 0.2  # seconds after which a list is looked at again, at least

QUESTION_S: Final = 4.0  # seconds for the API, and again for the tag
NO_API_S: Final = 600.0  # seconds for which a registry without the API is not asked for it
UNANSWERED_S: Final = 60.0  # seconds for one that did not answer, at least
COSTS: Final = 150.0  # times as long as no answer took

_MAX_LINK: Final = 4096  # characters
_NOT_IMPLEMENTED: Final = 501
_LATER: Final = (408, 429)
_OF_ONE: Final = (200, 401, 403)  # which tell of the content, or the rights, of one repository
# One link of the header, from where the one before ends, and what kinds of link it is.
_TARGET: Final = re.compile(r'[\s,]*+<([^<>]*+)>((?:[^",]++|"[^"]*+")*+)')
_RELATION: Final = re.compile(r';\s*+rel\s*+=\s*+(?:"([^"]*+)"|([^\s";]*+))', re.IGNORECASE)


class _NoListError(ImageError):
    """The answer is no list, whatever its media type says."""


def next_page(link: str) -> str | None:
    """Return where a ``Link`` header says that the list goes on (RFC 8288)."""
    text, at = link[:_MAX_LINK], 0
    while match := _TARGET.match(text, at):
        relation = _RELATION.search(match[2])
        if relation and "next" in (relation[1] or relation[2]).lower().split():
            return match[1]
        at = match.end()
    return None


def list_referrers(
    transport: Transport, subject: str, artifact_type: str, declined: Declined
) -> list[Descriptor]:
    """Return the entries of a type in the list of what refers to `subject`.

    Args:
        transport: to the repository.
        subject: digest of a manifest.
        artifact_type: of the entries wanted.
        declined: remembers registries without the API.

    Raises:
        ImageError: the list is not valid, or too long.
        SourceError: the registry does not answer within some seconds.
    """
    what = f"cannot list what refers to {subject}"
    silent = _declined_by(transport, declined)
    if silent is None:
        url = f"{transport.root}/referrers/{subject}?{urlencode({'artifactType': artifact_type})}"
        try:
            with _question(declined, transport.base):
                answer = once_more(lambda: _ask(transport, url, what))
                if _is_list(answer):
                    with suppress(_NoListError):
                        return _listed(transport, answer, what, artifact_type)
        except TransportError as exc:
            if given_up():
                raise
            silent = exc.message
        else:
            silent = ""
            whom = (
                f"{transport.base}{transport.root}" if answer.status in _OF_ONE else transport.base
            )
            declined.note(whom, NO_API_S)
    if why := declined.reason(f"{transport.base}#tag"):
        raise TransportError(why)
    with _question(declined, f"{transport.base}#tag"):
        data = once_more(lambda: _read_tag(transport, subject, is_optional=True))
    if data is not None:
        return of_type(data, artifact_type)[0]
    if silent:
        raise TransportError(silent)
    return []


@contextmanager
def _question(declined: Declined, whom: str) -> Iterator[None]:
    """Ask in the block, within `QUESTION_S`; remember if there is no answer.

    The longer it took, the longer we remember, so that the question costs little of the time.
    """
    begun = time.monotonic()
    try:
        with within(QUESTION_S):
            yield
    except TransportError as exc:
        if not given_up():
            seconds = max(UNANSWERED_S, COSTS * (time.monotonic() - begun))
            declined.note(whom, seconds, exc.message)
        raise


def _declined_by(transport: Transport, declined: Declined) -> str | None:
    """Return why the API is not asked now; None if it is."""
    reasons = (
        declined.reason(whom) for whom in (transport.base, f"{transport.base}{transport.root}")
    )
    return next((reason for reason in reasons if reason is not None), None)


def _ask(transport: Transport, url: str, what: str) -> Answer:
    """Ask the API. Raises TransportError if the answer says nothing about it."""
    try:
        answer = transport.request("GET", url, what=what, expect=ANY, stay=True)
    except TransportError:
        raise
    except (SourceError, LimitError):  # no address, no token for it; a page without end
        return Answer(404, {}, b"", url)
    _check_answered(answer, what)
    return answer


def _listed(
    transport: Transport, answer: Answer, what: str, artifact_type: str
) -> list[Descriptor]:
    """Return the entries of a type, of a list that begins with `answer`."""
    found: list[Descriptor] = []
    seen, url = 0, ""
    for page in range(MAX_PAGES):
        if page:
            answer = transport.request("GET", url, what=what, stay=True)
        try:
            entries, count = of_type(answer.data, artifact_type)
        except LimitError:
            raise
        except ImageError as exc:
            raise _NoListError(f"{what}: {exc.message}") from exc
        found += entries
        seen += count
        if seen > MAX_ENTRIES:
            break
        following = following_page(answer)
        if following is None:
            return found
        url = following
    raise LimitError(f"{what}: the list is too long")


def _is_list(answer: Answer) -> bool:
    media_type = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return answer.status == 200 and media_type == OCI_INDEX


def following_page(answer: Answer) -> str | None:
    """Return the address of the next page of a list; None after the last.

    Raises:
        SourceError: it is on another host.
    """
    target = next_page(answer.headers.get("Link", ""))
    if target is None:
        return None
    url = follow(answer.url, target)
    if origin(url) != origin(answer.url):
        raise SourceError("the registry names another host for the rest of a list")
    return url


def _read_tag(transport: Transport, subject: str, *, is_optional: bool = False) -> bytes | None:
    """Return the list that clients keep at a tag; None if there is none.

    Args:
        transport: to the repository.
        subject: digest of a manifest.
        is_optional: take a refusal for "there is none".
    """
    what = f"cannot list what refers to {subject}"
    answer = transport.request(
        "GET",
        f"{transport.root}/manifests/{referrers_tag(subject)}",
        what=what,
        expect=ANY if is_optional else (200, 404),
        headers={"Accept": OCI_INDEX},
    )
    _check_answered(answer, what)
    return answer.data if answer.status == 200 else None


def _check_answered(answer: Answer, what: str) -> None:
    """Raise TransportError if an answer says nothing about the question."""
    if answer.status in _LATER or (answer.status >= 500 and answer.status != _NOT_IMPLEMENTED):
        error = TransportError(f"{what}: the registry answers {answer.status}")
        error.retry_after = retry_after(answer.headers)
        raise error


def add_to_tag(transport: Transport, backoff: Backoff, subject: str, entry: Descriptor) -> None:
    """Have `entry` in the list that clients keep at a tag.

    Reads, adds, writes, waits a moment and looks whether the entry is still there, since another
    client may have written a list that it had read before. The longest wait writes last, and every
    client that lost an entry sees it. A client that sleeps longer than this between its read and
    its write can still undo ours: attach again then.

    Raises:
        ImageError: the tag names something else than a list.
        SourceError: the registry refuses, or others keep on undoing it.
    """
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(SETTLE_S * random.uniform(1, 1 + attempt))  # noqa: S311  (spreads clients)
        try:
            listed = backoff.insist(lambda: _read_tag(transport, subject))
            changed = with_entry(listed, entry)
        except ImageError as exc:
            exc.message = f"tag {referrers_tag(subject)} is no list of referrers: {exc.message}"
            exc.hint = "something else has this name: remove the tag"
            raise
        if changed is None:
            return
        _write_tag(transport, backoff, subject, changed)
    raise SourceError(
        f"others keep on changing the list of what refers to {subject}",
        hint="attach it again when they are done",
    )


def _write_tag(transport: Transport, backoff: Backoff, subject: str, data: bytes) -> None:
    what = f"cannot write the list of what refers to {subject}"
    backoff.insist(
        lambda: publish_manifest(transport, referrers_tag(subject), data, OCI_INDEX, what)
    )
