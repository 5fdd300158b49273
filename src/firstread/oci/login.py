# SPDX-License-Identifier: Apache-2.0
"""Whether a registry takes credentials.

Owns what is asked for that: the root of the API, as docker and podman do, which has a registry that
wants a token name its token server. Invariant: what was refused is an AuthError; a registry that
cannot be asked is another error, never a success.
"""

from __future__ import annotations

from dataclasses import replace

from firstread.errors import AuthError, NotFoundError, UsageError
from firstread.oci.endpoint import endpoints_of
from firstread.oci.logins import Credentials, Logins
from firstread.oci.options import AccessOptions
from firstread.oci.reference import Reference
from firstread.oci.transport import Answer, Transport


def try_login(scope: str, credentials: Credentials, options: AccessOptions) -> None:
    """Show credentials to a registry.

    One that lets everybody in may not look at them: then nobody can tell.

    Args:
        scope: ``HOST``, or ``HOST/REPOSITORY``, for whose token is asked then.
        credentials: to be shown.
        options: how the registry is reached.

    Raises:
        AuthError: it refuses them.
        SourceError: it cannot be asked.
        UsageError: `scope` names no registry.
    """
    host, _, repository = scope.partition("/")
    if not host:
        raise UsageError(f"{scope!r} is neither HOST nor HOST/REPOSITORY")
    logins = Logins()
    logins.put(scope, credentials)
    endpoint = endpoints_of(host, options)[-1]
    reference = Reference("docker", host, repository, "")
    transport = Transport(reference, "pull", replace(options, logins=logins), endpoint)

    def ask(**headers: str) -> Answer:
        root = f"{endpoint.path}/"
        return transport.request(
            "GET", root, what="cannot log in", expect=(200, 404), headers=headers
        )

    try:
        answer = ask()
        if not transport.was_challenged and credentials.username:
            answer = ask(Authorization=credentials.basic())  # who lets everybody in may look at it
        if answer.status == 404 and not transport.was_challenged:
            raise NotFoundError(
                f"{host} does not answer as a registry", hint="check the name of the registry"
            )
    except AuthError as exc:
        raise AuthError(exc.message, hint="check user name and password; nothing was kept") from exc
    finally:
        transport.close()
