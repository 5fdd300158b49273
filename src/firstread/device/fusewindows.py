# SPDX-License-Identifier: Apache-2.0
"""Which READs of the kernel's read-ahead fail rather than wait for absent bytes. Pure.

A page fault reads a window around its page, and a READ does not tell which page that was. Absent
pages of the window may be cold neighbours that nobody wants. When read-ahead fails, the kernel
keeps its pages, empty, and whoever wants one of them asks for that page alone, and waits. So no
reader waits for a neighbour, and no reader sees the failure.

Invariants: what is refused came for the page cache, in several pages at once; and no page is
refused twice, so a kernel that asks for pages together again, such as one with large folios, gets
them. A process that has taken a mount over does not know what was refused, and refuses nothing.

Source: mm/filemap.c (filemap_fault, filemap_get_pages: a page that is not up to date is read by
read_folio), mm/readahead.c (nobody looks whether it failed), fs/fuse/file.c (fuse_readpages_end;
fuse_send_read: direct reads alone name a lock owner), Linux 5.4 to 6.18.
"""

from __future__ import annotations

import mmap

from firstread.device.readahead import START_KIB

MOST_PAGES = (START_KIB << 10) // mmap.PAGESIZE  # larger ones are of a reader who wants all of it
MOST_REFUSED = 2048  # pages of a mount, to be remembered in 0.3 MB


class Windows:
    """The windows of one mount that were refused."""

    def __init__(self) -> None:
        self._refused: set[tuple[int, int]] = set()  # node and page

    def refuse(self, node: int, offset: int, size: int) -> bool:
        """Return whether a READ for the page cache is to fail that lacks bytes; note it then.

        Args:
            node: of the file.
            offset: first byte.
            size: bytes.
        """
        first, end = offset // mmap.PAGESIZE, -(-(offset + size) // mmap.PAGESIZE)
        if not 1 < end - first <= MOST_PAGES or len(self._refused) >= MOST_REFUSED:
            return False
        pages = {(node, page) for page in range(first, end)}
        if not self._refused.isdisjoint(pages):
            return False
        self._refused |= pages
        return True
