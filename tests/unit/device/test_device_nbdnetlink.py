# SPDX-License-Identifier: Apache-2.0
"""Netlink messages of the NBD client; what the kernel says to them is in tests/privileged."""

from __future__ import annotations

import errno
import struct
from pathlib import Path

import pytest

from firstread.device import nbdnetlink as netlink
from firstread.device.nbddevice import remedy


def test_a_message_is_as_the_kernel_reads_it() -> None:
    """Source: include/uapi/linux/netlink.h, genetlink.h."""
    body = netlink.attribute(1, b"\x07\0\0\0") + netlink.attribute(10, b"firstread /a\0")
    message = netlink.message(27, 3, 9, body)
    head = struct.unpack_from("=IHHII BBH", message)
    assert head == (len(message), 27, 5, 9, 0, 3, 1, 0)
    assert len(message) % 4 == 0
    assert struct.unpack_from("=HH", message, 20) == (8, 1)
    assert struct.unpack_from("=HH", message, 28) == (17, 10)  # without its padding
    assert netlink.attributes(message[20:]) == {1: b"\x07\0\0\0", 10: b"firstread /a\0"}


def test_messages_in_one_datagram_come_apart() -> None:
    datagram = netlink.message(27, 1, 4, b"") + netlink.message(2, 0, 5, b"\0" * 4)
    found = [(kind, sequence) for kind, sequence, _ in netlink.messages(datagram)]
    assert found == [(27, 4), (2, 5)]


def test_a_nested_attribute_has_its_own_kind() -> None:
    assert netlink.attributes(netlink.attribute(7 | 0x8000, b"")) == {7: b""}


@pytest.mark.parametrize("length", [0, 3, 9])
def test_a_wrong_length_is_an_error(length: int) -> None:
    with pytest.raises(OSError, match="wrong length") as caught:
        netlink.attributes(struct.pack("=HHI", length, 1, 0))
    assert caught.value.errno == errno.EBADMSG
    with pytest.raises(OSError, match="wrong length"):
        list(netlink.messages(struct.pack("=IHHII", length, 2, 0, 1, 0)))


def test_other_devices_have_no_index() -> None:
    assert netlink.index_of(0) == -1
    assert netlink.backend_of(-1) == ""


@pytest.mark.parametrize(
    ("is_loaded", "said", "fix"),
    [
        (False, "the kernel has no NBD client, or it is not loaded", "load the module nbd"),
        (True, "this network namespace does not see", "the host's network namespace"),
    ],
)
def test_nobody_is_told_to_load_a_module_that_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_loaded: bool, said: str, fix: str
) -> None:
    if is_loaded:
        (tmp_path / "nbd").mkdir()
    monkeypatch.setattr(netlink, "MODULE", tmp_path / "nbd")
    monkeypatch.setattr(netlink, "_FAMILY", b"no such family\0")
    with pytest.raises(FileNotFoundError, match=said):
        netlink.disconnect(0)
    assert fix in remedy()
