"""Looks at the built site: every public name has an entry in the reference, and nothing is fetched from another host.

    python .ci/docs_check.py SITE

The inventory (objects.inv) is what the reference really has, whatever its pages ask for.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
import zlib
from pathlib import Path

import fastpure

INTERNAL = {"cli"}
"""Packages whose face is no interface for Python: the commands have ``--help``."""

# What a browser loads by itself; links that a reader may follow are no concern.
FETCHED = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(https?:[^"'\s>]+)|<link\b[^>]*\brel=["']?(?:stylesheet|preload|icon)\b[^>]*\bhref=["']?(https?:[^"'\s>]+)|@import\s+(?:url\()?["']?(https?:[^"')\s]+)"""
)


def public_names() -> dict[str, str]:
    """Full name of everything in ``__all__`` of the package and of its packages, as it is imported -> where it stands.

    The two differ where a function is called like its module, whose entry then has the imported name.
    """
    names = {f"fastpure.{name}": f"fastpure.{name}" for name in fastpure.__all__}
    for found in pkgutil.iter_modules(fastpure.__path__):
        if not found.ispkg or found.name in INTERNAL:
            continue
        module = importlib.import_module(f"fastpure.{found.name}")
        for name in module.__all__:
            value = getattr(module, name)
            stands = f"{getattr(value, '__module__', module.__name__)}.{getattr(value, '__qualname__', name)}"
            names[f"{module.__name__}.{name}"] = stands
    return names


def inventory(site: Path) -> set[str]:
    """Names with an entry."""
    header, _, packed = (site / "objects.inv").read_bytes().partition(b"zlib.\n")
    assert header.startswith(b"# Sphinx inventory version 2"), "objects.inv is not an inventory"
    return {line.split(" ")[0] for line in zlib.decompress(packed).decode().splitlines()}


def main(site: Path) -> None:
    """Complain and exit with 1, or say what was found."""
    text = (site / "reference" / "index.html").read_text(encoding="utf-8")
    listed = inventory(site) | {f"fastpure.{name}" for name in re.findall(r"\bfp\.(\w+)", text)}
    missing = sorted(name for name, stands in public_names().items() if not {name, stands} & listed)
    fetched = {
        f"{page.relative_to(site)}: {next(filter(None, match.groups()))}"
        for page in site.rglob("*.html")
        for match in FETCHED.finditer(page.read_text(encoding="utf-8"))
    }
    for name in missing:
        print(f"docs-check: not in the reference: {name}")
    for address in sorted(fetched):
        print(f"docs-check: fetched from elsewhere: {address}")
    if missing or fetched:
        raise SystemExit(1)
    print(
        f"docs-check: {len(public_names())} public names, {len(list(site.rglob('*.html')))} pages, nothing fetched"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
