# SPDX-License-Identifier: Apache-2.0
"""The language of docs, docstrings, comments and test names: the worst patterns, no more.

docs/contributing.md states the rule. Only a reader can tell whether a sentence is good; this finds
openings and phrases that no engineer writes. Text in quotes or backticks is exempt.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]

OPENING = re.compile(
    r"(?:Who|Whoever|Whose|Whichever|Whatever|That which|Of (?:what|which|whom|such))\b"
    # A relative clause as subject ("What fails here is …"), not a question or a title.
    r"|What (?:is|are|was|were|has|have|had|can|cannot|may|must|fails?|goes|comes?)\b[^?:\n]*[.,;]"
)
PHRASE = re.compile(
    r"\b(?:gone on with|go(?:es)? on with it|such (?:go|goes) last|of which\.|of whom\."
    r"|is no (?:error|failure) of (?:that|this)|who(?:ever)? (?:wants|asks|waits) so"
    r"|made good|let fail|told so\.)",
    re.IGNORECASE,
)
TEST_NAME = re.compile(r"test_(?:who|whoever|whose|whatever|what_(?:is|was|are|has|cannot|can))_")
QUOTED = re.compile(r"```.*?```|``[^`]*``|`[^`\n]*`|\"[^\"\n]*\"|“[^”]*”", re.DOTALL)
SENTENCE = re.compile(r"(?:(?<=[.!?:] )|(?<=\n\n)|\A)(?=[A-Z])")


def faults(text: str) -> list[str]:
    """Return the openings and phrases of `text` that the rule forbids."""
    plain = QUOTED.sub("QUOTED", text)
    flat = re.sub(r"\n\n+", "\0", plain).replace("\n", " ").replace("\0", "\n\n")
    flat = re.sub(r" +", " ", flat)
    found = [
        flat[at.start() :][:60] for at in SENTENCE.finditer(flat) if OPENING.match(flat, at.end())
    ]
    return found + [match[0] for match in PHRASE.finditer(flat)]


def prose_of_page(text: str) -> str:
    """Return a page of Markdown without headings, with each cell and item as a paragraph."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    text = re.sub(r"^#+ .*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"^\|[-:| ]+\|$", "", text, flags=re.MULTILINE)
    text = re.sub(r"^ *(?:[*-]|\d+\.) ", "\n\n", text, flags=re.MULTILINE)
    return re.sub(r" \| |^\||\|$", "\n\n", text, flags=re.MULTILINE)


def prose_of_code(text: str) -> Iterator[str]:
    """Yield docstrings and comments, a block of comment lines as one."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""
    block: list[str] = []
    last = -1
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            if token.start[0] != last + 1:
                yield "\n".join(block)
                block = []
            block.append(token.string.lstrip("# "))
            last = token.start[0]
    yield "\n".join(block)


def names_of_tests(text: str) -> list[str]:
    return [name for name in re.findall(r"def (test_\w+)\(", text) if TEST_NAME.match(name)]


PAGES = [TOP / "README.md", TOP / "SECURITY.md", TOP / "CHANGELOG.md", TOP / "benchmarks/README.md"]
PAGES += sorted((TOP / "docs").rglob("*.md"))
CODE = [
    path
    for folder in ("src", "tests", "benchmarks", "tools")
    for path in sorted((TOP / folder).rglob("*.py"))
    if not path.stem.endswith("_pb2")
]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(TOP).as_posix())
def test_pages(path: Path) -> None:
    assert faults(prose_of_page(path.read_text())) == []


def test_docstrings_comments_and_test_names() -> None:
    assert len(CODE) > 100
    wrong = {}
    for path in CODE:
        text = path.read_text()
        found = [fault for part in prose_of_code(text) for fault in faults(part)]
        if path.name != Path(__file__).name:
            found += names_of_tests(text)
        if found:
            wrong[path.relative_to(TOP).as_posix()] = found
    assert wrong == {}


@pytest.mark.parametrize(
    "text",
    [
        "Who relies on it waits.",
        "It is late. Whoever asks waits.",
        "What is damaged is fetched again, and what is not stays.",
        "A sector is\ngone on with.",
        "Of what it has it says nothing.",
        "First.\n\nWhat cannot be fetched is an error.",
    ],
)
def test_translated_sentences_are_found(text: str) -> None:
    assert faults(text)


@pytest.mark.parametrize(
    "text",
    [
        "The fetcher verifies each frame.",
        "What is trusted\n\nWe trust the kernel.",
        "What happens when a part of it dies?",
        'It says "Who are you?" and waits.',
        "The sector `What is here is present.` is quoted.",
        "Readers that wait. A process whose reader is gone.",
    ],
)
def test_plain_sentences_pass(text: str) -> None:
    assert faults(text) == []


def test_translated_names_are_found() -> None:
    text = "def test_who_waits(): ...\ndef test_what_is_here(): ...\ndef test_a_reader_waits(): ..."
    assert names_of_tests(text) == ["test_who_waits", "test_what_is_here"]
