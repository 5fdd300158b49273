# SPDX-License-Identifier: Apache-2.0
"""Platforms that images run on, in the words of Go (``linux/arm64/v8``).

Owns names, their normal form and the order of preference; knows nothing of manifests.
Source: image-spec v1.1, image-index.md ("platform"), and containerd's normalisation.
"""

from __future__ import annotations

import platform as python_platform
import re

import msgspec

from firstread.errors import UsageError

_WORD = re.compile(r"[A-Za-z0-9_.-]+")

_ALIASES = {
    "x86_64": ("amd64", None),
    "x86-64": ("amd64", None),
    "i386": ("386", None),
    "i486": ("386", None),
    "i586": ("386", None),
    "i686": ("386", None),
    "aarch64": ("arm64", None),
    "armhf": ("arm", "v7"),
    "armv8l": ("arm", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "armel": ("arm", "v6"),
    "loongarch64": ("loong64", None),
}

# The older architecture that a newer one runs too, if there is nothing better (containerd's
# platforms.Default).
_OLDER = {"amd64": ("386", None), "arm64": ("arm", "v8")}
# Variants that a variant can run, best first. Any other variant runs only itself.
_RUNS = {
    ("arm", "v8"): ("v8", "v7", "v6", "v5"),
    ("arm", "v7"): ("v7", "v6", "v5"),
    ("arm", "v6"): ("v6", "v5"),
    ("arm64", "v9"): ("v9", None),
    ("amd64", "v4"): ("v4", "v3", "v2", None),
    ("amd64", "v3"): ("v3", "v2", None),
    ("amd64", "v2"): ("v2", None),
}
_DEFAULT_VARIANTS = {"arm": "v7", "arm64": "v8", "amd64": "v1"}  # the meaning of no variant


class Platform(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """An operating system on a processor, as an index names it."""

    architecture: str = ""
    os: str = ""
    variant: str | None = None
    os_version: str | None = msgspec.field(name="os.version", default=None)
    os_features: tuple[str, ...] | None = msgspec.field(name="os.features", default=None)

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    def rank(self, offered: Platform) -> int | None:
        """Return how well `offered` runs here: 0 is best, None means not at all."""
        os, architecture, variant = _normal(self)
        given_os, *given = _normal(offered)
        runs = [list(each) for each in _runs(architecture, variant)]
        return runs.index(given) if os == given_os and given in runs else None


def _runs(architecture: str, variant: str | None) -> list[tuple[str, str | None]]:
    """Return the architectures and variants that run on one, best first."""
    variants = _RUNS.get((architecture, variant or ""), (variant,))
    older = _OLDER.get(architecture)
    return [(architecture, each) for each in variants] + (_runs(*older) if older else [])


def _normal(platform: Platform) -> tuple[str, str, str | None]:
    """Return (os, architecture, variant) in normal form; as in containerd, no os is ours."""
    architecture, variant = platform.architecture.lower(), (platform.variant or "").lower() or None
    if architecture in _ALIASES:
        architecture, implied = _ALIASES[architecture]
        variant = variant or implied
    if variant and variant.isdecimal() and architecture in ("arm", "arm64"):
        variant = f"v{variant}"
    default = _DEFAULT_VARIANTS.get(architecture)
    if architecture == "arm":
        variant = variant or default
    elif variant == default:
        variant = None
    return platform.os.lower() or "linux", architecture, variant


def parse_platform(text: str) -> Platform:
    """Return the platform that `text` names: ``linux/arm64/v8``, ``linux/amd64`` or ``arm64``.

    Raises:
        UsageError: it is not the name of a platform.
    """
    parts = text.split("/")
    if len(parts) == 1:
        parts.insert(0, "linux")
    if len(parts) > 3 or not all(_WORD.fullmatch(part) for part in parts):
        raise UsageError(
            f"{text!r} is not a platform", hint="write it like linux/amd64 or linux/arm64/v8"
        )
    variant = parts[2] if len(parts) == 3 else None
    os, architecture, variant = _normal(
        Platform(os=parts[0], architecture=parts[1], variant=variant)
    )
    return Platform(os=os, architecture=architecture, variant=variant)


def host_platform() -> Platform:
    """Return the platform of this machine."""
    return parse_platform(f"linux/{python_platform.machine()}")
