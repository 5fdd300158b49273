# SPDX-License-Identifier: Apache-2.0
"""A small registry in this process, which fails exactly as a script says.

`firstread.testing.httpfaults` has the language of scripts. In addition, ``hangup N`` of a request
with a body ends the connection after N bytes of it, and ``short N`` takes all but the last N bytes
of a part of an upload.
"""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path
from typing import Self

from firstread.oci.model import sha256_digest
from firstread.testing.httpfaults import Script
from firstread.testing.scriptedhandler import (
    IDENTITY_TOKEN,
    PASSWORD,
    SIGNATURE,
    TOKEN_PREFIX,
    USERNAME,
    RegistryState,
    ScriptedHandler,
    ScriptedServer,
    Seen,
)
from firstread.testing.serving import serving

__all__ = [
    "IDENTITY_TOKEN",
    "PASSWORD",
    "SIGNATURE",
    "TOKEN_PREFIX",
    "USERNAME",
    "ScriptedRegistry",
    "Seen",
]


class ScriptedRegistry(contextlib.ExitStack):
    """The registry; a context manager. `blobs` and `manifests` may be filled by a test.

    Args:
        script: faults, see `httpfaults`.
        auth: that it demands: ``""``, ``"basic"`` or ``"token"``.
        token_lifetime: seconds that a token is valid.
        redirect: send readers of blobs to another host.
        relative: give locations without scheme and host.
        patch: accept uploads in parts; else only in one PUT.
        moves: give an upload another address after each part; else keep the first.
        mounts: mount blobs from other repositories.
        tls: certificate and key to speak TLS with.
        clients: certificates; a client must show one of them.
        says: message of the errors that the script orders.
        referrers: have the referrers API.
        page: referrers in one answer; 0 for all.
        filters: filter referrers by type.
    """

    def __init__(
        self,
        script: str = "",
        *,
        auth: str = "",
        token_lifetime: float = 60.0,
        redirect: bool = False,
        relative: bool = True,
        patch: bool = True,
        moves: bool = True,
        mounts: bool = True,
        tls: tuple[Path, Path] | None = None,
        clients: Path | None = None,
        says: str = "as the script says",
        referrers: bool = False,
        page: int = 0,
        filters: bool = True,
    ) -> None:
        super().__init__()
        self._state = RegistryState(
            Script(script),
            auth,
            token_lifetime,
            redirect,
            relative,
            patch,
            moves,
            mounts,
            says,
            referrers,
            page,
            filters,
        )
        self._tls = tls
        self._clients = clients
        self.blobs = self._state.blobs
        self.manifests = self._state.manifests
        self.seen = self._state.seen

    def __enter__(self) -> Self:
        server = ScriptedServer(("127.0.0.1", 0), ScriptedHandler)
        server.state = self._state
        if self._tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*self._tls)
            if self._clients is not None:
                context.load_verify_locations(self._clients)
                context.verify_mode = ssl.CERT_REQUIRED
            server.socket = context.wrap_socket(server.socket, server_side=True)
        self.enter_context(serving(server))
        self.host = f"127.0.0.1:{server.server_address[1]}"
        return self

    def add_blob(self, data: bytes) -> str:
        """Put a blob into every repository; return its digest."""
        digest = sha256_digest(data)
        self.blobs[digest] = data
        return digest

    def script(self, script: str) -> None:
        """Replace the rest of the script."""
        self._state.script.replace(script)

    def unused(self) -> list[str]:
        """Return the faults of the script that no request has met, so that a test can insist."""
        return self._state.script.unused()

    def open_uploads(self) -> int:
        """Return the number of uploads in flight."""
        return len(self._state.uploads)

    def change_password(self, password: str) -> None:
        """Accept only this password from now on, and no earlier token."""
        self._state.password = password
        self._state.tokens.clear()

    def revoke_tokens(self) -> None:
        """Invalidate every token."""
        self._state.tokens.clear()

    def asked(self, part: str = "") -> list[str]:
        """Return the ``"METHOD path"`` of the requests that contain `part`, in order."""
        return [str(seen) for seen in self.seen if part in str(seen)]
