# SPDX-License-Identifier: Apache-2.0
"""containerd's configuration, with and without our section."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstread.errors import UsageError
from firstread.snapshotter.configfile import (
    BEGIN,
    CRI,
    END,
    Choice,
    added,
    removed,
    version_of,
)

SOCKET = "/run/firstread/snapshotter.sock"
PLUGIN = {"type": "snapshot", "address": SOCKET}

TEXTS = {
    "empty": "",
    "no newline": "version = 2",
    "version 1": 'root = "/x" # mine\n\n[plugins.cri.containerd]\nsnapshotter = "native"\n',
    "version 1 without cri": "oom_score = 0\n",
    "version 2 without cri": "version = 2\n# the end",
    "version 2": (
        "version = 2\n"
        '[plugins."io.containerd.grpc.v1.cri".containerd]\n'
        "  # before\n"
        "  snapshotter = 'overlayfs'   # why\n"
        '  default_runtime_name = "runc"\n'
        '  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]\n'
        '    runtime_type = "io.containerd.runc.v2"\n'
        '    snapshotter = "firstread"\n\n\n'
    ),
    "version 2, only a runtime": (
        "version = 2\n"
        '[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]\n'
        '  runtime_type = "io.containerd.runc.v2"\n'
    ),
    "version 3": (
        "version = 3\nimports = ['/etc/containerd/conf.d/*.toml']\n"
        "[plugins.'io.containerd.cri.v1.images']\n"
        'snapshotter = "overlayfs"\ndisable_snapshot_annotations = true # x\n'
        "[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '/etc/certs'\n"
    ),
    "version 3 without cri": "version = 3\n",
    "other proxies": (
        "version = 2\n[proxy_plugins]\n  [proxy_plugins.stargz]\n"
        '    type = "snapshot"\n    address = "/run/stargz.sock"\n'
    ),
    "windows lines": "version = 2\r\n[grpc]\r\n  uid = 0\r\n",
    "lookalikes": (
        'version = 2\nroot = """\n[plugins."io.containerd.grpc.v1.cri".containerd]\n'
        'snapshotter = "x"\n"""\n'
        "imports = [\n  'a'\n]\n"
        "  [plugins.'io.containerd.grpc.v1.cri' . containerd] # here\n"
        "    'snapshotter'='btrfs'# why\n"
        '[plugins."io.containerd.grpc.v1.cri".registry]\n  config_path = ""\n'
    ),
    "a header at the end": 'version = 2\n[plugins."io.containerd.grpc.v1.cri".containerd]',
    "odd line ends": "version = 2 # \u2028 one \x85 line\n",
    "set already": (
        'version = 2\n[plugins."io.containerd.grpc.v1.cri".containerd]\n'
        'snapshotter = "firstread"\ndisable_snapshot_annotations = false\n'
    ),
}


def value(text: str, path: tuple[str, ...]) -> Any:
    place = tomllib.loads(text)
    for key in path:
        place = place[key]
    return place


@pytest.mark.parametrize("default", [False, True], ids=["plugin", "default"])
@pytest.mark.parametrize("name", TEXTS)
def test_it_is_added_and_removed_without_a_trace(name: str, default: bool) -> None:
    before, choice = TEXTS[name], Choice(SOCKET, default)
    after = added(before, choice)
    plugin = value(after, ("proxy_plugins", "firstread"))
    exports = plugin.pop("exports", None)
    assert plugin == PLUGIN
    assert (exports is not None) == (version_of(before) == 3)
    assert tomllib.loads(after)["proxy_plugins"]["firstread"]["address"] == SOCKET
    if default:
        table = value(after, CRI[version_of(before)])
        assert (table["snapshotter"], table["disable_snapshot_annotations"]) == ("firstread", False)
    assert added(after, choice) == after
    assert removed(after) == before
    assert removed(before) == before


@pytest.mark.parametrize("name", TEXTS)
def test_lines_of_others_stay_as_they_are(name: str) -> None:
    """But for the values that are to change."""
    before = TEXTS[name]
    kept = [
        line
        for line in before.splitlines()
        if not re.match(r"\s*'?(snapshotter|disable_snapshot_annotations|plugins)\b", line)
    ]
    after = added(before, Choice(SOCKET, default=True)).splitlines()
    rest = iter(after)
    assert all(line in rest for line in kept)  # in this order
    if before.startswith("version = 2\n[plugins") and "# why" in before:
        assert '  snapshotter = "firstread"   # why' in after


