# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.images NAME…``: build images, check them, list them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.images.build import build, default_cache, is_current, read_layers
from benchmarks.images.check import check
from benchmarks.images.recipes import IMAGES, LARGE_IMAGES, RECIPES
from firstread.errors import FirstreadError

MB = 1_000_000


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.images", description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"all, for {', '.join(IMAGES)}; or any of these, {', '.join(LARGE_IMAGES)}",
    )
    parser.add_argument("--dir", type=Path, default=default_cache(), help="where the layouts lie")
    parser.add_argument("--check", action="store_true", help="also run each until it is ready")
    parser.add_argument("--table", action="store_true", help="print what the cache holds")
    options = parser.parse_args()
    names = list(IMAGES) if options.names == ["all"] else options.names
    if not names and not options.table:
        parser.error("name an image")
    try:
        for name, layout in zip(names, build(names, options.dir), strict=True):
            print(layout)
            if options.check:
                print(f"{name}: ready after {check(layout, RECIPES[name].ready):.1f} s")
    except KeyboardInterrupt:
        return 130
    except FirstreadError as exc:
        print(f"error: {exc}" + (f" ({exc.hint})" if exc.hint else ""), file=sys.stderr)
        return exc.exit_code
    if options.table:
        print_table(options.dir)
    return 0


def print_table(cache: Path) -> None:
    """Print the images in `cache` as a Markdown table; sizes in 10^6 bytes."""
    print("| image | layers | files | tar MB | gzip MB | purpose |")
    print("|---|--:|--:|--:|--:|---|")
    for name, recipe in RECIPES.items():
        if is_current(cache, name):
            layers = read_layers(cache, name)
            files = sum(layer.files for layer in layers)
            tar = sum(layer.tar_size for layer in layers) / MB
            gzip = sum(layer.size for layer in layers) / MB
            print(
                f"| `{name}` | {len(layers)} | {files:,} | {tar:,.1f} | {gzip:,.1f} "
                f"| {recipe.purpose} |"
            )


if __name__ == "__main__":
    sys.exit(main())
