# SPDX-License-Identifier: Apache-2.0
"""The rules of a node that hold for all snapshots. Pure."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass


@dataclass(frozen=True)
class Policy:
    """The rules of a node.

    Args:
        require_lazy: refuse images that are not lazy.
        excepted: patterns of names that may be ordinary all the same, such as the pause image.
        remap_ids: let the kernel map the owners of files where a client gives id mappings.
        options: of overlay mounts.
    """

    require_lazy: bool = False
    excepted: tuple[str, ...] = ()
    remap_ids: bool = False
    options: tuple[str, ...] = ("index=off",)

    def allows_ordinary(self, image: str) -> bool:
        """Return whether an image of this name need not be lazy."""
        return not self.require_lazy or any(
            fnmatch.fnmatchcase(image, pattern) for pattern in self.excepted
        )


LENIENT = Policy()
"""The policy of a node without settings."""
