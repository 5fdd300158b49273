# SPDX-License-Identifier: Apache-2.0
"""Manifests of packaging/kubernetes and of the documents, before a real API server.

It refuses unknown fields and invalid values, and admission plugins refuse pods that a namespace
does not allow. Nothing of it may cause a warning either.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.kubectl.controlplane import TOP, ControlPlane
from tests.unit.packaging.test_kubernetes import FILES, KUBERNETES, load

from firstread.testing.command import Ran

pytestmark = pytest.mark.kubectl


def _blocks(document: Path, start: str) -> list[str]:
    """Return the blocks of YAML in a document that begin so."""
    pattern = rf"^```yaml\n({start}.*?)^```"
    return re.findall(pattern, document.read_text(), re.MULTILINE | re.DOTALL)


KUSTOMIZATIONS = ("base", "examples")
MANIFESTS = [
    path
    for path in FILES
    if path.name != "kustomization.yaml" and path.parent.parent.name != "components"
]
DOCUMENTED = [
    (path.name, text)
    for path in sorted((TOP / "docs").glob("*.md"))
    for text in _blocks(path, "apiVersion: ")
]
OPERATORS = ("DaskCluster", "PodMonitor", "PrometheusRule", "Workflow")
"""Kinds that a cluster has from an operator."""

_CREATE = ("create", "--dry-run=server", "--validate=strict", "--filename=-")

LEVELS = {"restricted": "restricted", "firstread-system": "privileged"}
"""Namespaces, and the Pod Security level that each enforces."""


@pytest.fixture(scope="module", autouse=True)
def namespaces(cluster: ControlPlane) -> None:
    """What the manifests ask for: namespaces, accounts, and the class of pods."""
    done(cluster.kubectl("apply", "--filename", KUBERNETES / "base/namespace.yaml"))
    done(cluster.kubectl("apply", "--filename", KUBERNETES / "examples/runtimeclass.yaml"))
    done(cluster.kubectl("create", "namespace", "restricted"))
    level = f"pod-security.kubernetes.io/enforce={LEVELS['restricted']}"
    done(cluster.kubectl("label", "namespace", "restricted", level))
    for namespace in LEVELS:
        for account in ("default", "firstread"):
            made = ("create", "serviceaccount", account, "--save-config", "-n", namespace)
            done(cluster.kubectl(*made))


def done(ran: Ran) -> str:
    """Return what a kubectl has printed; it has complained of nothing."""
    assert (ran.code, ran.stderr) == (0, ""), ran
    return ran.stdout


@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: str(path.relative_to(KUBERNETES)))
def test_each_manifest(cluster: ControlPlane, path: Path, side: str) -> None:
    _try(cluster, path.read_text(), side)


@pytest.mark.parametrize(("name", "text"), DOCUMENTED, ids=lambda value: value.partition("\n")[0])
def test_each_manifest_of_the_documents(cluster: ControlPlane, name: str, text: str) -> None:
    _try(cluster, text, "server")


def test_the_alerts_are_those_of_a_rule_object(cluster: ControlPlane) -> None:
    spec = yaml.safe_load((TOP / "packaging/monitoring/alerts.yaml").read_text())
    rule = {"apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule"}
    _try(cluster, json.dumps(rule | {"metadata": {"name": "firstread"}, "spec": spec}), "server")


@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize("name", KUSTOMIZATIONS)
def test_each_kustomization(cluster: ControlPlane, name: str, side: str) -> None:
    how = (f"--dry-run={side}", "--validate=strict")
    said = done(cluster.kubectl("apply", "--kustomize", KUBERNETES / name, *how))
    assert all(line.endswith(f"({_side(side)})") for line in said.splitlines()), said
    assert "daemonset.apps/firstread created" in said


@pytest.mark.parametrize(
    ("name", "namespace"),
    [
        ("base/daemonset.yaml", "firstread-system"),
        ("examples/volume-pod.yaml", "firstread-system"),
        ("examples/sync.yaml", "restricted"),
        ("examples/convert-job.yaml", "restricted"),
        ("examples/convert-workflow.yaml", "restricted"),
        ("examples/dask-cluster.yaml", "restricted"),
    ],
)
def test_pods_are_admitted_at_their_level(cluster: ControlPlane, name: str, namespace: str) -> None:
    """A controller would show that too late: its pods do not come, and its object looks right."""
    specs = list(_pod_specs(load(KUBERNETES / name)))
    assert specs
    for spec in specs:
        _admit(cluster, spec, namespace)


def test_the_pod_that_configures_containerd_is_admitted(cluster: ControlPlane) -> None:
    built = yaml.safe_load_all(done(cluster.kubectl("kustomize", KUBERNETES / "examples")))
    (daemonset,) = [each for each in built if each["kind"] == "DaemonSet"]
    (spec,) = _pod_specs(daemonset)
    assert spec["initContainers"]
    _admit(cluster, spec, "firstread-system")


def test_a_pod_of_the_class_is_admitted(cluster: ControlPlane) -> None:
    """The fragment in docs/kubernetes.md, "Who uses it"."""
    (fragment,) = _blocks(TOP / "docs/kubernetes.md", "metadata:")
    pod = yaml.safe_load(fragment)
    pod["spec"]["containers"] = [{"name": "main", "image": "registry.example/app:v1"}]
    _admit(cluster, pod["spec"], "firstread-system", pod["metadata"])


def test_the_server_refuses_what_is_wrong(cluster: ControlPlane) -> None:
    """So the tests above would show it."""
    text = (KUBERNETES / "examples/sync.yaml").read_text()
    how = ("apply", "--dry-run=server", "--validate=strict", "--filename=-")
    unknown = cluster.kubectl(*how, given=text.replace("replicas:", "replica:"))
    assert (unknown.code, 'unknown field "spec.replica"' in unknown.stderr) == (1, True), unknown
    invalid = cluster.kubectl(*how, given=text.replace("replicas: 1", "replicas: -1"))
    assert (invalid.code, "spec.replicas: Invalid value" in invalid.stderr) == (1, True), invalid
    (spec,) = _pod_specs(load(KUBERNETES / "base/daemonset.yaml"))
    forbidden = cluster.kubectl(*_CREATE, given=_pod(spec, "restricted"))
    assert (forbidden.code, "violates PodSecurity" in forbidden.stderr) == (1, True), forbidden


def _try(cluster: ControlPlane, text: str, side: str) -> None:
    """Have the server check an object, without keeping it."""
    document = yaml.safe_load(text)
    verb = "create" if "generateName" in document["metadata"] else "apply"
    how = (f"--dry-run={side}", "--validate=strict", "--filename=-")
    ran = cluster.kubectl(verb, *how, given=text)
    if document["kind"] in OPERATORS and "ensure CRDs are installed first" in ran.stderr:
        pytest.skip(f"no CustomResourceDefinition of {document['kind']} below FIRSTREAD_CRDS")
    assert done(ran).endswith(f"({_side(side)})\n")


def _side(side: str) -> str:
    """Return what kubectl says of an object that nobody has kept."""
    return {"client": "dry run", "server": "server dry run"}[side]


def _admit(
    cluster: ControlPlane, spec: dict[str, Any], namespace: str, metadata: Any = None
) -> None:
    said = done(cluster.kubectl(*_CREATE, given=_pod(spec, namespace, metadata)))
    assert said == "pod/pod created (server dry run)\n"


def _pod(spec: dict[str, Any], namespace: str, metadata: Any = None) -> str:
    named = {"name": "pod", "namespace": namespace} | (metadata or {})
    return json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": named, "spec": spec})


def _pod_specs(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the pods that an object, or its operator, makes."""
    spec = document["spec"]
    match document["kind"]:
        case "DaskCluster":
            yield from (spec[part]["spec"] for part in ("worker", "scheduler"))
        case "Workflow":
            for each in spec["templates"]:
                if "container" in each:
                    container = {"name": "main"} | each["container"]
                    yield {"containers": [container], "volumes": spec["volumes"]}
        case "Pod":
            yield spec
        case _:
            yield spec["template"]["spec"]
