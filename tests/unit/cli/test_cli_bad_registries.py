# SPDX-License-Identifier: Apache-2.0
"""Registries that refuse or break off: the user's message, and the leftovers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from firstread.testing.command import firstread
from firstread.testing.features import content
from firstread.testing.images import File, Image, Layer, digest_of, manifest_type, write_layout
from firstread.testing.scripted import ScriptedRegistry

IMAGE = Image([Layer([File("a", b"a")]), Layer([File("b", content("b", 300_000))])])
LAYER = digest_of(IMAGE.layers[1].blob)

SAID = "SCRIPTED: as the script says"
LOGIN = "log in with docker login, podman login or skopeo login, or name --authfile"
WRONG_LOGIN = f"check the name, and {LOGIN}"
NOT_ALLOWED = f"check that this account may do this, or {LOGIN}"
WRONG_NAME = "check the name; a private image may need a login"
BUSY = "the registry limits requests: wait, or log in for a higher limit"
LATER = "it may work later: try again"


@dataclass(frozen=True)
class Case:
    """A fault, and its message.

    Args:
        script: as `ScriptedRegistry` reads it; `LAYER` is the second layer.
        message: ``{host}`` stands for the registry, ``{blob}`` for the uploaded blob.
        layer: the message, or its prefix, names the second layer.
    """

    script: str
    error: str
    message: str
    hint: str
    layer: bool = False
    code: int = 4


def refusals(request: str, what: str, *, layer: bool = False) -> dict[str, Case]:
    """Return cases for all answers of a registry to `request`."""
    answers = (
        (401, "Unauthorized", "AuthError", WRONG_LOGIN),
        (403, "Forbidden", "AuthError", NOT_ALLOWED),
        (404, "Not Found", "NotFoundError", WRONG_NAME),
        (429, "Too Many Requests", "TransportError", BUSY),
        (500, "Internal Server Error", "TransportError", LATER),
    )
    return {
        f"{status}": Case(
            f"{request} status {status} x99",
            error,
            f"{what}: registry {{host}} answers {status} {phrase}: {SAID}",
            hint,
            layer,
        )
        for status, phrase, error, hint in answers
    }


READING = {
    **{
        f"manifest: {name}": case
        for name, case in refusals("GET /manifests/", "cannot read manifest latest").items()
    },
    **{
        f"layer: {name}": case
        for name, case in refusals(
            f"GET /blobs/{LAYER}", f"cannot read blob {LAYER}", layer=True
        ).items()
        if "404" not in name
    },
    "layer: 404": Case(
        f"GET /blobs/{LAYER} status 404 x99",
        "NotFoundError",
        f"blob {LAYER} is missing",
        "the image is incomplete: push it again",
        layer=True,
    ),
    "layer: hangs up": Case(
        f"GET /blobs/{LAYER} hangup 1000 x99",
        "TransportError",
        "registry {host}: it hung up",
        LATER,
        layer=True,
    ),
    "layer: other bytes": Case(
        f"GET /blobs/{LAYER} flip 1000 x99",
        "DigestError",
        f"the bytes of blob {LAYER} do not have this digest",
        "the image is damaged: push it again",
        layer=True,
        code=3,
    ),
    "a page for browsers": Case(
        "GET /manifests/ body '<html>log in</html>' x99",
        "ImageError",
        "manifest latest is not valid: JSON is malformed: invalid character (byte 0)",
        "the image is damaged: build or push it again",
        code=3,
    ),
}
WRITING = {
    **{
        f"blob: {name}": case
        for name, case in refusals("POST /uploads/", "cannot send blob {blob}", layer=True).items()
    },
    **{
        f"manifest: {name}": case
        for name, case in refusals("PUT /manifests/", "cannot publish the manifest").items()
    },
    "blob: read-only registry": Case(
        "POST /uploads/ status 405 x99",
        "SourceError",
        f"cannot send blob {{blob}}: registry {{host}} answers 405 Method Not Allowed: {SAID}",
        "the registry does not take this: it may be read-only",
        layer=True,
    ),
    "blob: hangs up": Case(
        "PATCH /uploads/ hangup 1000 x99", "TransportError", "registry {host}: it hung up", LATER,
        layer=True,
    ),
}  # fmt: skip


def serve(script: str = "", *, auth: str = "") -> ScriptedRegistry:
    """Return a registry that has the image as ``app:latest``."""
    registry = ScriptedRegistry(script, auth=auth)
    registry.manifests["latest"] = (manifest_type(), IMAGE.manifest())
    for data in IMAGE.blobs():
        registry.add_blob(data)
    return registry


def check(case: Case, image: str, names: dict[str, str], *arguments: str) -> None:
    """Run the command twice and check its whole output."""
    message = case.message.format_map(names)
    layer = LAYER if case.layer else None
    prefix = f"layer {LAYER}: " if case.layer and LAYER not in message else ""

    ran = firstread("convert", *arguments, "--jobs", "1", "--no-cache", "--retries", "0")
    assert ran.stderr == f"firstread: {image}: {prefix}{message}\n  {case.hint}\n"
    assert (ran.code, ran.stdout) == (case.code, "")

    ran = firstread("convert", *arguments, "--jobs=1", "--no-cache", "--retries=0", "--json")
    assert ran.json == {
        "error": case.error,
        "message": message,
        "hint": case.hint,
        "image": image,
        "layer": layer,
        "exit_code": case.code,
        "retryable": case.error == "TransportError",
    }
    assert (ran.code, ran.stderr) == (case.code, "")


@pytest.mark.parametrize("case", READING.values(), ids=READING.keys())
def test_a_source_that_fails(case: Case) -> None:
    with serve(case.script) as registry:
        source = f"docker://{registry.host}/app:latest"
        check(case, source, {"host": registry.host}, source, "oci:out:latest")
    assert not Path("out/index.json").exists()


@pytest.mark.parametrize("case", WRITING.values(), ids=WRITING.keys())
def test_a_destination_that_fails(case: Case) -> None:
    write_layout(IMAGE, "in")
    firstread("convert", "oci:in:latest", "oci:elsewhere:latest")
    blobs = firstread("inspect", "oci:elsewhere:latest", "--json").json["blobs"]
    with serve(case.script) as registry:
        destination = f"docker://{registry.host}/lazy:1"
        names = {"host": registry.host, "blob": blobs[1]["digest"]}
        check(case, destination, names, "oci:in:latest", destination)
        assert list(registry.manifests) == ["latest"], "there is a tag"


def test_short_failures_are_survived() -> None:
    """Downloads and uploads resume where they broke off."""
    script = f"""
        GET   /manifests/     status 429 Retry-After=0
        GET   /blobs/{LAYER}  hangup 1000
        GET   /blobs/{LAYER}  status 503
        POST  /uploads/       status 500
        PATCH /uploads/       hangup 5000
    """
    with serve(script) as registry:
        ran = firstread("convert", f"{registry.host}/app", f"{registry.host}/lazy:1")
        assert (ran.code, ran.stderr, registry.unused()) == (0, "", [])
        checked = firstread("verify", f"{registry.host}/lazy:1", "--source", f"{registry.host}/app")
        assert checked.code == 0, checked


def test_a_registry_that_wants_a_login() -> None:
    with serve(auth="basic") as registry:
        ran = firstread("inspect", f"{registry.host}/app")
        assert (ran.code, ran.stdout) == (4, "")
        assert ran.stderr == (
            f"firstread: docker://{registry.host}/app:latest: cannot read manifest latest: registry"
            f" {registry.host} answers 401 Unauthorized: UNAUTHORIZED: log in\n  {WRONG_LOGIN}\n"
        )
        config = Path("auth.json")
        config.write_text(f'{{"auths": {{"{registry.host}": {{"auth": "{LOGGED_IN}"}}}}}}')
        ran = firstread("convert", f"{registry.host}/app", "oci:out:1", "--authfile", config)
        assert (ran.code, ran.stderr) == (0, "")


LOGGED_IN = "dGVzdGVyOm9wZW4gc2VzYW1l"  # base64 of the tester's name and password


def test_an_unreachable_registry() -> None:
    with serve() as registry:
        host = registry.host
    ran = firstread("convert", f"{host}/app", "oci:out:1", "--retries", "0")
    assert (ran.code, ran.stdout) == (4, "")
    assert ran.stderr == (
        f"firstread: docker://{host}/app:latest: registry {host}: it cannot be reached\n"
        "  check the name of the registry and the network\n"
    )
    assert not Path("out").exists()
