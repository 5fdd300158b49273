# SPDX-License-Identifier: Apache-2.0
"""Finds the image attached to an original, through the daemon.

Owns the question, and how long an answer counts. The daemon keeps the image, and decides which
attached image is acceptable (`firstread.sectors.attached`). Invariant: the answer names a converted
image by digest, in the repository of its original.
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

ABSENT_S = 60.0  # that "nothing is attached" counts: clients ask for each layer of an image
SLOW_S = 1.0  # a slower failure counts for as long: an image of 30 layers waits for it once
MAX_ABSENT = 1024  # originals to remember


class AttachedImages:
    """Maps originals to the images attached to them; called with a name and a manifest's digest.

    Args:
        pull: makes the daemon fetch manifest, config and metadata of the image that a reference
            means, and returns its digest.
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
        """Return the converted image attached to an original; None if there is none.

        Args:
            image: name of the original, as containerd has it.
            manifest: digest of its manifest, of one platform.

        Raises:
            FirstreadError: the answer cannot be found.
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
            raise  # nobody can unpack it either, or the question stays open
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
