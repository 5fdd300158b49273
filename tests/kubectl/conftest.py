# SPDX-License-Identifier: Apache-2.0
"""A cluster for the tests of a file, with the kinds of operators that the tests were given."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.kubectl.controlplane import ControlPlane, missing


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """An API server that knows the CustomResourceDefinitions below ``FIRSTREAD_CRDS``."""
    if absent := missing():
        pytest.skip(f"it needs {', '.join(absent)} in PATH")
    with ControlPlane(tmp_path_factory.mktemp("cluster")) as running:
        given = os.environ.get("FIRSTREAD_CRDS")
        for path in sorted(Path(given).rglob("*.yaml")) if given else []:
            made = running.kubectl("create", "--filename", path.absolute())
            assert made.code == 0, made
        if given:  # kubectl itself fails at a definition that has no conditions yet
            running.wait("wait", "--for=condition=Established", "crd", "--all")
        yield running
