# SPDX-License-Identifier: Apache-2.0
"""All that is on this node, checked against its digests: ``firstread cache verify``.

Owns the order and the report; its caller checks and repairs a sector. Invariant: each sector is
looked at once, however many images have it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from firstread.cache.inventory import Inventory
from firstread.cache.nodeimage import NodeImage
from firstread.cache.report import DamagedImage, DamagedSector, Verified
from firstread.errors import FirstreadError, ImageError, NodeError
from firstread.sectors.source import Wanted

Outcome = Literal["good", "partial", "busy", "damaged", "emptied", "removed"]
"""Of a look at a sector: ``partial``: its frame table is not here, so its frames cannot be checked;
``busy``: it is being emptied or checked; the last three: it is damaged, and what became of it."""


def inspect(
    inventory: Inventory,
    check: Callable[[NodeImage, Wanted], Outcome],
    damage: Callable[[str], str | None],
    drop: Callable[[str], bool],
) -> Verified:
    """Check everything.

    Args:
        inventory: what there is.
        check: looks at a sector of an image, and repairs it if that is wanted.
        damage: says what is wrong with the files of an image; NodeError if that cannot be told.
        drop: removes an image that is damaged, if that is wanted and possible.
    """
    counts = dict.fromkeys(("good", "partial", "busy"), 0)
    checked_bytes = 0
    damaged: list[DamagedSector] = []
    problems = dict(inventory.problems)
    for digest in inventory.images:
        try:
            if problem := damage(digest):
                problems[digest] = ImageError(problem)
        except NodeError as exc:
            problems[digest] = exc
    claims = _claims(inventory)
    for sector_id, (image, sector) in claims.items():
        outcome = check(image, sector)
        match outcome:
            case "good" | "partial" | "busy":
                counts[outcome] += 1
            case _:
                damaged.append(DamagedSector(sector_id.hex(), image.digest, outcome))
        if outcome not in ("partial", "busy"):
            checked_bytes += sector.entry.size
    images = [
        DamagedImage(digest=digest, problem=error.message, outcome=_outcome(digest, error, drop))
        for digest, error in problems.items()
    ]
    outcomes = {*(each.outcome for each in damaged), *(each.outcome for each in images)}
    return Verified(
        ok=not {"damaged", "unread"} & outcomes,
        checked=counts["good"] + len(damaged),
        checked_bytes=checked_bytes,
        partial=counts["partial"],
        busy=counts["busy"],
        unclaimed=len(inventory.sizes.keys() - claims.keys()),
        aside=len(inventory.aside),
        damaged=damaged,
        images=images,
    )


def _claims(inventory: Inventory) -> dict[bytes, tuple[NodeImage, Wanted]]:
    """Return the sectors that are here, each as an image has it.

    Images can lie about its size. Its file is damaged only if it should be whole: if one of them
    says that it has as many bytes as the file, and else the one that says the most.
    """
    claims: dict[bytes, tuple[NodeImage, Wanted]] = {}
    for image in inventory.images.values():
        for slot, entry in enumerate(image.block_image.index.sectors):
            held = inventory.sizes.get(entry.id)
            if held is None:
                continue
            known = claims.get(entry.id)
            known_size = known[1].entry.size if known else 0
            if known_size != held and (entry.size == held or entry.size > known_size):
                claims[entry.id] = image, image.wanted(slot)
    return claims


def _outcome(
    digest: str, error: FirstreadError, drop: Callable[[str], bool]
) -> Literal["damaged", "removed", "unread"]:
    """Return what becomes of an image; one that cannot be read now stays: it may be right."""
    if isinstance(error, NodeError):
        return "unread"
    try:
        return "removed" if drop(digest) else "damaged"
    except NodeError:
        return "unread"
