# SPDX-License-Identifier: Apache-2.0
"""A small root file system, and a command that runs containers on it.

For tests of `firstread.run` that need no image: busybox in a directory, and
``python -m firstread.testing.containers`` as a stand-in for ``firstread run``, whose terminal,
signals and exit status can be tested only in a process of their own.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from firstread.errors import FirstreadError
from firstread.run.containers import Record
from firstread.run.lifecycle import run_container
from firstread.run.options import CONTEXT_SETTINGS, RunOptions, run_options
from firstread.run.runtime import run_exit_code

_PASSWD = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:App:/home/app:/bin/sh\n"
_GROUP = "root:x:0:\nstaff:x:50:app\napp:x:1001:\naudio:x:29:app\n"


def find_busybox() -> str | None:
    """Return the path of a statically linked busybox (Debian's package busybox-static)."""
    busybox = shutil.which("busybox")
    if (
        busybox
        and b"not a dynamic"
        in subprocess.run(["ldd", busybox], capture_output=True, check=False).stderr
    ):
        return busybox
    return None


def make_rootfs(directory: Path, busybox: str) -> Path:
    """Fill `directory` with a root file system of busybox, two users and some data."""
    for name in ("bin", "etc", "tmp", "root", "home/app", "srv/empty", "srv/full"):
        (directory / name).mkdir(parents=True)
    shutil.copy(busybox, directory / "bin/busybox")
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True)
    for applet in applets.stdout.split():
        if applet != "busybox":
            (directory / "bin" / applet).symlink_to("busybox")
    (directory / "etc/passwd").write_text(_PASSWD)
    (directory / "etc/group").write_text(_GROUP)
    (directory / "srv/full/data").write_text("of the image\n")
    for path in (directory / "srv/empty", directory / "home/app"):
        os.chown(path, 1000, 1001)
    (directory / "srv/empty").chmod(0o750)
    directory.chmod(0o755)  # the users inside need access to the temporary directory
    (directory / "bin/text").write_text("no program\n")
    (directory / "bin/text").chmod(0o644)
    (directory / "bin/foreign").write_bytes(b"\x7fELF of another machine")
    (directory / "bin/foreign").chmod(0o755)
    return directory


@dataclass(frozen=True)
class Node:
    """One state directory and one image, to run containers in processes of their own.

    Args:
        lower: root of the image.
        state_dir: of all containers.
        config: the ``config`` object of the image's configuration.
    """

    lower: Path
    state_dir: Path
    config: Mapping[str, Any] = field(default_factory=dict)

    def argv(self, *arguments: str) -> list[str]:
        """Return the command line that runs ``run ARGUMENTS``."""
        node = json.dumps([str(self.lower), str(self.state_dir), {"config": dict(self.config)}])
        return [sys.executable, "-m", __name__, "--node", node, *arguments]

    def run(
        self, *arguments: str, stdin: bytes = b"", timeout_seconds: float = 30
    ) -> subprocess.CompletedProcess[str]:
        """Run a container to its end; return what came out, as text."""
        completed = subprocess.run(
            self.argv(*arguments),
            input=stdin,
            capture_output=True,
            timeout=timeout_seconds,
            check=False,
        )
        output, errors = completed.stdout.decode(), completed.stderr.decode()
        return subprocess.CompletedProcess(arguments, completed.returncode, output, errors)


@click.command(context_settings=CONTEXT_SETTINGS)
@click.option("--node")
@run_options
def _main(node: str, options: RunOptions) -> None:
    lower, state_dir, config = json.loads(node)

    def started(record: Record) -> None:
        if options.detach:
            click.echo(record.id)

    code = run_container(Path(lower), config, options, Path(state_dir), on_start=started)
    sys.exit(code)


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s: %(message)s")
    try:
        _main()
    except FirstreadError as error:
        click.echo(f"firstread: {error}", err=True)
        sys.exit(run_exit_code(error))
