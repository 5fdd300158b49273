# SPDX-License-Identifier: Apache-2.0
"""The trace of a start, as a collector gets it from a real node."""

from __future__ import annotations

from pathlib import Path

import pytest

from firstread.testing.daemon import Daemon
from firstread.testing.lazymount import output
from firstread.testing.plainimage import put_plain_image
from firstread.testing.scripted import ScriptedRegistry

pytest.importorskip("opentelemetry.proto")

from firstread.testing.otlpreceiver import OtlpReceiver

pytestmark = pytest.mark.privileged

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def test_a_start_is_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with OtlpReceiver() as receiver, ScriptedRegistry() as registry:
        endpoint = f"http://127.0.0.1:{receiver.http_port}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        monkeypatch.setenv("TRACEPARENT", f"00-{TRACE}-{PARENT}-01")
        with Daemon(tmp_path) as node:
            image = put_plain_image(f"docker://{registry.host}/lazy/plain:1")
            place = node.mount(f"{registry.host}/lazy/plain:1")
            for number in (3, 0):
                read = output(node.reading(place / f"f{number}", how="random"))
                assert read == image.summary(number)
            assert node.run("umount", place).code == 0  # which ends the start
            node.wait(lambda: receiver.spans)
            assert not node.log("traces of starts")
    spans = {span.name: span for span in receiver.spans}
    root, mount, reads = spans["firstread.start"], spans["mount"], spans["first reads"]
    assert (root.trace_id.hex(), root.parent_span_id.hex()) == (TRACE, PARENT)
    assert root.start_time_unix_nano <= spans["pull"].start_time_unix_nano
    assert spans["metadata"].end_time_unix_nano <= mount.start_time_unix_nano + 50_000_000
    assert mount.end_time_unix_nano <= reads.start_time_unix_nano
    for span in (root, reads):
        assert abs(span.end_time_unix_nano - spans["ready"].end_time_unix_nano) < 1_000
    assert [span.name for span in receiver.spans].count("first read") == 2
