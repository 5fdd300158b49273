# SPDX-License-Identifier: Apache-2.0
"""``python -m tools.release.debpackage WHEEL``: makes the Debian package, for Debian 12 and later.

Owns what lies where, and the control files; packaging/debian has the maintainer scripts. A virtual
environment in /usr/lib/firstread runs on Debian's python3, with the libraries of
packaging/requirements.lock for every Python that firstread supports (docs/adr/0154).
Invariant: the bytes depend on the wheel, the lock file and SOURCE_DATE_EPOCH alone.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import re
import shutil
import sys
import tempfile
import zipfile
from datetime import UTC, datetime
from email.message import Message
from email.parser import Parser
from email.utils import format_datetime
from pathlib import Path
from typing import Final

from tools.release.manpages import pages, settings
from tools.release.programs import main, run, source_date
from tools.release.wheelhouse import GLIBC, MACHINES, TOP, fetch, join, pythons

from firstread.cli.completion import SHELLS
from firstread.testing.command import firstread

PACKAGE: Final = "firstread"
MAINTAINER: Final = "The firstread developers <developers@firstread.invalid>"
SCRIPTS: Final = ("postinst", "prerm", "postrm")
UNITS: Final = ("firstread.service", "firstread-snapshotter.service")
CONFIG: Final = "etc/firstread/config.toml"
HOME: Final = "usr/lib/firstread"
SITE: Final = f"{HOME}/lib/python3/site-packages"
DOC: Final = "usr/share/doc/firstread"

_LIBRARIES: Final = (f"libc6 (>= {GLIBC})", "libstdc++6 (>= 9)")  # that wheels may need
_COMPLETIONS: Final = dict(
    zip(
        SHELLS,
        (
            "usr/share/bash-completion/completions/firstread",
            "usr/share/zsh/vendor-completions/_firstread",
            "usr/share/fish/vendor_completions.d/firstread.fish",
        ),
        strict=True,
    )
)
_LAUNCHER: Final = f"""\
#!/{HOME}/bin/python3 -I
from firstread.__main__ import main

main()
"""
_CONFIG_HEAD: Final = """\
# Settings of the node, all with their defaults: see firstread.toml(5). To change one, remove the #.
# 'systemctl reload firstread', or 'firstread daemon --reload', applies it; no read fails.

"""
_DESCRIPTION: Final = """\
containers that start before their image is pulled
 firstread converts OCI images into EROFS metadata and content-addressed
 sectors. A node mounts only the metadata, starts the container, and fetches
 and verifies each sector when the kernel first reads it.
 .
 The package has the converter, the daemon of a node, the snapshotter for
 containerd, and their services. It starts none of them.
"""


def _make() -> list[str]:
    parser = argparse.ArgumentParser(prog="python -m tools.release.debpackage", description=__doc__)
    parser.add_argument("wheel", type=Path, help="firstread's own")
    parser.add_argument("--arch", choices=MACHINES, default="amd64", help="[%(default)s]")
    parser.add_argument("--cache", type=Path, default=TOP / "build", help="of wheels [build]")
    parser.add_argument("--output", type=Path, default=TOP / "dist", help="directory [dist]")
    options = parser.parse_args()
    return [f"{build(options.wheel, options.arch, options.cache, options.output, source_date())}"]


def build(wheel: Path, arch: str, cache: Path, output: Path, epoch: int) -> Path:
    """Make the package of `wheel`; return its path below `output`.

    Args:
        wheel: of firstread.
        arch: Debian's name of the architecture, one of `MACHINES`.
        cache: directory of downloaded wheels.
        output: directory of the package.
        epoch: date of everything in it, in seconds since 1970.

    Raises:
        NodeError: a wheel cannot be had, or a program failed.
        OSError: a file cannot be read or written.
    """
    output.mkdir(parents=True, exist_ok=True)
    wheels = fetch(arch, cache)
    with tempfile.TemporaryDirectory(prefix="firstread-deb-", dir=output) as scratch:
        root = Path(scratch, "root")
        metadata = _install(wheel, wheels, arch, root)
        version = debian_version(metadata["Version"])
        _add_documents(root, version, epoch)
        _add_control(root, arch, version)
        for path in (root, *root.rglob("*")):
            _normalize(path, epoch)
        made = Path(scratch, f"{PACKAGE}_{version}_{arch}.deb")
        run("dpkg-deb", "--root-owner-group", "-Zxz", "--build", root, made)
        return made.rename(output / made.name)


def debian_version(version: str) -> str:
    """Return a version of Python's as one of Debian's: ``1.0rc1`` comes before ``1.0``."""
    return re.sub(r"\.?(a|b|rc|dev)(\d+)", r"~\1\2", version)


def _install(wheel: Path, wheels: Path, arch: str, root: Path) -> Message:
    """Lay out the programs; return the wheel's metadata."""
    site = root / SITE
    site.mkdir(parents=True)
    join(wheels, arch, site)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    for record in site.glob("firstread-*.dist-info/RECORD"):
        record.unlink()
    for python in pythons():
        (root / HOME / f"lib/python{python}").symlink_to("python3")
    _write(root / HOME / "pyvenv.cfg", "home = /usr/bin\ninclude-system-site-packages = false\n")
    (root / HOME / "bin").mkdir()
    (root / HOME / "bin/python3").symlink_to("../../../bin/python3")
    _write(root / "usr/bin/firstread", _LAUNCHER, mode=0o755)
    # zstandard's wheels come with the symbols for a debugger, four fifths of their size.
    run("eu-strip", *site.rglob("*.so"))
    for unit in UNITS:
        _copy(TOP / "packaging" / unit, root / "usr/lib/systemd/system" / unit)
    hook = root / "usr/share/python3/runtime.d/firstread.rtupdate"
    _copy(TOP / "packaging/debian/rtupdate", hook, mode=0o755)
    (metadata,) = site.glob("firstread-*.dist-info/METADATA")
    return Parser().parsestr(metadata.read_text())


