# SPDX-License-Identifier: Apache-2.0
"""Images that a kubelet asks for, told to the daemon before containerd asks for their layers.

containerd asks a registry for several documents, one after the other, before a snapshotter hears of
the image. The daemon needs its name only, so both ask at once, and the snapshotter joins what has
begun. Owns the names that are not worth it. Invariant: a pull neither waits for this nor fails, and
this ends with it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Final

from firstread.errors import FirstreadError, UnsupportedError
from firstread.oci.reference import parse_reference
from firstread.snapshotter.caller import Caller, serving

log = logging.getLogger("foretelling")

COUNTED: Final = frozenset({"docker.io"})
"""Registries that set a limit to manifests: an ordinary image would count twice."""
REMEMBERED: Final = 1000  # names of ordinary images


class Foretelling:
    """Tells the daemon of images that are about to be pulled. Safe for threads.

    Args:
        pull: has the daemon pull an image by its name, for as long as
            `firstread.snapshotter.caller.current` waits.
    """

    def __init__(self, pull: Callable[[str], object]) -> None:
        self._pull = pull
        self._ordinary: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def of(self, image: str) -> Iterator[None]:
        """Have the daemon pull an image, no longer than the block.

        Args:
            image: its name, valid or empty.
        """
        with self._lock:
            useless = not image or image in self._ordinary
        if useless or parse_reference(image).host in COUNTED:
            yield
            return
        caller = Caller()
        work = threading.Thread(
            target=self._run, args=(caller, image), name="foretell", daemon=True
        )
        with contextlib.suppress(RuntimeError):  # there are too many threads
            work.start()
        try:
            yield
        finally:
            caller.leave()

    def _run(self, caller: Caller, image: str) -> None:
        try:
            with serving(caller):
                self._pull(image)
        except UnsupportedError:
            with self._lock:
                self._ordinary[image] = None
                if len(self._ordinary) > REMEMBERED:
                    self._ordinary.popitem(last=False)
        except FirstreadError as exc:
            log.info("%s could not be asked for in advance: %s", image, exc)
