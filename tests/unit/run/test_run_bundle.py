# SPDX-License-Identifier: Apache-2.0
"""The runtime specification: docker's defaults, and how the image and the flags combine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from firstread.errors import ImageError, UsageError
from firstread.run import capabilities
from firstread.run.bundle import Site, environment, process_args, runtime_spec
from firstread.run.devices import Device
from firstread.run.execute import ExecOptions, exec_process
from firstread.run.options import RunOptions
from firstread.run.parse import Mount, Rlimit
from firstread.run.rundefaults import ImageConfig, parse_image_config
from firstread.run.users import User

IMAGE = ImageConfig(
    env=["PATH=/bin", "FROM=image", "broken"],
    entrypoint=["/entry"],
    cmd=["default"],
    working_dir="/work",
)
APP = User(1000, 1001, (1001, 50), "/home/app")


def spec(site: Mapping[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    values = {"container_id": "c1", "rootfs": "/r", "user": User(), "hostname": "h"}
    granted = {"capabilities": sorted(capabilities.DEFAULT)}
    made = runtime_spec(
        IMAGE, RunOptions(image="ref", **options), Site(**{**values, **granted, **(site or {})})
    )
    assert json.loads(json.dumps(made)) == made
    return made


def destinations(made: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {mount["destination"]: mount for mount in made["mounts"]}


@pytest.mark.parametrize(
    ("entrypoint", "command", "expected"),
    [
        (None, (), ["/entry", "default"]),
        (None, ("a", "b"), ["/entry", "a", "b"]),
        (("/mine",), (), ["/mine"]),
        (("/mine",), ("a",), ["/mine", "a"]),
        ((), ("a",), ["a"]),
    ],
)
def test_command_line(
    entrypoint: tuple[str, ...] | None, command: tuple[str, ...], expected: list[str]
) -> None:
    assert process_args(IMAGE, RunOptions(entrypoint=entrypoint, command=command)) == expected


def test_no_command() -> None:
    with pytest.raises(UsageError, match="no command specified"):
        process_args(ImageConfig(), RunOptions())
    with pytest.raises(UsageError, match="no command specified"):
        process_args(IMAGE, RunOptions(entrypoint=()))


def test_environment() -> None:
    options = RunOptions(tty=True, env={"FROM": "flag", "NEW": "", "HOSTNAME": None})
    assert environment(IMAGE, options, hostname="h", home="/root") == {
        "PATH": "/bin",
        "TERM": "xterm",
        "FROM": "flag",
        "NEW": "",
        "HOME": "/root",
    }
    plain = environment(ImageConfig(), RunOptions(), hostname="h", home="/")
    assert plain["PATH"].startswith("/usr/local/sbin:")
    assert "TERM" not in plain


def test_process() -> None:
    limits = (Rlimit("RLIMIT_NOFILE", 10, 20), Rlimit("RLIMIT_CORE", -1, -1))
    process = spec({"user": APP}, rlimits=limits)["process"]
    assert process["user"] == {"uid": 1000, "gid": 1001, "additionalGids": [1001, 50]}
    assert process["cwd"] == "/work"
    assert process["rlimits"][0] == {"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20}
    assert process["rlimits"][1]["hard"] == 2**64 - 1
    assert set(process["capabilities"]) == {"bounding"}
    assert spec()["process"]["capabilities"]["effective"] == sorted(capabilities.DEFAULT)
    assert not process["noNewPrivileges"]
    assert spec(workdir="/else")["process"]["cwd"] == "/else"


def test_default_mounts() -> None:
    mounts = destinations(spec())
    assert list(mounts) == [
        *("/proc", "/dev", "/sys", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys/fs/cgroup"),
    ]
    assert "ro" in mounts["/sys"]["options"]
    assert "size=65536k" in mounts["/dev/shm"]["options"]


def test_mounts_of_the_user_win_and_parents_come_first() -> None:
    own = (
        Mount("/data/sub/", "bind", "/a"),
        Mount("/data", "bind", "/b"),
        Mount("/dev/shm", "tmpfs", "tmpfs", ("size=1g",)),
        Mount("/etc/hosts", "bind", "/c"),
    )
    mounts = destinations(spec({"mounts": [Mount("/etc/hosts", "bind", "/d")]}, mounts=own))
    order = list(mounts)
    assert order.index("/data") < order.index("/data/sub")
    assert mounts["/dev/shm"]["options"] == ["size=1g"]
    assert mounts["/etc/hosts"]["source"] == "/c"


def test_namespaces() -> None:
    kinds = [entry["type"] for entry in spec()["linux"]["namespaces"]]
    assert kinds == ["pid", "ipc", "uts", "mount", "cgroup"]
    assert {"type": "network"} in spec(network="none")["linux"]["namespaces"]


def test_limits() -> None:
    options: dict[str, Any] = {"memory_bytes": 1 << 26, "cpus": 1.5, "pids_limit": 9}
    resources = spec(**options)["linux"]["resources"]
    assert resources["memory"] == {"limit": 1 << 26, "swap": 1 << 27}
    assert resources["cpu"] == {"period": 100000, "quota": 150000}
    assert resources["pids"] == {"limit": 9}
    assert spec({"swap_limit": False}, **options)["linux"]["resources"]["memory"] == {
        "limit": 1 << 26
    }
    assert set(spec({"controllers": ()}, **options)["linux"]["resources"]) == {"devices"}


def test_devices() -> None:
    fuse = Device("/dev/fuse", "c", 10, 229, 0o666, 0, 0, "rw")
    linux = spec({"devices": [fuse]})["linux"]
    assert linux["devices"][0]["path"] == "/dev/fuse"
    rules = linux["resources"]["devices"]
    assert rules[0] == {"allow": False, "access": "rwm"}
    assert rules[-1] == {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rw"}


def test_privileged_hides_and_filters_nothing() -> None:
    linux = spec(privileged=True)["linux"]
    assert not {"seccomp", "maskedPaths", "readonlyPaths"} & set(linux)
    assert linux["resources"]["devices"] == [{"allow": True, "access": "rwm"}]
    assert "rw" in destinations(spec(privileged=True))["/sys"]["options"]


def test_seccomp_follows_the_capabilities() -> None:
    def refused(granted: list[str]) -> set[str]:
        rules = spec({"capabilities": granted})["linux"]["seccomp"]["syscalls"]
        return {
            name
            for rule in rules
            if "args" not in rule and rule["action"] == "SCMP_ACT_ERRNO"
            for name in rule["names"]
        }

    plain, admin = refused([]), refused(["CAP_SYS_ADMIN"])
    assert {"mount", "unshare", "bpf", "keyctl", "reboot"} <= plain
    assert {"keyctl", "reboot"} <= admin
    assert not {"mount", "unshare", "bpf"} & admin
    assert "seccomp" not in spec(seccomp=False)["linux"]


def test_seccomp_covers_what_the_processor_can_run() -> None:
    made = spec({"machine": "x86_64"})["linux"]["seccomp"]
    assert made["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
    assert "architectures" not in spec({"machine": "riscv64"})["linux"]["seccomp"]


ALL = frozenset(capabilities.NAMES)


@pytest.mark.parametrize(
    ("add", "drop", "expected"),
    [
        ((), (), capabilities.DEFAULT),
        (("CAP_NET_ADMIN",), (), capabilities.DEFAULT | {"CAP_NET_ADMIN"}),
        ((), ("CAP_KILL",), capabilities.DEFAULT - {"CAP_KILL"}),
        (("ALL",), ("CAP_KILL",), ALL - {"CAP_KILL"}),
        (("CAP_KILL",), ("ALL",), {"CAP_KILL"}),
        ((), ("ALL",), set()),
    ],
)
def test_capabilities(add: tuple[str, ...], drop: tuple[str, ...], expected: set[str]) -> None:
    granted = capabilities.granted(add, drop, privileged=False, available=ALL)
    assert set(granted) == expected


def test_capabilities_that_the_host_cannot_give() -> None:
    some = ALL - {"CAP_SYS_TIME"}
    assert set(capabilities.granted((), (), privileged=True, available=some)) == some
    assert set(capabilities.granted(("ALL",), (), privileged=False, available=some)) == some
    with pytest.raises(UsageError, match="not available in this environment: CAP_SYS_TIME"):
        capabilities.granted(("CAP_SYS_TIME",), (), privileged=False, available=some)


def test_image_configuration() -> None:
    config = parse_image_config(
        {"config": {"Env": None, "Cmd": ["x"], "Volumes": {"/v": {}}, "Unknown": 1}}
    )
    assert (config.env, config.cmd, list(config.volumes or ())) == (None, ["x"], ["/v"])
    assert config.stop_signal_number == 15
    assert parse_image_config({"config": {"StopSignal": "SIGQUIT"}}).stop_signal_number == 3
    assert parse_image_config({}) == parse_image_config({"config": None}) == ImageConfig()
    odd = {"CONFIG": {"cmd": ["x", None], "ENV": None, "labels": {"a": None}, "stopsignal": "9"}}
    assert parse_image_config(odd) == ImageConfig(cmd=["x", ""], labels={"a": ""}, stop_signal="9")


@pytest.mark.parametrize(
    "config",
    [
        {"Env": "PATH=/bin"},
        {"Cmd": [1]},
        {"Entrypoint": ["a\0b"]},
        {"Volumes": {"relative": {}}},
        {"Volumes": {"/": {}}},
        {"Volumes": {"/x/../../y": {}}},
        {"StopSignal": "SIGNONE"},
        ["not", "an", "object"],
        [],
        0,
        {"Labels": {"a": "\ud800"}},
    ],
)
def test_image_configuration_refused(config: object) -> None:
    with pytest.raises(ImageError, match="invalid image configuration"):
        parse_image_config({"config": config})


def test_a_process_of_exec_has_what_the_first_has(tmp_path: Path) -> None:
    first = spec(env={"A": "1", "B": "2"}, no_new_privileges=True)["process"]
    made = exec_process(first, ExecOptions(command=("ls",), env={"A": None, "C": "3"}), tmp_path)
    changed = {name for name in made if made[name] != first[name]}
    assert changed == {"args", "env"}
    assert made["args"] == ["ls"]
    variables = dict(setting.split("=", 1) for setting in made["env"])
    assert {name: variables.get(name) for name in "ABC"} == {"A": None, "B": "2", "C": "3"}


def test_another_user_of_exec_has_its_own_rights_and_home(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("root:x:0:0::/root:\napp:x:1000:1001::/home/app:\n")

    def variables(process: dict[str, Any]) -> dict[str, str]:
        return dict(setting.split("=", 1) for setting in process["env"])

    first = spec({"user": User(home="/root")})["process"]
    made = exec_process(first, ExecOptions(command=("id",), user="app", tty=True), tmp_path)
    assert made["user"] == {"uid": 1000, "gid": 1001, "additionalGids": [1001]}
    assert set(made["capabilities"]) == {"bounding"}
    assert variables(made)["HOME"] == "/home/app"
    assert (made["terminal"], variables(made)["TERM"]) == (True, "xterm")
    back = exec_process(made, ExecOptions(command=("id",), user="0"), tmp_path)
    assert back["capabilities"] == first["capabilities"]
    chosen = spec({"user": User(home="/root")}, env={"HOME": "/else"})["process"]
    made = exec_process(chosen, ExecOptions(command=("id",), user="app"), tmp_path)
    assert variables(made)["HOME"] == "/else"


def test_an_ordinary_user_gets_what_the_kernel_gives_it() -> None:
    """It owns neither the host's network, and so sysfs, nor control groups, nor the group tty."""
    made = spec({"ordinary": True, "controllers": frozenset(), "terminal_group": False})
    mounts = destinations(made)
    assert (mounts["/sys"]["type"], mounts["/sys"]["source"]) == ("bind", "/sys")
    assert {"rbind", "ro", "nosuid", "nodev", "noexec"} == set(mounts["/sys"]["options"])
    assert "mode=0620" in mounts["/dev/pts"]["options"]
    assert not [option for option in mounts["/dev/pts"]["options"] if option.startswith("gid=")]
    assert "cgroupsPath" not in made["linux"]
    alone = destinations(spec({"ordinary": True}, network="none", privileged=True))
    assert (alone["/sys"]["type"], alone["/sys"]["options"][-1]) == ("sysfs", "ro")
    roots = spec(privileged=True)
    assert destinations(roots)["/sys"]["options"][-1] == "rw"
    assert "gid=5" in destinations(roots)["/dev/pts"]["options"]
    assert roots["linux"]["cgroupsPath"] == "/firstread/c1"
