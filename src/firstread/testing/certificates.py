# SPDX-License-Identifier: Apache-2.0
"""Self-signed certificates for servers and clients of a test. Needs ``openssl``."""

from __future__ import annotations

import subprocess
from pathlib import Path

from firstread.testing.patience import PATIENCE_S


def make_certificate(directory: Path, name: str = "server", *hosts: str) -> tuple[Path, Path]:
    """Make a certificate in `directory`; return it and its key.

    Args:
        directory: created if missing.
        name: of the files.
        hosts: of the certificate, besides 127.0.0.1.
    """
    directory.mkdir(parents=True, exist_ok=True)
    certificate, key = directory / f"{name}.pem", directory / f"{name}.key"
    names = ",".join(["IP:127.0.0.1", *(f"DNS:{host}" for host in hosts)])
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-nodes", "-newkey", "ec"),
            *("-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-days", "2", "-subj", f"/CN={name}", "-addext", f"subjectAltName={names}"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
        timeout=PATIENCE_S,
    )
    return certificate, key
