# SPDX-License-Identifier: Apache-2.0
"""How the registry of one image is reached, as data that travels with a mount."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec

from firstread.registry.options import AccessOptions

NODE_ACCESS = AccessOptions(connect_timeout=5.0, read_timeout=20.0, retries=1)
"""A lane tries a sector again for as long as reads wait for it, so one retry is enough here."""


class Access(msgspec.Struct, frozen=True):
    """How an image's registry is reached, where it differs from the node; see `AccessOptions`."""

    plain_http: bool = False
    insecure_tls: bool = False
    ca_file: str | None = None
    auth_file: str | None = None
    hosts_dirs: tuple[str, ...] | None = None

    @classmethod
    def of(cls, options: AccessOptions) -> Access:
        """Return what of `options` holds on another machine, too: all but credentials."""
        return cls(
            plain_http=options.plain_http,
            insecure_tls=options.insecure_tls,
            ca_file=str(options.ca_file) if options.ca_file else None,
            hosts_dirs=tuple(map(str, options.hosts_dirs)),
        )

    def options(
        self, node: AccessOptions = NODE_ACCESS, *, auth_file: Path | None = None
    ) -> AccessOptions:
        """Return what holds for this access.

        Args:
            node: what holds for all.
            auth_file: in place of ours.
        """
        dirs = node.hosts_dirs if self.hosts_dirs is None else tuple(map(Path, self.hosts_dirs))
        return replace(
            node,
            plain_http=self.plain_http,
            insecure_tls=self.insecure_tls,
            ca_file=Path(self.ca_file) if self.ca_file else None,
            auth_file=auth_file or (Path(self.auth_file) if self.auth_file else None),
            hosts_dirs=dirs,
        )
