# SPDX-License-Identifier: Apache-2.0
"""Every way to read a mutated image gives a result or an ImageError, soon.

The seed is fixed, so failures repeat; `FIRSTREAD_FUZZ=100000` makes a longer run.
"""

from __future__ import annotations

import io
import os
import random
import resource
import time
from collections.abc import Callable

import pytest

from firstread.erofs.erofsimage import ErofsImage
from firstread.erofs.reader import read_tree
from firstread.erofs.tree import Node
from firstread.erofs.validation import validate
from firstread.erofs.writer import write_erofs
from firstread.errors import ImageError
from firstread.testing.erofsdump import dump
from firstread.testing.mutate import mutate
from firstread.testing.trees import SectorData, feature_tree, small_tree

ROUNDS = int(os.environ.get("FIRSTREAD_FUZZ", "1500"))
SLOWEST = 10  # seconds of CPU that one round may take on a busy machine


def some_features() -> tuple[Node, SectorData]:
    """The feature tree without large or mostly opaque content."""
    root, data = feature_tree(names=0)
    for path in (b"files/vast", b"files/huge", b"xattrs/large", b"xattrs/many"):
        parent, name = path.split(b"/")
        node = (root.children or {})[parent]
        assert node.children is not None
        del node.children[name]
    return root, data


def image_of(root: Node, data: SectorData) -> bytes:
    out = io.BytesIO()
    write_erofs(out, root, data.devices, boot=b"boot", trailer=b"trailer" * 99)
    return out.getvalue()


@pytest.mark.parametrize("tree", [small_tree, some_features])
def test_a_mutated_image_gives_a_result_or_an_image_error(
    tree: Callable[[], tuple[Node, SectorData]],
) -> None:
    image = image_of(*tree())
    places = [place for place, byte in enumerate(image) if byte] + list(range(1024, 1280))
    rng = random.Random(len(image))
    rounds = ROUNDS if tree is small_tree else ROUNDS // 10
    refused = 0
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(rounds):
        mutated = mutate(image, places, rng)
        start = time.process_time()
        outcomes = []
        for read in (validate, read_tree, lambda image: sum(map(len, dump(image)))):
            try:
                read(ErofsImage(mutated))
            except ImageError:
                outcomes.append(False)
            else:
                outcomes.append(True)
        assert len(set(outcomes)) == 1, "what one accepts, the others have to accept"
        refused += not outcomes[0]
        assert time.process_time() - start < SLOWEST
    assert refused > rounds // 4
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 200_000  # KiB
