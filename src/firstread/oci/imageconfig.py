# SPDX-License-Identifier: Apache-2.0
"""The fields of an image's config that programs in Go know: names and types, no values.

`firstread.oci.gojson` finds them by these, whatever their case. A config itself stays a dict, so
that other fields survive. Every field can be null or missing.

Sources: image-spec v1.1, config.md; docker's image.V1Image and container.Config.
"""

from __future__ import annotations

from typing import Any

import msgspec


class HealthFields(msgspec.Struct, rename="pascal"):
    """Of ``config.Healthcheck``; times are nanoseconds."""

    test: list[str] | None = None
    interval: int | None = None
    timeout: int | None = None
    start_period: int | None = None
    start_interval: int | None = None
    retries: int | None = None


class RunFields(msgspec.Struct, rename="pascal"):
    """Of ``config``: how to run the image."""

    hostname: str | None = None
    domainname: str | None = None
    user: str | None = None
    attach_stdin: bool | None = None
    attach_stdout: bool | None = None
    attach_stderr: bool | None = None
    exposed_ports: dict[str, Any] | None = None
    tty: bool | None = None
    open_stdin: bool | None = None
    stdin_once: bool | None = None
    env: list[str] | None = None
    cmd: list[str] | None = None
    healthcheck: HealthFields | None = None
    args_escaped: bool | None = None
    image: str | None = None
    volumes: dict[str, Any] | None = None
    working_dir: str | None = None
    entrypoint: list[str] | None = None
    network_disabled: bool | None = None
    mac_address: str | None = None
    on_build: list[str] | None = None
    labels: dict[str, str] | None = None
    stop_signal: str | None = None
    stop_timeout: int | None = None
    shell: list[str] | None = None
    memory: int | None = None
    memory_swap: int | None = None
    cpu_shares: int | None = None


class RootFsFields(msgspec.Struct):
    """Of ``rootfs``."""

    type: str | None = None
    diff_ids: list[str] | None = None


class StepFields(msgspec.Struct):
    """Of an entry of ``history``."""

    created: str | None = None
    created_by: str | None = None
    author: str | None = None
    comment: str | None = None
    empty_layer: bool | None = None


class ConfigFields(msgspec.Struct):
    """Of the whole document."""

    id: str | None = None
    parent: str | None = None
    comment: str | None = None
    created: str | None = None
    author: str | None = None
    architecture: str | None = None
    variant: str | None = None
    os: str | None = None
    os_version: str | None = msgspec.field(name="os.version", default=None)
    os_features: list[str] | None = msgspec.field(name="os.features", default=None)
    container: str | None = None
    container_config: RunFields | None = None
    docker_version: str | None = None
    config: RunFields | None = None
    rootfs: RootFsFields | None = None
    history: list[StepFields] | None = None
