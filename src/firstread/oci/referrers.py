# SPDX-License-Identifier: Apache-2.0
"""What refers to a manifest in a registry: the lists of the distribution specification.

Owns both ways to keep and read such a list: the registry's referrers API, and the tag
``sha256-<hex>`` that clients keep up themselves where a registry has no such API (docker-registry
2.8 has none). Does not know what the artifacts are for. Invariants: a list that others wrote is
bounded in size, pages and entries before it is believed; what it says of other artifacts survives
our change of it, unknown fields included; the manifest that is referred to is never written.

Facts about the lists:

* A registry with the API answers a manifest that has a subject with ``OCI-Subject``; without that
  header the client has to keep the tag. It must not answer 404 to the list of a manifest that
  nothing refers to, so 404 means that there is no API. Others say 400, 403, 405 or 501, or send the
  page of a web front end with status 200.
* Fronts of registries without the API send whoever asks for a list to a web page on another host
  (GHCR and GAR do: 303, and the page answers 429), or say 401, 406, 410 or 422 (Artifactory).
* A registry may leave the filtering by type to the client, whatever was asked for.
* Two clients that change the tag at once can lose each other's entry: registries know no
  conditional PUT that all of them honour. See `add_to_tag`.

So the list is an optional question. It is asked within `QUESTION_S`, and nothing that comes of it
is held against the registry. Any answer but a list means that there is no API: the tag is read
instead, and the API is left alone for `NO_API_S`. No answer at all (it hangs, 429, 5xx) leaves it
alone for `UNANSWERED_S` at least; if the tag has nothing either, that is an error, since an empty
list would be a lie.

Source: distribution-spec v1.1, "Listing Referrers", "Pushing Manifests with Subject" and "Referrers
Tag Schema".
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeVar
from urllib.parse import urlencode

from firstread.errors import ImageError, LimitError, SourceError, TransportError, UsageError
from firstread.oci.calls import given_up, within
from firstread.oci.endpoint import follow, origin
from firstread.oci.faults import retry_after
from firstread.oci.model import (
    MAX_MANIFEST_SIZE,
    OCI_INDEX,
    Descriptor,
    Index,
    Manifest,
    describe,
    encode,
    parse_index,
    parse_manifest,
    written,
)
from firstread.oci.standing import Declined
from firstread.oci.transport import ANY, SUCCESS, Answer, Transport
from firstread.units import KiB

T = TypeVar("T")

MAX_PAGES: Final = 16  # of one list; an image has some signatures, SBOMs and attestations
MAX_ENTRIES: Final = 4096  # of one list, of all types
MAX_EMBEDDED: Final = 64 * KiB  # bytes of a manifest that its entry in a tag's list carries
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
    """An answer is no list, whatever it calls itself."""


def referrers_tag(digest: str) -> str:
    """Return the tag of the list of what refers to a manifest."""
    algorithm, _, encoded = digest.partition(":")
    return f"{algorithm[:32]}-{encoded[:64]}"


def describe_referrer(data: bytes, media_type: str) -> tuple[Descriptor, Descriptor]:
    """Return what a manifest refers to, and its own entry in a list.

    Raises:
        UsageError: it refers to nothing.
        ImageError: it is not a manifest.
    """
    manifest = parse_manifest(data, media_type)
    if not isinstance(manifest, Manifest) or manifest.subject is None:
        raise UsageError("the manifest has no subject")
    plain = describe(data, media_type)
    entry = Descriptor(
        media_type=media_type,
        digest=plain.digest,
        size=plain.size,
        data=data if len(data) <= MAX_EMBEDDED else None,
        annotations=manifest.annotations,
        artifact_type=manifest.artifact_type or manifest.config.media_type,
    )
    return manifest.subject, entry


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
    transport: Transport, root: str, subject: str, artifact_type: str, declined: Declined
) -> list[Descriptor]:
    """Return the entries of a type in the list of what refers to `subject`.

    Args:
        transport: to the registry.
        root: path of the repository, ``/v2/NAME``.
        subject: digest of a manifest.
        artifact_type: of the entries wanted.
        declined: remembers registries without the API.

    Raises:
        ImageError: the list is not valid, or too long.
        SourceError: the registry does not answer within some seconds.
    """
    what = f"cannot list what refers to {subject}"
    silent = _declined_by(transport, root, declined)
    if silent is None:
        url = f"{root}/referrers/{subject}?{urlencode({'artifactType': artifact_type})}"
        try:
            with _question(declined, transport.base):
                answer = _insisting(lambda: _ask(transport, url, what))
                if _is_list(answer):
                    with suppress(_NoListError):
                        return _listed(transport, answer, what, artifact_type)
        except TransportError as exc:
            if given_up():
                raise
            silent = exc.message
        else:
            silent = ""
            whom = f"{transport.base}{root}" if answer.status in _OF_ONE else transport.base
            declined.note(whom, NO_API_S)
    if why := declined.reason(f"{transport.base}#tag"):
        raise TransportError(why)
    with _question(declined, f"{transport.base}#tag"):
        data = _insisting(lambda: _read_tag(transport, root, subject, is_optional=True))
    if data is not None:
        return _of_type(data, artifact_type)[0]
    if silent:
        raise TransportError(silent)
    return []


@contextmanager
def _question(declined: Declined, whom: str) -> Iterator[None]:
    """Ask in the block, within `QUESTION_S`; remember if there is no answer.

    The longer it took, the longer it is remembered, so that asking costs little of the time.
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


