# SPDX-License-Identifier: Apache-2.0
"""A command that has more than one form: its first word may choose another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click


class Forms(click.Command):
    """Leaves the command to another form if its first word is that one's.

    Args:
        forms: by their words. An option is a word that the form gets, too.
    """

    def __init__(self, *arguments: Any, forms: Mapping[str, click.Command], **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._forms = forms

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        word = args[0] if args else ""
        is_option = word.startswith("--")
        form = self._forms.get(word.partition("=")[0] if is_option else word)
        if form is None:
            return super().make_context(info_name, args, parent, **extra)
        if is_option:
            return form.make_context(info_name, args, parent, **extra)
        return form.make_context(f"{info_name} {word}", args[1:], parent, **extra)
