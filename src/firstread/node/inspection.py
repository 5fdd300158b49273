# SPDX-License-Identifier: Apache-2.0
"""All that is on this node, checked against its digests: ``firstread cache verify``.

Owns the order and the report; how one sector is checked and made good is its caller's. Invariant:
each sector is looked at once, however many images have it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from firstread.errors import FirstreadError, ImageError, NodeError
from firstread.node.filling import Wanted
from firstread.node.images import NodeImage
from firstread.node.stock import Stock

Outcome = Literal["good", "partial", "busy", "damaged", "emptied", "removed"]
"""Of a look at a sector: ``partial``: its frame table is not here, so its frames cannot be checked;
``busy``: it is being emptied or checked; the last three: it is damaged, and what became of it."""

_DAMAGE = ("damaged", "emptied", "removed")


def inspect(
    stock: Stock,
    check: Callable[[NodeImage, Wanted], Outcome],
    damage: Callable[[str], str | None],
    drop: Callable[[str], bool],
) -> dict[str, Any]:
    """Check everything; return the document of ``firstread cache verify --json``.

    Args:
        stock: what there is.
        check: looks at a sector of an image, and repairs it if that is wanted.
        damage: says what is wrong with the files of an image; NodeError if that cannot be told.
        drop: removes an image that is damaged, if that is wanted and possible.
    """
    counts = dict.fromkeys(("good", "partial", "busy"), 0)
    checked_bytes, damaged = 0, []
    problems = dict(stock.problems)
    for digest in stock.images:
        try:
            if problem := damage(digest):
                problems[digest] = ImageError(problem)
        except NodeError as exc:
            problems[digest] = exc
    claims = _claims(stock)
    for sector_id, (image, sector) in claims.items():
        outcome = check(image, sector)
        if outcome in _DAMAGE:
            damaged.append({"sector": sector_id.hex(), "image": image.digest, "outcome": outcome})
        else:
            counts[outcome] += 1
        if outcome not in ("partial", "busy"):
            checked_bytes += sector.entry.size
    images = [
        {"digest": digest, "problem": error.message, "outcome": _outcome(digest, error, drop)}
        for digest, error in problems.items()
    ]
    return {
        "checked": counts["good"] + len(damaged),
        "checked_bytes": checked_bytes,
        "partial": counts["partial"],
        "busy": counts["busy"],
        "unclaimed": len(stock.sizes.keys() - claims.keys()),
        "aside": len(stock.aside),
        "damaged": damaged,
        "images": images,
    }


def _claims(stock: Stock) -> dict[bytes, tuple[NodeImage, Wanted]]:
    """Return the sectors that are here, each as an image has it.

    Images can lie about its size. Its file is damaged only if it should be whole: if one of them
    says that it has as many bytes as the file, and else the one that says the most.
    """
    claims: dict[bytes, tuple[NodeImage, Wanted]] = {}
    for image in stock.images.values():
        for slot, entry in enumerate(image.block_image.index.sectors):
            held = stock.sizes.get(entry.id)
            if held is None:
                continue
            known = claims.get(entry.id)
            known_size = known[1].entry.size if known else 0
            if known_size != held and (entry.size == held or entry.size > known_size):
                claims[entry.id] = image, image.wanted(slot)
    return claims


def _outcome(digest: str, error: FirstreadError, drop: Callable[[str], bool]) -> str:
    """Return what becomes of an image; one that cannot be read now stays: it may be right."""
    if isinstance(error, NodeError):
        return "unread"
    try:
        return "removed" if drop(digest) else "damaged"
    except NodeError:
        return "unread"


def is_sound(document: dict[str, Any]) -> bool:
    """Return whether nothing is left that is damaged, or could not be read."""
    found = [*document["damaged"], *document["images"]]
    return all(item["outcome"] not in ("damaged", "unread") for item in found)
