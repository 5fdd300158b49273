# SPDX-License-Identifier: Apache-2.0
"""Every error that leaves a public function, split by whose fault it is.

::

    FirstreadError
    ├── UsageError        2  the command line or a reference is wrong
    ├── ImageError        3  the image's bytes are wrong (never retried)
    │   ├── DigestError      bytes do not match the digest or size that names them
    │   ├── UnsupportedError the image is valid, but firstread does not handle its kind
    │   │   └── DerivedImageError it was built FROM a converted image
    │   └── LimitError       a declared limit would be exceeded
    │       └── SectorCountError  larger sectors would keep within it
    ├── SourceError       4  the source or destination of bytes failed
    │   ├── NotFoundError    it has no such image or blob
    │   ├── AuthError        it demands other credentials
    │   └── TransportError   it broke off or is overloaded (retryable)
    └── NodeError         5  this machine: disk, privileges, kernel
        ├── BusyError        it has no room for another request or thread now (retryable)
        └── EngineError      the engine that packs layers does not answer, or has no workers
                             (retryable)

The number is the exit code of the ``firstread`` command (130 on Ctrl-C, 1 for a bug in firstread
itself). A reader of untrusted bytes succeeds or raises ImageError, nothing else. `about` adds
context (`image`, `layer`) where it is known, so that a message always names its subject. A message
has `MAX_MESSAGE` characters at most, whatever it quotes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import ClassVar, Final, Self

MAX_MESSAGE: Final = 8192  # characters of a message, and of a hint; two paths have as many


def cut(text: str, most: int) -> str:
    """Return `text`, its end replaced by an ellipsis if it has more than `most` characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


class FirstreadError(Exception):
    """The base of all errors: a message, and a remedy.

    Args:
        message: what happened, without a full stop.
        hint: a remedy; if None, the usual one for errors of this class.
        image: the reference of the image concerned.
        layer: digest of the layer concerned.
    """

    exit_code = 1
    retryable = False
    usual_hint: ClassVar[str | None] = None
    details: Sequence[str] = ()
    """Lines that follow the message, such as differences."""

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        image: str | None = None,
        layer: str | None = None,
    ) -> None:
        super().__init__(cut(message, MAX_MESSAGE))
        self.message = cut(message, MAX_MESSAGE)
        self.hint = cut(hint, MAX_MESSAGE) if hint else self.usual_hint
        self.image = image
        self.layer = layer

    def about(self, *, image: str | None = None, layer: str | None = None) -> Self:
        """Fill in missing context; return self."""
        self.image = self.image or image
        self.layer = self.layer or layer
        return self

    def copy(self) -> Self:
        """Return an error like this one, without its traceback and causes.

        `copy.copy` asks the registry of pickle, where Dask enters a copy that shares its fields.
        """
        error = type(self).__new__(type(self), *self.args)
        error.__dict__.update(self.__dict__)
        return error

    def __str__(self) -> str:
        known = self.layer is None or self.layer in self.message
        parts = [self.image, None if known else f"layer {self.layer}", self.message]
        return cut(": ".join(part for part in parts if part), MAX_MESSAGE)

    def to_dict(self) -> dict[str, object]:
        """Return the error as documented for ``--json``."""
        public = (kind for kind in type(self).__mro__ if not kind.__name__.startswith("_"))
        return {
            "error": next(public).__name__,
            "message": cut("\n  ".join([self.message, *self.details]), MAX_MESSAGE),
            "hint": self.hint,
            "image": self.image,
            "layer": self.layer,
            "exit_code": self.exit_code,
            "retryable": self.retryable,
        }


class UsageError(FirstreadError):
    """The command line, a configuration value or a reference is wrong."""

    exit_code = 2


class ImageError(FirstreadError):
    """The image's bytes are wrong."""

    exit_code = 3
    usual_hint = "the image is damaged: build or push it again"


class DigestError(ImageError):
    """Bytes do not match the digest or the size that names them."""


