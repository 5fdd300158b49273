# SPDX-License-Identifier: Apache-2.0
"""Each kubectl command of the documents, run in a cluster as its reader would."""

from __future__ import annotations

import json
import re

import pytest
from tests.kubectl.controlplane import TOP, ControlPlane

pytestmark = pytest.mark.kubectl

NODE = "node-1"


def test_each_command_does_what_it_says(cluster: ControlPlane) -> None:
    """From installation to removal; docs/kubernetes.md ends with that."""
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}}
    assert cluster.kubectl("create", "--filename=-", given=json.dumps(node)).code == 0
    first, *others = _commands("docs/kubernetes.md")
    said: dict[str, str] = {}
    for command in (first, *_commands("packaging/kubernetes/examples/sync.yaml"), *others):
        ran = cluster.run(["sh", "-euc", _here(command)])
        assert (ran.code, ran.stderr) == (0, ""), f"{command}: {ran}"
        said.setdefault(command.partition(" #")[0].strip(), ran.stdout)
    assert "daemonset.apps/firstread created" in said["kubectl apply -k packaging/kubernetes/base"]
    assert len(said) >= 8
    gone = cluster.kubectl("get", "daemonset", "--all-namespaces", "--output=name")
    assert gone.stdout == ""


def _commands(name: str) -> list[str]:
    """Return the commands of a document, or of a comment, that begin with kubectl."""
    text = re.sub(r"\\\n[#\s]*", "", (TOP / name).read_text())
    return re.findall(r"^(?:\$|#  ) (kubectl .*)$", text, re.MULTILINE)


def _here(command: str) -> str:
    """Return a command for this cluster: it has one node, and no controller to wait for."""
    command = command.replace("NODE", NODE)
    return re.sub(r"^kubectl delete -k", "kubectl delete --wait=false -k", command)
