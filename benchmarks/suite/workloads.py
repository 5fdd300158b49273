# SPDX-License-Identifier: Apache-2.0
"""The workloads of the suite: an image, a command, and the sign that it is ready.

Owns the table `WORKLOADS`: the command of every benchmark image, and more commands for the large
one. Readiness is that of published suites: a line on stdout, or an answer such as HTTP 200.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.images.ready import Prints, Ready
from benchmarks.images.recipes import RECIPES

LARGE = "python"
_SERVER = """
import http.server

handler = http.server.SimpleHTTPRequestHandler
with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as it:
    print("ready", flush=True)
    it.serve_forever()
"""
_FASTAPI = """
import contextlib, fastapi, uvicorn

@contextlib.asynccontextmanager
async def up(app):
    print("ready", flush=True)
    yield

app = fastapi.FastAPI(lifespan=up)
uvicorn.run(app, host="127.0.0.1", port=8097, log_level="error")
"""
SERVER, FASTAPI = (("python3", "-c", program) for program in (_SERVER, _FASTAPI))
"""Services on the standard library and on fastapi; the first reads little of the large image."""


@dataclass(frozen=True)
class Workload:
    """One start.

    Args:
        name: on the command line.
        image: of `RECIPES`.
        ready: the sign to wait for.
        command: instead of the image's own; empty for that.
    """

    name: str
    image: str
    ready: Ready
    command: tuple[str, ...] = ()


def _all() -> list[Workload]:
    more = {"python-server": SERVER, "python-fastapi": FASTAPI}
    return [
        *(Workload(name, name, recipe.ready) for name, recipe in RECIPES.items()),
        *(Workload(name, LARGE, Prints("ready"), command) for name, command in more.items()),
    ]


WORKLOADS = {workload.name: workload for workload in _all()}
