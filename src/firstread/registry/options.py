# SPDX-License-Identifier: Apache-2.0
"""How to reach a registry: the settings of a user, as values.

Owns no behaviour. Invariant: picklable and without secrets, so that another process can open the
same repository again from (reference, options); each process looks credentials up where it uses
them. Those that only this process was given (`logins`) stay in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from firstread.errors import UsageError
from firstread.registry.logins import Logins


@dataclass(frozen=True, slots=True)
class AccessOptions:
    """Settings of one access; all times in seconds.

    Args:
        plain_http: speak HTTP without TLS. Loopback hosts always do, unless `ca_file` or
            `insecure_tls` say that TLS is wanted there.
        insecure_tls: accept any certificate.
        ca_file: certificates to trust instead of the system's.
        auth_file: the only file to look for credentials in.
        hosts_dirs: where ``HOST/hosts.toml`` may be (`firstread.registry.hosts`).
        mirrors: read from the endpoints that it names; else from the server only.
        credentials_dir: of files with the credentials of one host each.
        logins: credentials given to this process.
        worker_credentials: what the workers of an engine log in with, by reference: see
            `firstread.convert.layertask.credentials_file`; None for what each of them has.
        who: this process, in messages about credentials; empty for a command.
        connect_timeout: until a connection stands.
        first_byte_timeout: until an answer begins; None for `read_timeout`.
        read_timeout: until the next bytes of an answer arrive.
        answer_timeout: until all of an answer that is kept in memory is here, such as a manifest.
        least_rate: bytes/s that an answer must come at, over any `read_timeout` of waiting for it.
        retries: further attempts after a transient failure that made no progress.
        retry_base: first wait between attempts; it doubles each time, with jitter.
        hedge_share: share of requests that may go to a second endpoint because the first is late.
    """

    plain_http: bool = False
    insecure_tls: bool = False
    ca_file: Path | None = None
    auth_file: Path | None = None
    hosts_dirs: tuple[Path, ...] = ()
    mirrors: bool = True
    credentials_dir: Path | None = None
    logins: Logins | None = field(default=None, repr=False, compare=False)
    worker_credentials: str | None = None
    who: str = ""
    connect_timeout: float = 10.0
    first_byte_timeout: float | None = None
    read_timeout: float = 60.0
    answer_timeout: float = 60.0
    least_rate: float = 256.0  # a link of 64 kbit/s has that for 32 requests at a time
    retries: int = 5
    retry_base: float = 0.25
    hedge_share: float = 0.05

    def __post_init__(self) -> None:
        waits = (self.connect_timeout, self.read_timeout, self.answer_timeout, self.retry_base)
        if min(waits) <= 0 or (self.first_byte_timeout or 1) <= 0:
            raise UsageError("timeouts and waits must be more than 0 seconds")
        if not 0 <= self.hedge_share <= 1:
            raise UsageError("the share of hedged requests must be from 0 to 1")
        if self.least_rate < 0 or self.retries < 0:
            raise UsageError("rate and retries must not be negative")