class UnsupportedError(ImageError):
    """The image is of a kind that firstread does not handle."""

    usual_hint = "build or push it again with a current tool, such as docker buildx or buildah"


class DerivedImageError(UnsupportedError):
    """The image was built FROM a converted one: ordinary layers lie on those of firstread."""

    usual_hint = "build it FROM the original image of its base, then convert the result"


class LimitError(ImageError):
    """A declared limit would be exceeded."""

    usual_hint = "remove what the image does not need"


class SectorCountError(LimitError):
    """The limit would be exceeded with sectors of this size, and not with larger ones.

    Args:
        message: as for every error; so are the arguments that have no line of their own.
        excess: by how many times.
    """

    usual_hint = "convert it with a larger --sector-size"

    def __init__(self, message: str, *, excess: float = 1.0, **context: str | None) -> None:
        super().__init__(message, **context)
        self.excess = excess


class SourceError(FirstreadError):
    """The source or destination of bytes failed."""

    exit_code = 4


class NotFoundError(SourceError):
    """The other side has no such image or blob."""

    usual_hint = "check the name of the image"


class AuthError(SourceError):
    """The other side refuses these credentials."""


class TransportError(SourceError):
    """The other side broke off, is overloaded or is unreachable; it may work later."""

    retryable = True
    usual_hint = "it may work later: try again"
    retry_after = 0.0  # seconds of the wait that the other side requested


class NodeError(FirstreadError):
    """This machine cannot do it: disk, privileges, kernel, missing program."""

    exit_code = 5


class BusyError(NodeError):
    """This machine has no room for another request, thread or page now; it may have it later."""

    retryable = True


class EngineError(NodeError):
    """The engine that packs layers is out of reach, or has nobody to do the work."""

    retryable = True
    usual_hint = "see whether the engine runs; what it had packed stays"


_PASSING = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR})
"""This machine is short of something for a moment."""

_HINTS = {
    errno.EMFILE: "too many files are open in this process: try again, or raise its limit",
    errno.ENFILE: "too many files are open on this machine: raise sysctl fs.file-max",
    errno.ENOMEM: "this machine is short of memory: try again",
    errno.EIO: "the disk cannot read it: look at the kernel's log",
    errno.ENOSPC: "free some space or choose another directory",
    errno.EDQUOT: "free some space or choose another directory",
    errno.EACCES: "check the permissions of the path, or run as root",
    errno.EPERM: "run as root",
    errno.EROFS: "the file system is mounted read-only: choose another directory",
}


_NO_THREAD = "can't start new thread"
"""CPython's words in a RuntimeError for EAGAIN of pthread_create(3)."""


def from_shortage(exc: BaseException, who: str = "this process") -> BusyError | None:
    """Return what an exception means that Python raises anywhere if this machine is short.

    Args:
        exc: any exception.
        who: has raised it, for whoever reads the message.

    Returns:
        the error, if there is no memory, or no thread to be had; None if it is something else.
    """
    if isinstance(exc, RuntimeError) and str(exc) == _NO_THREAD:
        return BusyError(
            f"{who} can have no more threads",
            hint="raise its limits: pids.max of its control group, ulimit -u, ulimit -v (memory)",
        )
    if isinstance(exc, MemoryError):
        return BusyError(f"{who} can have no more memory", hint=_HINTS[errno.ENOMEM])
    return None


def is_disk_full(exc: BaseException | None) -> bool:
    """Return whether `exc` says that a file system, or a user's quota of it, is full."""
    return isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT)


def from_os_error(exc: OSError, doing: str) -> NodeError:
    """Map an OSError to a NodeError that names the action and a remedy.

    Such an error says nothing about the files on the disk: nobody may take it for damage.

    Args:
        exc: the error of the system call.
        doing: such as ``"cannot write the blob"``.
    """
    where = f" {os.fsdecode(exc.filename)!r}" if exc.filename else ""
    error = NodeError(f"{doing}{where}: {exc.strerror or exc}", hint=_HINTS.get(exc.errno or 0))
    error.retryable = exc.errno in _PASSING
    return error
