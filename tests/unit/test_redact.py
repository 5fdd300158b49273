# SPDX-License-Identifier: Apache-2.0
"""Secrets leave a text; everything else stays."""

from __future__ import annotations

import json
import logging

import pytest

from firstread.daemon.logs import MAX_TEXT, JsonFormatter
from firstread.redact import redact
from firstread.units import KiB

SECRET = "s3cr3t-Word"


@pytest.mark.parametrize(
    "text",
    [
        f"https://me:{SECRET}@r.example/v2/",
        f"http://{SECRET}@proxy.example:3128",
        f"GET https://store.example/b?X-Amz-Signature={SECRET}&a=b failed",
        f"Max retries exceeded with url: /v2/a/blobs/sha256:0?sig={SECRET} (Caused by x)",
        f"Authorization: Basic {SECRET}",
        f"you sent bearer {SECRET}",
        f"password={SECRET}",
        f"refresh_token={SECRET}&scope=x",
        json.dumps({"auths": {"r.example": {"auth": SECRET}}}),
        json.dumps({"password": SECRET, "username": "me"}),
        f"{{'identity_token': '{SECRET}'}}",
        f"client_secret={SECRET}",
        f"&id_token={SECRET}&",
        f"Credentials(passwd='{SECRET}')",
        json.dumps({"clientSecret": SECRET}),
        json.dumps({"password": f'a"{SECRET}'}),
        json.dumps({"password": f"a\\{SECRET}"}),
        json.dumps({"message": json.dumps({"token": SECRET})}),
        f'{{"auth": "{SECRET}',  # cut off
        f"https://me:p@{SECRET}@r.example/v2/",
        f"Authorization: {SECRET}",
        f"Proxy-Authorization: Basic {SECRET}",
        f"authorization: token {SECRET}",
        f"GET /container/docker/registry/v2/b?sv=1&sig={SECRET}",
    ],
)
def test_what_looks_like_a_secret_goes(text: str) -> None:
    assert SECRET not in redact(text)
    assert redact(redact(text)) == redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "registry r.example:5000 answers 401 Unauthorized: log in with docker login",
        'Bearer realm="https://r.example/token",service="r"',
        "cannot read blob sha256:" + "0" * 64,
        "https://r.example/v2/a/b/manifests/1",
        "/etc/containerd/certs.d/r.example/hosts.toml: unknown capability 'sing'",
        "design=1, tokens=3, authorization is needed, wrong password: log in",
        "is it /var/lib/firstread?",
        '"author": "me", "tokens": "3", docker://r.example/a@sha256:0',
    ],
)
def test_all_else_stays(text: str) -> None:
    assert redact(text) == text


def test_a_line_of_the_log_has_none() -> None:
    error = ValueError(f"cannot open https://me:{SECRET}@r.example/")
    record = logging.LogRecord(
        "a", logging.ERROR, "f", 1, "failed: %s", (error,), (ValueError, error, None)
    )
    record.fields = {"error": str(error), "cause": error, "count": 3}
    line = JsonFormatter().format(record)
    assert SECRET not in line
    assert json.loads(line)["count"] == 3


def test_a_line_of_the_log_is_bounded() -> None:
    error = ValueError(f"x{'a.' * 100_000}password={SECRET}{'b' * 100_000}last")
    record = logging.LogRecord(
        "a", logging.ERROR, "f", 1, "%s", (error,), (type(error), error, None)
    )
    record.fields = {"error": str(error), "cause": error}
    line = JsonFormatter().format(record)
    assert len(line) < 40 * KiB
    document = json.loads(line)
    assert document["message"].startswith("xa.a.")
    assert all(document[name].endswith("last") for name in ("message", "error", "exception"))


@pytest.mark.parametrize("margin", range(len(f"https://me:{SECRET}@r.example/")))
def test_a_cut_line_leaves_no_part_of_a_secret(margin: int) -> None:
    text = "x" * (MAX_TEXT // 2 - margin) + f" https://me:{SECRET}@r.example/" + "y" * 2 * MAX_TEXT
    record = logging.LogRecord("a", logging.ERROR, "f", 1, text, None, None)
    assert SECRET[:3] not in JsonFormatter().format(record)
