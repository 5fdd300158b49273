# SPDX-License-Identifier: Apache-2.0
"""The tie between a container and the shared mount of its image, for several verbs.

Invariant: the container holds its mount under its id, from before the mount exists until the
container no longer needs it. So ``firstread rm`` can release the mount, whatever died in between.
"""

from __future__ import annotations

import importlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from firstread.cli.nodestate import daemon_of
from firstread.cli.options import check_lazy

if TYPE_CHECKING:
    from firstread.control.client import Client
    from firstread.run.containers import ContainerStore, Record
    from firstread.run.options import RunOptions

_LATE = "firstread.run.lifecycle"


def reserve(
    options: RunOptions, store: ContainerStore, root: Path, run_dir: Path
) -> tuple[Record, Client]:
    """Write the container's record, and connect to the daemon."""
    from firstread.control.client import Client
    from firstread.run.containers import reserve_container

    if not Client(run_dir).alive():
        # Before a daemon is started. With one, the same checks follow while it mounts.
        from firstread.run.early import check_early

        check_early(options, store.state_dir)
    record = reserve_container(options, store)
    try:
        return record, daemon_of(root, run_dir)
    except BaseException:
        store.delete(record)
        raise


def hold(client: Client, record: Record, image: str, how: dict[str, Any]) -> dict[str, Any]:
    """Mount the image, under the container's id, while `_LATE` is imported.

    The import takes as long as a mount. Its thread ends here, since a detached container's monitor
    is forked from a process without threads.
    """
    loading = threading.Thread(target=importlib.import_module, args=(_LATE,))
    loading.start()
    mount: dict[str, Any] = client.mount(image=image, holder=record.id, **how)
    loading.join()
    check_lazy(mount, how["policies"])
    return mount
