# SPDX-License-Identifier: Apache-2.0
"""packaging/kubernetes: valid YAML, objects that fit together, and the promises of the documents.

tests/kubectl has an API server check objects. These tests check what a server accepts and a
cluster would suffer from: a mount that the host does not see, a right that nobody needs.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from firstread.cli.convert import command as convert_command
from firstread.cli.daemon import command as daemon_command
from firstread.cli.syncserve import serve as serve_command
from firstread.config import load_config
from firstread.snapshotter.sockets import ADDRESS, CONTAINERD
from firstread.sync.pattern import parse_pattern
from firstread.testing.command import firstread
from firstread.testing.images import File, Image, Layer, write_layout
from firstread.testing.patience import PATIENCE_S

TOP = Path(__file__).parents[3]
KUBERNETES = TOP / "packaging/kubernetes"
FILES = sorted(KUBERNETES.rglob("*.yaml"))
KINDS = {
    "Namespace": "v1",
    "ServiceAccount": "v1",
    "ConfigMap": "v1",
    "Pod": "v1",
    "Service": "v1",
    "DaemonSet": "apps/v1",
    "Deployment": "apps/v1",
    "RuntimeClass": "node.k8s.io/v1",
    "Job": "batch/v1",
    "DaskCluster": "kubernetes.dask.org/v1",
    "Workflow": "argoproj.io/v1alpha1",
    "Kustomization": "kustomize.config.k8s.io/v1beta1",
    "Component": "kustomize.config.k8s.io/v1alpha1",
}
ENGINES = ("Job", "DaskCluster", "Workflow")
NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


class _Strict(yaml.SafeLoader):
    """YAML in which a key that is given twice is an error, as it is for Kubernetes."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"{node.start_mark}: a key is given twice"
        return super().construct_mapping(node, deep)


def load(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = yaml.load(path.read_text(), _Strict)
    return document


def pod_spec(document: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = document["spec"]
    match document["kind"]:
        case "DaemonSet" | "Deployment" | "Job":
            return spec["template"]["spec"]  # type: ignore[no-any-return]
        case "DaskCluster":
            return spec["worker"]["spec"]  # type: ignore[no-any-return]
        case "Workflow":
            (template,) = [each for each in spec["templates"] if "container" in each]
            return {"containers": [template["container"]], "volumes": spec["volumes"]}
    return spec


def containers(document: dict[str, Any]) -> list[dict[str, Any]]:
    spec = pod_spec(document)
    return [*spec.get("initContainers", []), *spec.get("containers", [])]


@pytest.fixture(scope="module")
def daemonset() -> dict[str, Any]:
    return load(KUBERNETES / "base/daemonset.yaml")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(KUBERNETES)))
def test_each_file_is_an_object_of_a_known_kind(path: Path) -> None:
    assert path.read_text().startswith("# SPDX-License-Identifier: Apache-2.0\n")
    document = load(path)
    assert document["apiVersion"] == KINDS[document["kind"]]
    if document["kind"] not in ("Kustomization", "Component"):
        metadata = document["metadata"]
        assert NAME.fullmatch(metadata.get("name") or metadata["generateName"].rstrip("-"))
    if document["kind"] not in ("DaemonSet", "Deployment", "Pod", *ENGINES):
        return
    volumes = [volume["name"] for volume in pod_spec(document).get("volumes", [])]
    assert len(volumes) == len(set(volumes))
    for container in containers(document):
        for mount in container.get("volumeMounts", []):
            assert mount["name"] in volumes
            assert mount["mountPath"].startswith("/")
            if mount.get("mountPropagation") == "Bidirectional":
                assert container["securityContext"]["privileged"] is True


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if path.name == "kustomization.yaml"],
    ids=lambda path: path.parent.name,
)
def test_named_files_exist(path: Path) -> None:
    document = load(path)
    named = [
        *document.get("resources", []),
        *document.get("components", []),
        *(patch["path"] for patch in document.get("patches", [])),
        *(name for entry in document.get("configMapGenerator", []) for name in entry["files"]),
    ]
    assert named
    assert [name for name in named if not (path.parent / name).exists()] == []


def test_the_daemon_needs_no_right_in_the_cluster(daemonset: dict[str, Any]) -> None:
    account = load(KUBERNETES / "base/serviceaccount.yaml")
    assert account["automountServiceAccountToken"] is False
    assert pod_spec(daemonset)["automountServiceAccountToken"] is False
    assert pod_spec(daemonset)["serviceAccountName"] == account["metadata"]["name"]
    kinds = {load(path)["kind"] for path in FILES}
    assert not {kind for kind in kinds if "Role" in kind}


