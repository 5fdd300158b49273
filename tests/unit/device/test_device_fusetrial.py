# SPDX-License-Identifier: Apache-2.0
"""What a trial of a device over FUSE accepts; tests/privileged has the trials themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from firstread.device import fusetrial
from firstread.errors import NodeError

RIGHT = fusetrial._CONTENT


@pytest.mark.parametrize(
    ("got", "problem"),
    [
        ([RIGHT, b""], ""),
        ([RIGHT, RIGHT], ""),
        ([RIGHT, RIGHT[:512]], ""),
        ([b"", b""], "wrong bytes"),
        ([bytes(4096), b""], "wrong bytes"),
        ([RIGHT, RIGHT + bytes(4096)], "zeros"),
        ([RIGHT, bytes(4096)], "zeros"),
    ],
)
@pytest.mark.parametrize(
    "prove",
    [
        fusetrial.prove_fuse,
        fusetrial.prove_flat,
        fusetrial.prove_loop,
        fusetrial.prove_mixed,
        fusetrial.prove_nbd,
    ],
)
def test_zeros_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    prove: Callable[[Path], str],
    got: list[bytes],
    problem: str,
) -> None:
    monkeypatch.setattr(fusetrial, "_try", lambda *_: got)
    if not problem:
        assert prove(tmp_path)
        return
    with pytest.raises(NodeError, match=problem) as caught:
        prove(tmp_path)
    assert caught.value.hint
