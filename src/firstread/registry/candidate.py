# SPDX-License-Identifier: Apache-2.0
"""One endpoint, as one repository knows it.

Owns what an endpoint lacks or had wrong of this repository; how it fares in general is
`health`'s. Invariant: what is remembered is bounded, and forgotten after a while.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Final

from firstread.errors import FirstreadError, ImageError, NotFoundError, TransportError
from firstread.registry.api import RepositoryApi
from firstread.registry.health import EndpointHealth

WRONG_S: Final = 600.0  # an endpoint that gave wrong bytes of a blob is avoided for it
LACKS_S: Final = 60.0  # one that does not have it
REFUSED_S: Final = 60.0  # one that refuses us, or that we refuse, for the whole repository
MAX_AVOIDED: Final = 1024  # blobs that are remembered of one endpoint


class Candidate:
    """An endpoint that may be asked for the content of a repository.

    Args:
        api: the repository there.
        health: how the endpoint fares.
    """

    def __init__(self, api: RepositoryApi, health: EndpointHealth) -> None:
        self.api = api
        self.health = health
        self.endpoint = health.endpoint
        self._avoided: OrderedDict[str, float] = OrderedDict()  # what -> until; "": everything

    def avoid(self, what: str, seconds: float) -> None:
        """Do not ask it for `what` (a digest or a tag; ``""``: anything) if others can be asked."""
        self._avoided[what] = time.monotonic() + seconds
        while len(self._avoided) > MAX_AVOIDED:
            self._avoided.popitem(last=False)

    def avoided(self, what: str) -> bool:
        """Return whether it should not be asked for `what`."""
        now = time.monotonic()
        return any(self._avoided.get(key, 0.0) > now for key in (what, ""))

    def failed(self, what: str, error: FirstreadError) -> None:
        """Note a failure: what it says of this repository, and of the endpoint."""
        if isinstance(error, ImageError):
            self.avoid(what, WRONG_S)
        elif isinstance(error, NotFoundError):
            self.avoid(what, LACKS_S)
        elif not isinstance(error, TransportError):
            self.avoid("", REFUSED_S)
        self.health.failed(error)

    def barred(self) -> TransportError:
        """Return why it is not even asked when nobody else is left."""
        name = self.endpoint.name
        error = TransportError(f"registry {name} asks to be left alone for a while")
        error.retry_after = self.health.barred_s()
        return error
