# SPDX-License-Identifier: Apache-2.0
"""What an NBD client and our server agree on, as bytes; and clients that do not keep to it."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstread.device import nbdwire as wire
from firstread.device.nbdwire import Info, Option, Reply
from firstread.export.nbdnegotiation import (
    MAX_OPTION_BYTES,
    MAX_OPTIONS,
    MAX_REQUEST,
    Export,
    HandshakeError,
    Negotiation,
    Then,
)
from firstread.testing.nbdclient import string

SIZE = 123 * 4096
NAME = "registry.example/app:1"
BASIC = wire.HAS_FLAGS | wire.READ_ONLY | wire.CAN_MULTI_CONN
GO = string(b"") + bytes(2)
ACK = (Reply.ACK, b"")


def begun(*, tls: bool = False, flags: int = 3) -> Negotiation:
    agreed = Negotiation(Export(SIZE, NAME), "required" if tls else "none")
    agreed.client_flags(wire.CLIENT_FLAGS.pack(flags))
    return agreed


def ask(
    agreed: Negotiation, option: int, data: bytes = b""
) -> tuple[list[tuple[int, bytes]], Then]:
    """Return the replies as type and data, and what follows."""
    answer, then = agreed.option(option, data)
    replies = []
    while answer:
        magic, named, kind, length = wire.OPTION_REPLY.unpack(answer[:20])
        assert (magic, named) == (wire.REPLY_MAGIC, option)
        replies.append((kind, answer[20 : 20 + length]))
        answer = answer[20 + length :]
    return replies, then


def contexts(*queries: bytes, name: bytes = b"") -> bytes:
    return string(name) + struct.pack(">I", len(queries)) + b"".join(map(string, queries))


def test_the_greeting() -> None:
    assert Negotiation.greeting() == b"NBDMAGICIHAVEOPT\0\3"


@pytest.mark.parametrize("option", [Option.INFO, Option.GO])
def test_an_export_is_described(option: Option) -> None:
    asked = struct.pack(">HHHH", 3, Info.NAME, Info.DESCRIPTION, Info.BLOCK_SIZE)
    replies, then = ask(begun(), option, string(b"") + asked)
    assert then is (Then.TRANSMISSION if option == Option.GO else Then.MORE)
    assert replies == [
        (Reply.INFO, struct.pack(">HQH", Info.EXPORT, SIZE, BASIC)),
        (Reply.INFO, struct.pack(">HIII", Info.BLOCK_SIZE, 1, 4096, MAX_REQUEST)),
        (Reply.INFO, struct.pack(">H", Info.NAME)),
        (Reply.INFO, struct.pack(">H", Info.DESCRIPTION) + NAME.encode()),
        ACK,
    ]


@pytest.mark.parametrize(("flags", "zeros"), [(1, 124), (3, 0)])
def test_the_old_way_to_an_export(flags: int, zeros: int) -> None:
    answer, then = begun(flags=flags).option(Option.EXPORT_NAME, NAME.encode())
    assert (answer, then) == (struct.pack(">QH", SIZE, BASIC) + bytes(zeros), Then.TRANSMISSION)


def test_exports_are_listed_and_others_unknown() -> None:
    agreed = begun()
    assert ask(agreed, Option.LIST) == ([(Reply.SERVER, bytes(4) + NAME.encode()), ACK], Then.MORE)
    assert ask(agreed, Option.GO, string(b"x") + bytes(2))[0] == [(Reply.UNKNOWN, b"")]
    assert ask(agreed, Option.GO, string(NAME.encode()) + bytes(2))[1] is Then.TRANSMISSION


def test_structured_replies_allow_whole_ones() -> None:
    agreed = begun()
    assert ask(agreed, Option.STRUCTURED_REPLY) == ([ACK], Then.MORE)
    replies, _ = ask(agreed, Option.GO, GO)
    assert replies[0][1][-2:] == (BASIC | wire.SEND_DF).to_bytes(2, "big")
    assert (agreed.structured, agreed.status) == (True, False)


@pytest.mark.parametrize("queries", [(), (b"base:",), (b"qemu:x", b"base:allocation")])
def test_the_context_is_listed(queries: tuple[bytes, ...]) -> None:
    agreed = begun()
    ask(agreed, Option.STRUCTURED_REPLY)
    replies, _ = ask(agreed, Option.LIST_META_CONTEXT, contexts(*queries))
    assert replies == [(Reply.META_CONTEXT, bytes(4) + b"base:allocation"), ACK]


def test_the_context_is_set_for_one_export() -> None:
    agreed = begun()
    asked = contexts(b"base:allocation")
    assert ask(agreed, Option.SET_META_CONTEXT, asked)[0] == [(Reply.INVALID, b"")]
    ask(agreed, Option.STRUCTURED_REPLY)
    replies, _ = ask(agreed, Option.SET_META_CONTEXT, asked)
    assert replies == [(Reply.META_CONTEXT, b"\0\0\0\1base:allocation"), ACK]
    ask(agreed, Option.INFO, string(NAME.encode()) + bytes(2))
    assert not agreed.status  # that was another name
    ask(agreed, Option.GO, GO)
    assert agreed.status
    for queries in ((), (b"base:",), (b"qemu:dirty",)):
        assert ask(agreed, Option.SET_META_CONTEXT, contexts(*queries))[0] == [ACK]
        ask(agreed, Option.GO, GO)
        assert not agreed.status


def test_nothing_goes_before_tls() -> None:
    agreed = begun(tls=True)
    for option in (Option.LIST, Option.INFO, Option.GO, Option.STRUCTURED_REPLY, 99):
        assert ask(agreed, option, GO) == ([(Reply.TLS_REQUIRED, b"")], Then.MORE)
    with pytest.raises(HandshakeError, match="does not use TLS"):
        agreed.option(Option.EXPORT_NAME, b"")
    assert ask(agreed, Option.STARTTLS, b"x")[0] == [(Reply.INVALID, b"")]
    assert ask(agreed, Option.STARTTLS) == ([ACK], Then.TLS)
    assert ask(agreed, Option.STARTTLS)[0] == [(Reply.INVALID, b"")]
    assert ask(agreed, Option.GO, GO)[1] is Then.TRANSMISSION


def test_a_server_without_tls_says_so() -> None:
    assert ask(begun(), Option.STARTTLS) == ([(Reply.POLICY, b"")], Then.MORE)


def test_unknown_options_and_an_end() -> None:
    agreed = begun()
    assert ask(agreed, 11) == ([(Reply.UNSUPPORTED, b"")], Then.MORE)
    assert ask(agreed, Option.ABORT) == ([ACK], Then.CLOSE)


@pytest.mark.parametrize("flags", [0, 2, 7, 0xFFFFFFFF])
def test_flags_of_other_clients(flags: int) -> None:
    with pytest.raises(HandshakeError):
        begun(flags=flags)


def test_lengths_and_numbers_of_options_are_bounded() -> None:
    head = wire.OPTION.pack(wire.OPTION_MAGIC, Option.LIST, MAX_OPTION_BYTES)
    agreed = begun()
    for _ in range(MAX_OPTIONS):
        assert agreed.option_length(head) == (Option.LIST, MAX_OPTION_BYTES)
    for bad in (
        head,  # one too many
        wire.OPTION.pack(wire.OPTION_MAGIC, Option.LIST, MAX_OPTION_BYTES + 1),
        wire.OPTION.pack(1, Option.LIST, 0),
    ):
        with pytest.raises(HandshakeError):
            agreed.option_length(bad)
        agreed = begun()


@given(
    st.lists(
        st.tuples(
            st.one_of(st.integers(0, 12), st.integers(0, 0xFFFFFFFF)),
            st.one_of(
                st.binary(max_size=80),
                st.binary(max_size=40).map(lambda name: string(name) + bytes(2)),
                st.lists(st.sampled_from([b"base:allocation", b"x"]), max_size=4).map(
                    lambda queries: contexts(*queries)
                ),
            ),
        ),
        max_size=12,
    ),
    st.booleans(),
)
def test_any_options_get_replies(options: list[tuple[int, bytes]], tls: bool) -> None:
    agreed = begun(tls=tls)
    is_encrypted = not tls
    for option, data in options:
        replies: list[tuple[int, bytes]] = []
        then = Then.CLOSE
        try:
            if option == Option.EXPORT_NAME:
                _, then = agreed.option(option, data)
            else:
                replies, then = ask(agreed, option, data)
                assert replies[-1] == ACK or replies[-1][0] >> 31
        except HandshakeError:
            return
        is_encrypted = is_encrypted or then is Then.TLS
        assert is_encrypted or all(not data for _, data in replies)
        assert is_encrypted or then is not Then.TRANSMISSION
        if then in (Then.TRANSMISSION, Then.CLOSE):
            return