def test_the_selector_fits(daemonset: dict[str, Any]) -> None:
    labels = daemonset["spec"]["template"]["metadata"]["labels"]
    assert daemonset["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_paths_are_those_of_the_host(daemonset: dict[str, Any]) -> None:
    """Mounts are made below them and are named by them, inside and outside."""
    container = containers(daemonset)[0]
    volumes = {volume["name"]: volume for volume in pod_spec(daemonset)["volumes"]}
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    options: dict[str | None, Any] = {p.name: p.default for p in daemon_command.params}
    for name, option in (("root", "root"), ("run", "run_dir")):
        path = volumes[name]["hostPath"]["path"]
        assert path == mounts[name]["mountPath"] == str(options[option]())
        assert "readOnly" not in mounts[name]
    assert mounts["run"]["mountPropagation"] == "Bidirectional"
    assert ADDRESS.parent == Path(mounts["run"]["mountPath"])


def test_nothing_kills_the_daemon_for_being_slow(daemonset: dict[str, Any]) -> None:
    for each in containers(daemonset):
        assert "livenessProbe" not in each
        assert "limits" not in each["resources"]
    assert daemonset["spec"]["updateStrategy"] == {"type": "OnDelete"}
    assert pod_spec(daemonset)["priorityClassName"] == "system-node-critical"


def test_the_command_lines_are_those_of_firstread(daemonset: dict[str, Any]) -> None:
    container = containers(daemonset)[0]
    verb, *options = container["args"]
    assert verb == "daemon"
    known = {name for parameter in daemon_command.params for name in parameter.opts}
    assert {option.partition("=")[0] for option in options} <= known
    port = container["ports"][0]["containerPort"]
    assert f"--metrics=0.0.0.0:{port}" in options
    annotations = daemonset["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(port)
    assert container["readinessProbe"]["exec"]["command"][:2] == ["firstread", "status"]


def test_only_the_daemon_is_a_daemon(daemonset: dict[str, Any]) -> None:
    daemon, snapshotter = containers(daemonset)
    own = {e["name"]: e["value"] for e in daemon["env"]}
    wanted = own | {"FIRSTREAD_START_DAEMON": "0"}
    assert {e["name"]: e["value"] for e in snapshotter["env"]} == wanted
    assert snapshotter["args"][0] == "snapshotter"
    places = {m["name"]: m["mountPath"] for m in daemon["volumeMounts"]}
    socket = {m["name"]: m for m in snapshotter["volumeMounts"]}.pop("containerd-run")
    assert socket["mountPath"] == str(CONTAINERD.parent)
    assert socket["mountPropagation"] == "HostToContainer"  # or it would hold mounts of the host
    assert {
        m["name"]: m["mountPath"] for m in snapshotter["volumeMounts"] if m is not socket
    }.items() <= places.items()
    ports = {container["ports"][0]["containerPort"] for container in (daemon, snapshotter)}
    assert len(ports) == 2


def test_each_node_detects_its_device(daemonset: dict[str, Any]) -> None:
    assert load_config(KUBERNETES / "base/config.toml").node.device == "auto"
    daemon, snapshotter = containers(daemonset)
    assert not [option for option in daemon["args"] if option.startswith("--device")]
    volumes = {volume["name"]: volume for volume in pod_spec(daemonset)["volumes"]}
    assert volumes["dev"]["hostPath"]["path"] == "/dev"
    assert {"name": "dev", "mountPath": "/dev"} in daemon["volumeMounts"]
    assert "dev" not in {mount["name"] for mount in snapshotter["volumeMounts"]}


def test_credentials_are_where_they_are_looked_for(daemonset: dict[str, Any]) -> None:
    container = containers(daemonset)[0]
    (place,) = [e["value"] for e in container["env"] if e["name"] == "DOCKER_CONFIG"]
    (mount,) = [m for m in container["volumeMounts"] if m["name"] == "credentials"]
    assert mount["mountPath"] == place
    assert "subPath" not in mount  # or a renewed secret would never arrive
    (volume,) = [v for v in pod_spec(daemonset)["volumes"] if v["name"] == "credentials"]
    assert volume["secret"]["optional"] is True
    assert volume["secret"]["items"] == [{"key": ".dockerconfigjson", "path": "config.json"}]


def test_containerd_is_configured_once(tmp_path: Path) -> None:
    """The script of the component, run here."""
    patch = load(KUBERNETES / "components/configure-containerd/daemonset.yaml")
    (container,) = containers(patch)
    (script,) = container["args"]
    config = tmp_path / "config.toml"
    before = f'version = 2\nroot = "{tmp_path}/none"\n'
    config.write_text(before)
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "nsenter").write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/called\n')
    start = "from firstread.cli.main import main; main()"
    program = f"#!/bin/sh\nexec {sys.executable} -c '{start}' \"$@\"\n"
    (programs / "firstread").write_text(program)
    for path in programs.iterdir():
        path.chmod(0o755)
    for _ in range(2):
        done = subprocess.run(
            [*container["command"], script.replace("/host/etc/containerd", str(tmp_path))],
            env={"PATH": f"{programs}:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    made = tomllib.loads(config.read_text())
    assert "plugins" not in made  # the pod would need itself to be made again
    exports = {"root": "/var/lib/firstread/snapshotter"}
    plugin = {"type": "snapshot", "address": str(ADDRESS), "exports": exports}
    assert made["proxy_plugins"]["firstread"] == plugin
    called = (tmp_path / "called").read_text().splitlines()
    assert called == ["--target 1 --mount --uts --ipc --net -- systemctl restart containerd"]
    assert firstread("uninstall", "containerd", "--config", config).code == 0
    assert config.read_text() == before


def test_no_pod_of_ours_needs_the_snapshotter(daemonset: dict[str, Any]) -> None:
    """containerd makes the DaemonSet's pod with its own snapshotter, or never after a crash."""
    assert "runtimeClassName" not in pod_spec(daemonset)
    texts = [path.read_text() for path in FILES]
    assert [text for text in texts if re.search(r"install containerd.*--default", text)] == []
    handler = load(KUBERNETES / "examples/runtimeclass.yaml")["handler"]
    document = (TOP / "docs/kubernetes.md").read_text()
    blocks = re.findall(r"```toml\n([^`]*runtimes[^`]*)```", document)
    older, newer = (tomllib.loads(block)["plugins"] for block in blocks)
    cri = older["io.containerd.grpc.v1.cri"]["containerd"]
    assert cri["runtimes"][handler]["snapshotter"] == "firstread"
    runtimes = newer["io.containerd.cri.v1.runtime"]["containerd"]["runtimes"]
    platforms = newer["io.containerd.cri.v1.images"]["runtime_platforms"]
    assert runtimes[handler]["snapshotter"] == platforms[handler]["snapshotter"] == "firstread"


def test_services_of_the_host_start_before_containerd() -> None:
    """They may be what containerd uses for every pod: they need no pod."""
    for name in ("firstread.service", "firstread-snapshotter.service"):
        assert "\nBefore=containerd.service\n" in (TOP / "packaging" / name).read_text()


def test_the_example_pod_reads_what_the_daemon_mounts() -> None:
    pod = load(KUBERNETES / "examples/volume-pod.yaml")
    mount, app = containers(pod)
    place = {e["name"]: e["value"] for e in mount["env"]}["PLACE"]
    volumes = {volume["name"]: volume["hostPath"]["path"] for volume in pod["spec"]["volumes"]}
    assert volumes["model"] == place
    assert place.startswith(volumes["firstread"] + "/")
    (model,) = app["volumeMounts"]
    assert model["readOnly"] is True
    assert model["mountPropagation"] == "HostToContainer"


def test_the_example_that_converts_on_push() -> None:
    deployment = load(KUBERNETES / "examples/sync.yaml")
    service = load(KUBERNETES / "examples/sync-service.yaml")
    (container,) = containers(deployment)
    verb, form, pattern, *options = container["args"]
    assert (verb, form, str(parse_pattern(pattern))) == ("sync", "serve", pattern)
    known = {name for parameter in serve_command.params for name in parameter.opts}
    assert {option.partition("=")[0] for option in options} <= known
    (port,) = container["ports"]
    assert f"--listen=0.0.0.0:{port['containerPort']}" in options
    assert service["spec"]["ports"][0]["port"] == port["containerPort"]
    assert service["spec"]["ports"][0]["targetPort"] == port["name"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == labels == deployment["spec"]["selector"]["matchLabels"]
    # It needs no right on the node or in the cluster, and writes where it may.
    security = container["securityContext"]
    assert security["readOnlyRootFilesystem"] is True
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert pod_spec(deployment)["automountServiceAccountToken"] is False
    places = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {entry["value"] for entry in container["env"]} <= places
    (secret,) = [option for option in options if option.startswith("--secret-file=")]
    assert str(Path(secret.partition("=")[2]).parent) in places
    assert deployment["spec"]["replicas"] == 1


@pytest.mark.parametrize("name", ["dask-cluster", "convert-job", "convert-workflow"])
def test_workers_need_no_right(name: str) -> None:
    document = load(KUBERNETES / f"examples/{name}.yaml")
    (container,) = containers(document)
    security = container["securityContext"]
    assert security["runAsNonRoot"] is security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    environment = {each["name"]: each["value"] for each in container["env"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {"registry": environment["DOCKER_CONFIG"], "tmp": environment["TMPDIR"]}
    (secret,) = [v["secret"] for v in pod_spec(document)["volumes"] if "secret" in v]
    assert secret["items"] == [{"key": ".dockerconfigjson", "path": "config.json"}]


def test_the_scheduler_is_where_the_job_looks() -> None:
    """The operator calls the service of a DaskCluster ``NAME-scheduler``."""
    cluster = load(KUBERNETES / "examples/dask-cluster.yaml")
    (job,) = containers(load(KUBERNETES / "examples/convert-job.yaml"))
    service = cluster["spec"]["scheduler"]["service"]
    (port,) = [p["port"] for p in service["ports"] if p["name"] == "tcp-comm"]
    assert f"--engine=dask://{cluster['metadata']['name']}-scheduler:{port}" in job["args"]
    assert service["selector"]["dask.org/cluster-name"] == cluster["metadata"]["name"]
    known = {name for parameter in convert_command.params for name in parameter.opts}
    options = {arg.partition("=")[0] for arg in job["args"] if arg.startswith("-")}
    assert options <= known


def test_the_workflow_runs_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its three steps, with the shell of its container."""
    monkeypatch.setenv("FIRSTREAD_CACHE", str(tmp_path / "cache"))
    write_layout(Image([Layer([File("a", b"a" * 9999)]), Layer([File("b")])]), tmp_path / "in")
    programs = tmp_path / "bin"
    programs.mkdir()
    start = "from firstread.cli.main import main; main()"
    program = f"#!/bin/sh\nexec {sys.executable} -c '{start}' \"$@\"\n"
    (programs / "firstread").write_text(program)
    (programs / "firstread").chmod(0o755)
    workflow = load(KUBERNETES / "examples/convert-workflow.yaml")
    steps, template = workflow["spec"]["templates"]
    container = template["container"]
    places = {"SOURCE": f"oci:{tmp_path}/in:latest", "DESTINATION": f"oci:{tmp_path}/out:lazy"}

    def run(step: dict[str, Any], task: str) -> str:
        (command,) = [p["value"] for p in step["arguments"]["parameters"] if p["name"] == "command"]
        return subprocess.run(
            [*container["command"], command],
            env={**os.environ, **places, "TASK": task, "PATH": f"{programs}:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=True,
        ).stdout

    (tasks,), (layers,), (image,) = steps["steps"]
    assert layers["withParam"] == "{{steps.tasks.outputs.result}}"
    made = json.loads(run(tasks, ""))
    assert [json.loads(run(layers, json.dumps(task)))["size"] for task in made] > [1, 1]
    assert {each["how"] for each in json.loads(run(image, ""))["layers"]} == {"known"}


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize("name", ["base", "examples"])
def test_kustomize_puts_it_together(name: str) -> None:
    done = subprocess.run(
        ["kubectl", "kustomize", str(KUBERNETES / name)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    made = {document["kind"]: document for document in yaml.safe_load_all(done.stdout)}
    kinds = {"Namespace", "ServiceAccount", "ConfigMap", "DaemonSet"}
    assert set(made) == kinds | ({"RuntimeClass"} if name == "examples" else set())
    spec = pod_spec(made["DaemonSet"])
    images = {container["image"] for container in containers(made["DaemonSet"])}
    wanted = "registry.example/" + ("platform/" if name == "examples" else "")
    assert images == {f"{wanted}firstread-node:0.1.0"}
    named = {v["configMap"]["name"] for v in spec["volumes"] if "configMap" in v}
    assert named == {made["ConfigMap"]["metadata"]["name"]}
    assert len(spec.get("initContainers", [])) == (name == "examples")


def test_every_value_of_the_document_is_there() -> None:
    """The table of docs/kubernetes.md names files and what is in them."""
    rows = re.findall(
        r"^\| `([^`]+)` \| `([^`]+)` \|",
        (TOP / "docs/kubernetes.md").read_text(),
        re.MULTILINE,
    )
    assert len(rows) > 5
    for name, text in rows:
        assert text in (KUBERNETES / name).read_text(), (name, text)


def test_the_kubelet_is_told_of_the_socket_that_the_service_serves() -> None:
    document = load(KUBERNETES / "kubelet/90-firstread.conf")
    assert set(document) == {"apiVersion", "kind", "imageServiceEndpoint"}
    socket = document["imageServiceEndpoint"].removeprefix("unix://")
    unit = (TOP / "packaging/firstread-snapshotter.service").read_text()
    assert f"--image-service={socket}\n" in unit
