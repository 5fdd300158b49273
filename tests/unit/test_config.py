# SPDX-License-Identifier: Apache-2.0
"""The configuration of a node: what is read, and what is refused."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from firstread import config
from firstread.config import Config, load_config
from firstread.errors import NodeError, UsageError
from firstread.units import GiB, MiB


def written(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.write_text(text)
    return path


def test_the_documented_file_has_the_defaults(tmp_path: Path) -> None:
    assert config.__doc__ is not None
    text = re.sub(r"^    ", "", config.__doc__.partition("defaults::")[2], flags=re.MULTILINE)
    assert set(tomllib.loads(text)) == set(Config.__struct_fields__)
    assert load_config(written(tmp_path, text)) == Config()


def test_sizes_are_written_as_people_do(tmp_path: Path) -> None:
    cache = load_config(written(tmp_path, '[cache]\nmax_bytes = "20GiB"\nmin_free_bytes = 5')).cache
    assert (cache.max_bytes, cache.min_free_bytes) == (20 * GiB, 5)


def test_it_survives_being_written_as_json() -> None:
    changed = Config().override("cache", max_bytes="3MiB").override("node", workers=9, metrics=None)
    assert changed.cache.max_bytes == 3 * MiB
    assert changed.node.workers == 9
    assert Config.from_builtins(json.loads(json.dumps(changed.to_builtins()))) == changed


def test_missing_things_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "configuration", lambda: tmp_path / "none")
    assert load_config() == Config()
    with pytest.raises(NodeError, match=r"cannot read the configuration .*No such file"):
        load_config(tmp_path / "none")
    with pytest.raises(NodeError, match="Is a directory"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[cache", "not valid TOML"),
        ("\0", "not valid TOML"),
        ("[cash]\nmax_bytes = 1", "unknown field `cash`"),
        ("[cache]\nmax_byte = 1", "unknown field `max_byte`"),
        ('[cache]\nmax_bytes = "many"', "'many' is not a size"),
        ("[cache]\nmax_bytes = -1", "max_bytes must be 0 at least"),
        ("[node]\nworkers = 0", "workers must be 1 at least"),
        ("[node]\nworkers = 65", "workers must be 64 at most"),
        ("[node]\nhealth_s = 1", "health_s must be 2 at least"),
        ("[node]\nhealth_s = inf", "health_s must be 2 at least, and below 1,000,000,000"),
        ("[policy]\nstall_s = nan", "stall_s must be 0 at least, and below 1,000,000,000"),
        ('[trace]\ncollect = "traces"', "collect must be an absolute path"),
        ("[policy]\nstall_s = 1e9", "stall_s must be 0 at least, and below 1,000,000,000"),
        ("[registry]\nconnect_timeout_s = nan", "connect_timeout_s must be 0.001 at least"),
        ("[registry]\nhedge_share = nan", "hedge_share must be from 0 to 1"),
        ('[node]\nlog_level = "LOUD"', "Invalid enum value"),
        ('[node]\ndevice = "floppy"', "`$.node.device`, which is one of 'auto', 'fanotify', "),
        ("[node]\ndevice = 7", "`$.node.device`"),
        ('[policy]\nstall_s = "long"', "Expected `float`"),
        ('[policy]\non_corruption = "ignore"', "Invalid enum value"),
        ("a = " + "[" * 10_000, "not valid TOML"),
    ],
)
def test_refused_settings(tmp_path: Path, text: str, words: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        load_config(path)
    assert caught.value.message.startswith(str(path))
    assert words in caught.value.message


def test_a_large_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="larger than"):
        load_config(written(tmp_path, "#" * (config.MAX_CONFIG_BYTES + 1)))
