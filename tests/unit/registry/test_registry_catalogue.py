# SPDX-License-Identifier: Apache-2.0
"""Lists of repositories and tags: pages, bounds, registries without a catalogue."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from urllib.parse import parse_qs, urlsplit

import pytest

from firstread.errors import (
    AuthError,
    FirstreadError,
    LimitError,
    NotFoundError,
    SourceError,
)
from firstread.oci.reference import Reference
from firstread.registry import catalogue
from firstread.registry.catalogue import list_repositories, list_tags
from firstread.registry.options import AccessOptions
from firstread.testing.httpfaults import plain, send
from firstread.testing.serving import QuietHandler, QuietServer, serving

FAST = AccessOptions(retries=0)
Answer = tuple[int, dict[str, str], bytes]


class ListServer(QuietServer):
    """Answers as a function of path and query says; `seen` has the targets and their header."""

    def __init__(self, answer: Callable[[str, dict[str, list[str]]], Answer]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = answer
        self.seen: list[tuple[str, str | None]] = []

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


class Handler(QuietHandler):
    server: ListServer

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        self.server.seen.append((self.path, self.headers.get("Authorization")))
        status, headers, data = self.server.answer(parts.path, parse_qs(parts.query))
        send(self, plain(status, headers, data))


def listing(
    answer: Callable[[str, dict[str, list[str]]], Answer],
) -> AbstractContextManager[ListServer]:
    return serving(ListServer(answer))


def pages(key: str, *lists: list[str]) -> Callable[[str, dict[str, list[str]]], Answer]:
    """Return a server of one list, a page for each of `lists`."""

    def answer(path: str, query: dict[str, list[str]]) -> Answer:
        at = int(query.get("last", ["0"])[0])
        more = {"Link": f'<{path}?n=1000&last={at + 1}>; rel="next"'} if at + 1 < len(lists) else {}
        return 200, more, json.dumps({key: lists[at]}).encode()

    return answer


def test_all_pages() -> None:
    with listing(pages("repositories", ["a", "b/c"], [], ["d"])) as server:
        assert list_repositories(server.host, FAST) == ["a", "b/c", "d"]
        assert server.seen[0][0] == "/v2/_catalog?n=1000"
    with listing(pages("tags", ["1"], ["2"])) as server:
        assert list_tags(Reference("docker", server.host, "a/b", ""), FAST) == ["1", "2"]
        assert server.seen[0][0] == "/v2/a/b/tags/list?n=1000"


def test_names_that_no_reference_can_have_are_left_out() -> None:
    with listing(pages("repositories", ["a", "../b", "A", "", "a:b", "a@b", "x" * 400])) as server:
        assert list_repositories(server.host, FAST) == ["a"]
    with listing(pages("tags", ["1", "a b", "", "x" * 200, "1@sha256:0"])) as server:
        assert list_tags(Reference("docker", server.host, "a", ""), FAST) == ["1"]


def test_no_tags_at_all() -> None:
    with listing(lambda path, query: (200, {}, b'{"name":"a","tags":null}')) as server:
        assert list_tags(Reference("docker", server.host, "a", ""), FAST) == []
    with (
        listing(lambda path, query: (404, {}, b"")) as server,
        pytest.raises(NotFoundError, match="there is no repository"),
    ):
        list_tags(Reference("docker", server.host, "a", ""), FAST)


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (404, b"", SourceError),
        (405, b"", SourceError),
        (501, b"", SourceError),
        (403, b"", AuthError),
        (200, b"<html>", SourceError),
        (200, b'{"repositories":{}}', SourceError),
    ],
)
def test_a_registry_without_a_catalogue(
    status: int, body: bytes, error: type[FirstreadError]
) -> None:
    with (
        listing(lambda path, query: (status, {}, body)) as server,
        pytest.raises(SourceError) as caught,
    ):
        list_repositories(server.host, FAST)
    assert type(caught.value) is error
    assert f"cannot list the repositories of {server.host}" in str(caught.value)
    assert f"{server.host}/team/app:v*" in (caught.value.hint or "")


def test_a_list_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "MAX_PAGES", 20)

    def again(path: str, query: dict[str, list[str]]) -> Answer:
        return 200, {"Link": f'<{path}?last=a>; rel="next"'}, b'{"tags":[]}'

    with listing(again) as server, pytest.raises(LimitError, match="no end"):
        list_tags(Reference("docker", server.host, "a", ""), FAST)
    assert len(server.seen) == 20


def test_a_list_of_too_many_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "MAX_NAMES", 3)
    with (
        listing(pages("tags", ["1", "2"], ["3", "4"], ["5"])) as server,
        pytest.raises(LimitError, match="more than 3 names"),
    ):
        list_tags(Reference("docker", server.host, "a", ""), FAST)


def test_the_rest_of_a_list_of_tags_stays_on_its_host() -> None:
    elsewhere = {"Link": '<http://127.0.0.2/v2/a/tags/list>; rel="next"'}
    with (
        listing(lambda path, query: (200, elsewhere, b'{"tags":[]}')) as server,
        pytest.raises(SourceError, match="another host"),
    ):
        list_tags(Reference("docker", server.host, "a", ""), FAST)


def test_the_right_to_the_catalogue_is_asked_for() -> None:
    """It is a scope of its own: that of a repository does not do."""

    def answer(path: str, query: dict[str, list[str]]) -> Answer:
        if path == "/token":
            assert query["scope"] == ["registry:catalog:*"]
            return 200, {}, b'{"token":"given"}'
        if server.seen[-1][1] == "Bearer given":
            return 200, {}, b'{"repositories":["a"]}'
        return 401, {"WWW-Authenticate": f'Bearer realm="http://{server.host}/token"'}, b""

    with listing(answer) as server:
        assert list_repositories(server.host, FAST) == ["a"]
