# SPDX-License-Identifier: Apache-2.0
"""Finds for the snapshotter what is attached to an original, through the daemon.

Owns the question and how long an answer counts; which attached image is acceptable is the business
of `firstread.sectors.attached`, in the daemon, which also keeps the image. Invariant: the answer
names a converted image by digest, in the repository of its original.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from firstread.errors import BusyError, DerivedImageError, FirstreadError, UnsupportedError
from firstread.oci.reference import parse_reference
from firstread.snapshotter.refusal import RefusalError

ABSENT_S = 60.0  # that "nothing is attached" counts: a client asks for each layer of an image
SLOW_S = 1.0  # after which a failure counts as long: an image of 30 layers waits for it once
MAX_ABSENT = 1024  # originals that this is remembered of


class AttachedImages:
    """What is attached to the images of registries; called with a name and a manifest's digest.

    Args:
        pull: has the daemon fetch manifest, config and metadata of what a reference means, and
            returns the digest that it is.
        clock: gives seconds.
    """

    def __init__(
        self, pull: Callable[[str], str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._pull = pull
        self._clock = clock
        self._absent: dict[str, tuple[float, FirstreadError | None]] = {}  # original -> until, why
        self._lock = threading.Lock()

    def __call__(self, image: str, manifest: str) -> str | None:
        """Return the converted image that is attached to an original; None if there is none.

        Args:
            image: name of the original, as containerd has it.
            manifest: digest of its manifest, of one platform.

        Raises:
            FirstreadError: it cannot be found out.
        """
        place = replace(parse_reference(image), tag=None, digest=None)
        original = f"{place}@{manifest}"
        begun = self._clock()
        with self._lock:
            until, failure = self._absent.get(original, (0.0, None))
        if begun < until:
            if failure is not None:
                raise copy.copy(failure)
            return None
        try:
            digest = self._pull(original)
        except (DerivedImageError, RefusalError, BusyError):
            raise  # it cannot be unpacked either, or nothing was found out of it
        except UnsupportedError:
            self._remember(original)
            return None
        except FirstreadError as exc:
            if self._clock() - begun > SLOW_S:
                self._remember(original, exc)
            raise
        return f"{place}@{digest}"

    def _remember(self, original: str, why: FirstreadError | None = None) -> None:
        now = self._clock()
        with self._lock:
            if len(self._absent) >= MAX_ABSENT:
                self._absent = {k: v for k, v in self._absent.items() if v[0] > now}
            if len(self._absent) < MAX_ABSENT:
                self._absent[original] = now + ABSENT_S, why