def test_what_it_looks_like() -> None:
    assert added("version = 2\n", Choice(SOCKET, default=True)) == (
        "version = 2\n"
        f"{BEGIN}\n"
        "[proxy_plugins.firstread]\n"
        '  type = "snapshot"\n'
        f'  address = "{SOCKET}"\n'
        '[plugins."io.containerd.grpc.v1.cri".containerd]\n'
        '  snapshotter = "firstread"\n'
        "  disable_snapshot_annotations = false\n"
        f"{END}\n"
    )


@pytest.mark.parametrize("containerd2", [False, True])
@pytest.mark.parametrize("version", CRI)
def test_the_file_system_of_the_snapshotter_is_named(version: int, containerd2: bool) -> None:
    before = f"version = {version}\n" if version > 1 else ""
    choice = Choice(SOCKET, True, containerd2, root="/var/lib/firstread/snapshotter")
    after = added(before, choice)
    exports = value(after, ("proxy_plugins", "firstread", "exports"))
    assert exports["root"] == "/var/lib/firstread/snapshotter"
    assert ("enable_remote_snapshot_annotations" in exports) == (containerd2 or version >= 3)
    assert added(after, choice) == after
    assert removed(after) == before


def test_another_choice_replaces_the_first() -> None:
    text = TEXTS["version 2"]
    first = added(text, Choice("/other.sock", default=True))
    second = added(first, Choice(SOCKET))
    assert second == added(text, Choice(SOCKET))
    assert removed(second) == text


def test_changes_of_others_survive() -> None:
    installed = added(TEXTS["version 2"], Choice(SOCKET, default=True))
    changed = installed.replace("version = 2\n", "version = 2\noom_score = 7\n")
    changed += "[metrics]\naddress = 'x'\n"
    expected = TEXTS["version 2"].replace("version = 2\n", "version = 2\noom_score = 7\n")
    assert removed(changed) == expected + "[metrics]\naddress = 'x'\n"


def test_a_value_that_somebody_has_changed_is_theirs() -> None:
    installed = added(TEXTS["version 2"], Choice(SOCKET, default=True))
    changed = installed.replace(
        '  snapshotter = "firstread"   # why', '  snapshotter = "zfs"   # why'
    )
    assert '  snapshotter = "zfs"   # why\n' in removed(changed)


BROKEN = {
    "a section in one line": (
        'version = 2\nplugins."io.containerd.grpc.v1.cri".containerd = { snapshotter = "x" }\n',
        "cannot be completed",
    ),
    "a value over several lines": (
        'version = 2\n[plugins."io.containerd.grpc.v1.cri".containerd]\nsnapshotter = """\nx"""\n',
        "cannot be completed",
    ),
    "a damaged record": (f"version = 2\n{BEGIN}\n# was: [1]\n{END}\n", "damaged"),
    "not TOML": ("version = ", "it is not valid TOML"),
    "two of one": ("[a]\n[a]\n", "it is not valid TOML"),
    "an unknown version": ("version = 9\n", "version 9"),
    "a version that is text": ('version = "2"\n', "version '2'"),
    "a plugin of our name": (
        'version = 2\n[proxy_plugins.firstread]\ntype = "snapshot"\naddress = "/x"\n',
        "did not write",
    ),
    "proxies in one line": ("version = 2\nproxy_plugins = {}\n", "cannot be completed"),
    "proxies that are none": ("version = 2\nproxy_plugins = 3\n", "cannot be completed"),
    "plugins that are none": ("version = 2\nplugins = 3\n", "cannot be completed"),
    "half a block": (f"version = 2\n{BEGIN}\n[proxy_plugins.firstread]\n", "damaged"),
    "a block backwards": (f"version = 2\n{END}\n{BEGIN}\n", "damaged"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_unknown_configurations_are_refused(name: str) -> None:
    text, message = BROKEN[name]
    with pytest.raises(UsageError, match=message) as caught:
        added(text, Choice(SOCKET, default=True))
    assert caught.value.hint


@given(st.text(max_size=80), st.booleans())
def test_no_text_is_changed_in_another_way(text: str, default: bool) -> None:
    try:
        after = added(text, Choice(SOCKET, default))
    except UsageError:
        return
    assert removed(after) == text


@given(st.text(min_size=1, max_size=40))
def test_any_socket_is_quoted(socket: str) -> None:
    try:
        after = added("version = 2\n", Choice(socket))
    except UsageError:
        return
    assert value(after, ("proxy_plugins", "firstread", "address")) == socket
