"""What the site needs besides Markdown: pages that live elsewhere in the repository, and links between all of them.

Tables of results stand beside the benches that write them, the changelog at the top. They become pages here without
being copied. Links are written as they hold in the repository (``../bench/results/cifar10.md``); on the site they lead
to the page, and become plain text where the site has none (a test, a source file).
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "fastpure/zoo/README.md": "zoo.md",
    **{
        f"bench/results/{path.name}": f"results/{path.name}"
        for path in sorted(ROOT.glob("bench/results/*.md"))
    },
}
"""Place in the repository -> place on the site."""

LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
FENCE = re.compile(r"^ *(```|~~~).*?^ *\1 *$", re.M | re.S)


def on_config(config):
    """Put the tables of results into the menu, whichever there are."""
    for section in config["nav"]:
        if "Results" in section:
            section["Results"] += [page for page in OUTSIDE.values() if page.startswith("results/")]
    return config


def on_files(files, config):
    """Add the pages that live elsewhere."""
    for place, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / place).read_text(encoding="utf-8")))
    return files


def moved(origin: str, target: str) -> str | None:
    """Where a link of a file in the repository leads on the site, as a page there; None if to no page."""
    path, _, anchor = target.partition("#")
    place = posixpath.normpath(posixpath.join(posixpath.dirname(origin), path))
    if place in OUTSIDE:
        page = OUTSIDE[place]
    elif place.startswith("docs/"):
        page = place.removeprefix("docs/")
    else:
        return None
    return page + ("#" + anchor if anchor else "")


def linked(markdown: str, origin: str, here: str) -> str:
    """The text of a file of the repository with its links as they hold on the page ``here``."""

    def replace(match: re.Match[str]) -> str:
        image, text, target = match.groups()
        if re.match(r"[a-z]+:|#|mailto:", target):
            return match[0]
        page = moved(origin, target)
        if page is None:
            if not (
                ROOT / posixpath.normpath(posixpath.join(posixpath.dirname(origin), target.split("#")[0]))
            ).exists():
                return match[0]  # a dead link: the strict build says so
            return text
        path, _, anchor = page.partition("#")
        path = posixpath.relpath(path, posixpath.dirname(here) or ".")
        return f"{image}[{text}]({path}{'#' + anchor if anchor else ''})"

    pieces, end = [], 0
    for fence in FENCE.finditer(markdown):
        pieces += [LINK.sub(replace, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*pieces, LINK.sub(replace, markdown[end:])])


def on_page_markdown(markdown, page, config, files):
    """Rewrite the links of a page."""
    here = page.file.src_uri
    if here.endswith(".ipynb"):
        return markdown
    origin = {page: place for place, page in OUTSIDE.items()}.get(here, f"docs/{here}")
    return linked(markdown, origin, here)
