# SPDX-License-Identifier: Apache-2.0
"""Whether a registry takes credentials.

Owns the question. As docker and podman do, it asks for the root of the API, which makes a registry
that wants a token name its token server. Invariant: a refusal is an AuthError; a registry that does
not answer is another error, never a success.
"""

from __future__ import annotations

from dataclasses import replace

from firstread.errors import AuthError, NotFoundError, UsageError
from firstread.oci.reference import Reference
from firstread.registry.answer import Answer
from firstread.registry.backoff import Backoff
from firstread.registry.credentials import Credentials
from firstread.registry.endpoint import endpoints_of
from firstread.registry.logins import Logins
from firstread.registry.options import AccessOptions
from firstread.registry.transport import Transport


def try_login(scope: str, credentials: Credentials, options: AccessOptions) -> None:
    """Show credentials to a registry.

    A registry that lets everybody in may not look at them; then nobody can tell.

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
    backoff = Backoff(options)

    def ask(**headers: str) -> Answer:
        root = f"{endpoint.path}/"
        return backoff.insist(
            lambda: transport.request(
                "GET", root, what="cannot log in", expect=(200, 404), headers=headers
            )
        )

    try:
        answer = ask()
        if not transport.was_challenged and credentials.username:
            answer = ask(Authorization=credentials.basic())  # even an open registry may look at it
        if answer.status == 404 and not transport.was_challenged:
            raise NotFoundError(
                f"{host} does not answer as a registry", hint="check the name of the registry"
            )
    except AuthError as exc:
        raise AuthError(exc.message, hint="check user name and password; nothing was kept") from exc
    finally:
        transport.close()
