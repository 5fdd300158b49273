# SPDX-License-Identifier: Apache-2.0
"""The numbers of fields in our .proto files, as bytes that containerd understands."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp

from firstread.snapshotter import containerd_pb2 as api
from firstread.testing import cri_pb2 as cri


@pytest.mark.parametrize(
    ("message", "data"),
    [
        # Source: protobuf.dev, "Encoding"
        (api.UsageResponse(size=150), b"\x08\x96\x01"),
        (api.UsageResponse(size=-2), b"\x08" + b"\xfe" + b"\xff" * 8 + b"\x01"),
        (api.PrepareRequest(key="testing"), b"\x12\x07testing"),
        (
            api.PrepareRequest(labels={"a": "b"}),
            b"\x22\x06\x0a\x01a\x12\x01b",
        ),
        (
            api.MountsResponse(mounts=[api.Mount(type="bind", options=["ro", ""])]),
            b"\x0a\x0c\x0a\x04bind\x22\x02ro\x22\0",
        ),
        (api.InfoResponse(info=api.Info(updated_at=Timestamp())), b"\x0a\x02\x2a\x00"),
        (api.InfoResponse(), b""),
        (api.CommitRequest(name="n", key="k", parent="p"), b"\x12\x01n\x1a\x01k\x2a\x01p"),
        (api.Content(digest="d", labels={"a": "b"}), b"\x0a\x01d\x2a\x06\x0a\x01a\x12\x01b"),
        (
            api.WriteRequest(action=2, ref="r", total=9, expected="e", offset=1, data=b"d"),
            b"\x08\x02\x12\x01r\x18\x09\x22\x01e\x28\x01\x32\x01d",
        ),
        (api.ReadResponse(data=b"d"), b"\x12\x01d"),
        (
            api.Image(name="n", target=api.Descriptor(media_type="m", digest="d", size=1)),
            b"\x0a\x01n\x1a\x08\x0a\x01m\x12\x01d\x18\x01",
        ),
        (api.Lease(id="i", labels={"a": "b"}), b"\x0a\x01i\x1a\x06\x0a\x01a\x12\x01b"),
        (cri.ImageSpec(runtime_handler="r"), b"\x9a\x01\x01r"),
    ],
)
def test_bytes(message: Message, data: bytes) -> None:
    assert message.SerializeToString() == data
    assert type(message).FromString(data) == message


def test_unknown_fields_are_passed_over() -> None:
    unknown = b"\x78\x01" + b"\x7a\x02hi" + b"\x7d1234" + b"\x7912345678"
    assert api.UsageResponse.FromString(unknown + b"\x08\x05").size == 5


@pytest.mark.parametrize("data", [b"\x12", b"\x12\x05abc", b"\x08", b"\x12\x01\xff"])
def test_damaged_messages(data: bytes) -> None:
    with pytest.raises(DecodeError):
        api.PrepareRequest.FromString(data)