def _add_documents(root: Path, version: str, epoch: int) -> None:
    for name, text in pages(epoch).items():
        _write_gzip(root / f"usr/share/man/man{name[-1]}" / f"{name}.gz", text)
    for shell, path in _COMPLETIONS.items():
        _write(root / path, firstread("completion", shell).stdout)
    for page in (*TOP.glob("docs/*.md"), TOP / "README.md", TOP / "SECURITY.md"):
        _copy(page, root / DOC / page.name)
    manifests = TOP / "packaging/kubernetes"
    for manifest in manifests.rglob("*.*"):
        _copy(manifest, root / DOC / "examples/daemonset" / manifest.relative_to(manifests))
    _write_gzip(root / DOC / "changelog.gz", _changelog(version, epoch))
    _write(root / DOC / "NEWS.md", (TOP / "CHANGELOG.md").read_text())
    _write(root / DOC / "copyright", _copyright(root / SITE))
    overrides = TOP / "packaging/debian/lintian-overrides"
    _copy(overrides, root / "usr/share/lintian/overrides/firstread")
    commented = re.sub(r"^(?=[^\[\n])", "#", settings(), flags=re.MULTILINE)
    _write(root / CONFIG, _CONFIG_HEAD + commented)


def _add_control(root: Path, arch: str, version: str) -> None:
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    minors = [int(python.partition(".")[2]) for python in pythons()]
    python = (f"python3 (>= 3.{min(minors)})", f"python3 (<< 3.{max(minors) + 1})")
    fields = {
        "Package": PACKAGE,
        "Version": version,
        "Section": "admin",
        "Priority": "optional",
        "Architecture": arch,
        "Maintainer": MAINTAINER,
        "Installed-Size": str(sum(path.stat().st_size for path in files) // 1024),
        "Depends": ", ".join(["ca-certificates", *_LIBRARIES, *python]),
        "Recommends": "crun | runc",
        "Suggests": "containerd, uidmap",
        "Description": _DESCRIPTION.rstrip("\n"),
    }
    control = root / "DEBIAN"
    _write(control / "control", "".join(f"{name}: {value}\n" for name, value in fields.items()))
    _write(control / "conffiles", f"/{CONFIG}\n")
    sums = ((hashlib.md5(p.read_bytes()).hexdigest(), str(p.relative_to(root))) for p in files)
    known = "".join(f"{md5}  {name}\n" for md5, name in sums if name != CONFIG)
    _write(control / "md5sums", known)
    for name in SCRIPTS:
        _copy(TOP / "packaging/debian" / name, control / name, mode=0o755)


def _changelog(version: str, epoch: int) -> str:
    date = format_datetime(datetime.fromtimestamp(epoch, UTC))
    entry = f"  * See /{DOC}/NEWS.md."
    return f"{PACKAGE} ({version}) stable; urgency=medium\n\n{entry}\n\n -- {MAINTAINER}  {date}\n"


def _copyright(site: Path) -> str:
    """Return Debian's machine-readable form: firstread, then each library with its own licence."""
    parts = [
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n"
        "Upstream-Name: firstread\n",
        "Files: *\nCopyright: The firstread developers\nLicense: Apache-2.0\n",
    ]
    for path in sorted(site.glob("*.dist-info/METADATA")):
        library = Parser().parsestr(path.read_text())
        if library["Name"] != PACKAGE:
            licence = library["License-Expression"] or library["License"] or "see-its-directory"
            parts.append(
                f"Files: {SITE}/*\nCopyright: the authors of {library['Name']}\n"
                f"Comment: version {library['Version']}, see /{SITE}/{path.parent.name}\n"
                f"License: {licence.splitlines()[0]}\n"
            )
    parts.append("License: Apache-2.0\n See /usr/share/common-licenses/Apache-2.0.\n")
    return "\n".join(parts)


def _normalize(path: Path, epoch: int) -> None:
    """Give a file the mode that it has in a package, and the date of the build."""
    if not path.is_symlink():
        path.chmod(0o755 if path.is_dir() or _runs(path) else 0o644)
    os.utime(path, (epoch, epoch), follow_symlinks=False)


def _runs(path: Path) -> bool:
    """Tell whether a file is a program; modules of some libraries begin like one."""
    with path.open("rb") as file:
        return os.access(path, os.X_OK) and path.suffix != ".py" and file.read(2) == b"#!"


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def _write_gzip(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


def _copy(source: Path, target: Path, mode: int = 0o644) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(mode)


if __name__ == "__main__":
    sys.exit(main(_make))
