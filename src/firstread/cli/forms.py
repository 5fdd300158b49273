# SPDX-License-Identifier: Apache-2.0
"""A command that has more than one form: its first word may choose another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click


class Forms(click.Command):
    """Leaves the command to another form if its first word is that one's.

    Args:
        forms: by their words.
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
        form = self._forms.get(args[0]) if args else None
        if form is not None:
            return form.make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)
