# SPDX-License-Identifier: Apache-2.0
"""What a registry has: its repositories, and the tags of each.

Owns the lists of the API and their pages. Invariant: a list is whole or an error, and bounded; it
has names that a reference can have, and no others.

Facts about the lists:

* The catalogue is no part of the distribution specification: docker-registry and Harbor have it
  (Harbor for administrators), Docker Hub, GHCR and most clouds do not.
* docker-registry lists a repository whose last tag is gone, and says 404 when asked for its tags;
  others say ``"tags": null``.
* ``n`` is a wish: docker-registry 2.8 gives at most 1000 at a time, others what they like.

Source: distribution-spec v1.1, "Listing Tags"; docker-registry, "Listing Repositories".
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Final
from urllib.parse import urlencode

import msgspec

from firstread.errors import (
    AuthError,
    ImageError,
    LimitError,
    NotFoundError,
    SourceError,
    TransportError,
    UsageError,
)
from firstread.oci.reference import Reference, parse_reference
from firstread.oci.untrusted import decode
from firstread.registry.backoff import Backoff
from firstread.registry.endpoint import endpoints_of
from firstread.registry.options import AccessOptions
from firstread.registry.referrerlists import following_page
from firstread.registry.transport import Transport

PAGE: Final = 1000  # names that we ask for at a time
MAX_NAMES: Final = 100_000  # of one list
MAX_PAGES: Final = 10_000  # of one list; some registries give few names at a time
CATALOGUE_SCOPE: Final = "registry:catalog:*"


class _Page(msgspec.Struct):
    """A page of either list; the other one is missing."""

    repositories: list[str] | None = None
    tags: list[str] | None = None


def list_repositories(host: str, options: AccessOptions) -> list[str]:
    """Return the names of all repositories of a registry.

    Raises:
        SourceError: it has no catalogue, or does not show it (AuthError).
        LimitError: it has more than anybody needs.
    """
    what = f"cannot list the repositories of {host}"
    reference = Reference("docker", host, "", "")
    found: list[str] = []
    try:
        for page in _pages(reference, "_catalog", what, options):
            found += [name for name in page.repositories or [] if _is_name(host, name)]
    except (TransportError, LimitError):
        raise
    except (SourceError, ImageError) as exc:
        kind = type(exc) if isinstance(exc, AuthError) else SourceError
        said = exc.message if what in exc.message else f"{what}: {exc.message}"
        raise kind(
            said,
            hint="the registry shows no catalogue: name repositories, such as"
            f" {host}/team/app:v*, whose tags every registry lists",
        ) from exc
    return found


def list_tags(repository: Reference, options: AccessOptions) -> list[str]:
    """Return the tags of a repository of a registry.

    Raises:
        NotFoundError: there is no such repository.
        SourceError: the registry does not say.
        LimitError: it has more than anybody needs.
    """
    name = f"{repository.host}/{repository.repository}"
    what = f"cannot list the tags of {name}"
    found: list[str] = []
    try:
        for page in _pages(repository, "tags/list", what, options):
            names = page.tags or []
            found += [tag for tag in names if _is_name(repository.host, repository.repository, tag)]
    except NotFoundError as exc:
        raise NotFoundError(f"there is no repository {name}", hint="check its name") from exc
    except ImageError as exc:
        if isinstance(exc, LimitError):
            raise
        raise SourceError(f"{what}: {exc.message}", hint="check the name of the registry") from exc
    return found


def _pages(repository: Reference, path: str, what: str, options: AccessOptions) -> Iterator[_Page]:
    """Yield the pages of a list.

    Raises:
        ImageError: one is no such list.
        SourceError, LimitError: as for all requests.
    """
    transport = Transport(repository, "pull", options, endpoints_of(repository.host, options)[-1])
    if not repository.repository:
        transport.ask_for(CATALOGUE_SCOPE)
    backoff = Backoff(options)
    url = f"{transport.root.rstrip('/')}/{path}?{urlencode({'n': PAGE})}"
    count = 0
    try:
        for _ in range(MAX_PAGES):
            answer = backoff.insist(partial(transport.request, "GET", url, what=what))
            page = decode(answer.data, _Page, "the list")
            yield page
            count += len(page.repositories or page.tags or ())
            following = following_page(answer)
            if following is None:
                return
            url = following
            if count > MAX_NAMES:
                break
    finally:
        transport.close()
    raise LimitError(
        f"{what}: the list has more than {MAX_NAMES} names, or no end",
        hint="name what is wanted more narrowly",
    )


def _is_name(host: str, repository: str, tag: str = "a") -> bool:
    """Return whether a reference can have a name that a registry lists."""
    try:
        found = parse_reference(f"{host}/{repository}:{tag}")
    except UsageError:
        return False
    return (found.host, found.repository, found.tag) == (host, repository, tag)
