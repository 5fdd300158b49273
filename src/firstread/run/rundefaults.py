# SPDX-License-Identifier: Apache-2.0
"""An image's defaults for running it: the ``config`` object of an OCI image configuration.

Owns the check of that untrusted JSON. Pure. Invariant: every string can be an argument of
execve(2).

Source: OCI image specification 1.1, config.md, "Properties".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from firstread.errors import ImageError, UsageError
from firstread.oci import gojson
from firstread.oci.imageconfig import ConfigFields
from firstread.run.document import to_json
from firstread.run.parse import check_destination, parse_signal

DEFAULT_STOP_SIGNAL = "SIGTERM"


class ImageConfig(msgspec.Struct, frozen=True, rename="pascal"):
    """Defaults of the container; Go's encoders write null for empty values.

    `firstread.oci.imageconfig` has the names of all fields, for code that only passes them on.
    """

    env: list[str] | None = None
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    working_dir: str | None = None
    user: str | None = None
    volumes: dict[str, Any] | None = None
    stop_signal: str | None = None
    labels: dict[str, str] | None = None

    @property
    def stop_signal_number(self) -> int:
        """Number of the signal that ``stop`` sends first."""
        return parse_signal(self.stop_signal or DEFAULT_STOP_SIGNAL)


def parse_image_config(document: Mapping[str, object]) -> ImageConfig:
    """Return the run defaults of an OCI image configuration.

    Args:
        document: the whole configuration, decoded.

    Raises:
        ImageError: a property has the wrong type or an unusable value.
    """
    try:
        found = gojson.normal(document, ConfigFields).get("config")
        config = gojson.convert({} if found is None else found, ImageConfig)
    except msgspec.ValidationError as exc:
        raise ImageError(f"invalid image configuration: {exc}") from exc
    _refuse_nul(config)
    try:
        for volume in config.volumes or {}:
            check_destination(volume, "Volumes")
        parse_signal(config.stop_signal or DEFAULT_STOP_SIGNAL)
        to_json(config)
    except UsageError as exc:
        raise ImageError(f"invalid image configuration: {exc.message}") from exc
    return config


def _refuse_nul(config: ImageConfig) -> None:
    lists: Iterable[list[str] | None] = (config.env, config.entrypoint, config.cmd)
    texts = [text for texts in lists for text in texts or ()]
    texts += [config.working_dir or "", config.user or "", *(config.volumes or {})]
    if any("\0" in text for text in texts):
        raise ImageError("invalid image configuration: a value contains a NUL byte")
