# SPDX-License-Identifier: Apache-2.0
"""The table of benchmark images, the cache of built ones, and waiting until one is ready."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.images.build import build, is_current, read_layers, recipe_key
from benchmarks.images.layer import write_layer
from benchmarks.images.layout import write_layout
from benchmarks.images.manyfiles import write
from benchmarks.images.ready import Answers, Prints, wait_ready
from benchmarks.images.recipes import RECIPES

from firstread.errors import UsageError

pytestmark = pytest.mark.benchmarks

SERVER = """
import socket, time
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
for answer in (b"", b"not yet", b"+PO"):
    connection, _ = server.accept()
    connection.recv(100)
    connection.sendall(answer)
    if answer.startswith(b"+"):
        time.sleep(0.05)
        connection.sendall(b"NG")
    connection.close()
"""


def start(program: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen((sys.executable, "-c", program), stdout=subprocess.PIPE)


def test_bases_have_one_layer() -> None:
    bases = {recipe.base for recipe in RECIPES.values() if recipe.base}
    assert all(len(RECIPES[base].layers) == 1 for base in bases)


def test_no_two_servers_want_the_same_port() -> None:
    readies = [recipe.ready for recipe in RECIPES.values()]
    ports = [ready.port for ready in readies if isinstance(ready, Answers)]
    assert len(ports) == len(set(ports))


def test_key_follows_recipe_and_base() -> None:
    keys = {recipe_key(name) for name in RECIPES}
    assert len(keys) == len(RECIPES)
    assert recipe_key("redis") == recipe_key("redis")


def test_unknown_image_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no image 'nothing'"):
        build(["nothing"], tmp_path)


def test_layout_says_what_the_recipe_says(tmp_path: Path) -> None:
    blobs = tmp_path / "blobs/sha256"
    blobs.mkdir(parents=True)
    (tmp_path / "upper").mkdir()
    (tmp_path / "upper/file").write_text("x")
    layer = write_layer(tmp_path / "upper", blobs)
    recipe = replace(RECIPES["nodejs"], env=("A=b",))
    write_layout(tmp_path, recipe, [layer], ["make it"])

    index = json.loads((tmp_path / "index.json").read_text())
    (entry,) = index["manifests"]
    manifest = json.loads((blobs / entry["digest"].removeprefix("sha256:")).read_text())
    config = json.loads((blobs / manifest["config"]["digest"].removeprefix("sha256:")).read_text())
    assert entry["annotations"] == {"org.opencontainers.image.ref.name": "latest"}
    assert [each["digest"] for each in manifest["layers"]] == [layer.digest]
    assert config["rootfs"]["diff_ids"] == [layer.diff_id]
    assert config["config"]["Cmd"] == ["node", "server.js"]
    assert config["config"]["User"] == "node"
    assert config["config"]["Env"][1:] == ["A=b"]


def test_an_image_is_current_only_with_its_record_and_index(tmp_path: Path) -> None:
    assert not is_current(tmp_path, "small")
    record = {"recipe": recipe_key("small"), "layers": [], "packages": []}
    (tmp_path / "small.json").write_text(json.dumps(record))
    assert not is_current(tmp_path, "small")
    (tmp_path / "small").mkdir()
    (tmp_path / "small/index.json").write_text("{}")
    assert is_current(tmp_path, "small")
    assert build(["small"], tmp_path) == [tmp_path / "small"]
    assert read_layers(tmp_path, "small") == []
    (tmp_path / "small.json").write_text(json.dumps({**record, "recipe": "of another day"}))
    assert not is_current(tmp_path, "small")


def test_manyfiles_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    trees = []
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        write(tmp_path / name, 100, seed, pool_bytes=2_000_000)
        files = [path for path in (tmp_path / name).rglob("*") if path.is_file()]
        assert len(files) == 100
        trees.append({path.relative_to(tmp_path / name): path.read_bytes() for path in files})
    assert trees[0] == trees[1]
    assert trees[0] != trees[2]


def test_printed_line_is_ready() -> None:
    with start("print('ready')") as process:
        assert wait_ready(process, Prints("ready")) < 10


def test_another_line_is_not_ready() -> None:
    with start("print('steady')") as process, pytest.raises(RuntimeError, match="'steady'"):
        wait_ready(process, Prints("ready"))


def test_answer_is_ready_once_it_is_whole_and_right() -> None:
    with start(SERVER) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        wait_ready(process, Answers(port, b"PING\r\n", b"+PONG"))
        assert process.wait() == 0


def test_server_that_ends_is_reported() -> None:
    with start("raise SystemExit(3)") as process, pytest.raises(RuntimeError, match="ended with 3"):
        wait_ready(process, Answers(1, b"", b""))


def test_silence_is_reported() -> None:
    with start("import time; time.sleep(60)") as process:
        try:
            with pytest.raises(RuntimeError, match="no answer on port 1 "):
                wait_ready(process, Answers(1, b"", b""), timeout_s=0.05)
        finally:
            process.kill()