def _declined_by(transport: Transport, root: str, declined: Declined) -> str | None:
    """Return why the API is not asked now; None if it is."""
    reasons = (declined.reason(whom) for whom in (transport.base, f"{transport.base}{root}"))
    return next((reason for reason in reasons if reason is not None), None)


def _insisting(ask: Callable[[], T]) -> T:
    """Ask once more if the connection broke, but nobody who wants to be left alone."""
    try:
        return ask()
    except TransportError as exc:
        if exc.retry_after:
            raise
    return ask()


def _ask(transport: Transport, url: str, what: str) -> Answer:
    """Ask the API. Raises TransportError if what comes says nothing of it."""
    try:
        answer = transport.request("GET", url, what=what, expect=ANY, retry=False, stay=True)
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
            entries, count = _of_type(answer.data, artifact_type)
        except LimitError:
            raise
        except ImageError as exc:
            raise _NoListError(f"{what}: {exc.message}") from exc
        found += entries
        seen += count
        if seen > MAX_ENTRIES:
            break
        following = _following(answer)
        if following is None:
            return found
        url = following
    raise LimitError(f"{what}: the list is too long")


def _is_list(answer: Answer) -> bool:
    media_type = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return answer.status == 200 and media_type == OCI_INDEX


def _following(answer: Answer) -> str | None:
    target = next_page(answer.headers.get("Link", ""))
    if target is None:
        return None
    url = follow(answer.url, target)
    if origin(url) != origin(answer.url):
        raise SourceError("the registry names another host for the rest of a list")
    return url


def _of_type(data: bytes, artifact_type: str) -> tuple[list[Descriptor], int]:
    """Return the entries of a type, and the number of all.

    Raises:
        ImageError: it is not a list.
    """
    entries = parse_index(data).manifests
    if len(entries) > MAX_ENTRIES:
        raise LimitError(f"a list of referrers has {len(entries)} entries")
    return [entry for entry in entries if entry.artifact_type == artifact_type], len(entries)


def _read_tag(
    transport: Transport, root: str, subject: str, *, is_optional: bool = False
) -> bytes | None:
    """Return the list that clients keep at a tag; None if there is none.

    Args:
        transport: to the registry.
        root: path of the repository.
        subject: digest of a manifest.
        is_optional: ask once, and take a refusal for "there is none".
    """
    what = f"cannot list what refers to {subject}"
    answer = transport.request(
        "GET",
        f"{root}/manifests/{referrers_tag(subject)}",
        what=what,
        expect=ANY if is_optional else (200, 404),
        headers={"Accept": OCI_INDEX},
        retry=not is_optional,
    )
    _check_answered(answer, what)
    return answer.data if answer.status == 200 else None


def _check_answered(answer: Answer, what: str) -> None:
    """Raise TransportError if an answer says nothing of what was asked for."""
    if answer.status in _LATER or (answer.status >= 500 and answer.status != _NOT_IMPLEMENTED):
        error = TransportError(f"{what}: the registry answers {answer.status}")
        error.retry_after = retry_after(answer.headers)
        raise error


def add_to_tag(transport: Transport, root: str, subject: str, entry: Descriptor) -> None:
    """Have `entry` in the list that clients keep at a tag.

    Reads, adds, writes, waits a moment and looks whether it is still there, since another client
    may have written a list that it had read before. Who waits longest writes last, and everyone who
    lost an entry sees it. A client that reads, sleeps longer than this waits and writes what it had
    read can still undo it: attaching again puts it back.

    Raises:
        ImageError: the tag names something else than a list.
        SourceError: the registry refuses, or others keep on undoing it.
    """
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(SETTLE_S * random.uniform(1, 1 + attempt))  # noqa: S311  (spreads clients)
        try:
            changed = with_entry(_read_tag(transport, root, subject), entry)
        except ImageError as exc:
            exc.message = f"tag {referrers_tag(subject)} is no list of referrers: {exc.message}"
            exc.hint = "something else has this name: remove the tag"
            raise
        if changed is None:
            return
        transport.request(
            "PUT",
            f"{root}/manifests/{referrers_tag(subject)}",
            what=f"cannot write the list of what refers to {subject}",
            expect=SUCCESS,
            headers={"Content-Type": OCI_INDEX},
            body=changed,
        )
    raise SourceError(
        f"others keep on changing the list of what refers to {subject}",
        hint="attach it again when they are done",
    )


def with_entry(old: bytes | None, entry: Descriptor) -> bytes | None:
    """Return the list `old` with `entry`; None if it is there.

    Raises:
        ImageError: `old` is not a list.
        LimitError: it is full.
    """
    document: dict[str, Any] = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
    if old is not None:
        if any(known.digest == entry.digest for known in parse_index(old).manifests):
            return None
        document = written(old, Index, "list of referrers")
    document["manifests"] = [*document["manifests"], entry]
    changed = encode(document)
    if len(changed) > MAX_MANIFEST_SIZE or len(document["manifests"]) > MAX_ENTRIES:
        raise LimitError("the list of referrers is full")
    return changed
