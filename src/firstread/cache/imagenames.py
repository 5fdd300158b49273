# SPDX-License-Identifier: Apache-2.0
"""What names of images mean, as it was when they were last asked for.

Owns ``references/<digest of the name>``: the digest of the converted image that a name, or the
digest of an original, stood for, and on the next line the name. Knows nothing of images.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
from collections.abc import Container
from pathlib import Path

from firstread.errors import NodeError, from_os_error
from firstread.oci.reference import Reference, is_digest
from firstread.wholefile import replace_file

log = logging.getLogger("images")


class ImageNames:
    """The names below `directory`. Safe to use from several threads.

    Args:
        directory: of their files; made if it is missing.
        here: digests of the images that are on this node.
        tidy: remove names of others.
    """

    def __init__(self, directory: Path, here: Container[str], *, tidy: bool) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._digests: dict[Path, str] = {}  # that each file has
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in listed(directory):
            try:
                digest, _ = _read(path)
            except NodeError as exc:
                log.warning("%s", exc)  # it may be read later
                continue
            if digest in here:
                self._digests[path] = digest
            elif tidy:
                path.unlink(missing_ok=True)

    def __len__(self) -> int:
        return len(self._digests)

    def digest_of(self, reference: Reference) -> str:
        """Return the digest that a name stood for; ``""`` if that is not known.

        Raises:
            NodeError: it cannot be read now.
        """
        return _read(self._path(reference))[0]

    def by_digest(self) -> dict[str, list[str]]:
        """Return the references that are known to name each image, by its digest."""
        names: dict[str, list[str]] = {}
        for path in listed(self._directory):
            with contextlib.suppress(NodeError):
                digest, name = _read(path)
                if name:
                    names.setdefault(digest, []).append(name)
        return {digest: sorted(found) for digest, found in names.items()}

    def remember(self, reference: Reference, digest: str) -> None:
        """Note what a name stands for. Raises OSError if it cannot be written."""
        name = self._path(reference)
        with self._lock:
            replace_file(name, f"{digest}\n{reference}".encode())
            self._digests[name] = digest

    def forget(self, digest: str) -> int:
        """Remove the names of an image; return how many. Raises OSError if one stays."""
        with self._lock:
            names = [path for path, named in self._digests.items() if named == digest]
            for path in names:
                path.unlink(missing_ok=True)
                del self._digests[path]
            return len(names)

    def _path(self, reference: Reference) -> Path:
        return self._directory / hashlib.sha256(str(reference).encode()).hexdigest()


def listed(directory: Path) -> list[Path]:
    """Return the entries of a directory. Raises NodeError if they cannot be read now."""
    try:
        return list(directory.iterdir())
    except OSError as exc:
        raise from_os_error(exc, "cannot read what images are here") from exc


def _read(path: Path) -> tuple[str, str]:
    """Return digest and reference that the file of a name has; nothing if there is no such name.

    Raises:
        NodeError: it cannot be read now.
    """
    try:
        digest, _, name = path.read_text().partition("\n")
    except (FileNotFoundError, UnicodeDecodeError):
        return "", ""
    except OSError as exc:
        raise from_os_error(exc, "cannot read which image a name means") from exc
    return (digest, name) if is_digest(digest) else ("", "")  # a power loss can leave anything
