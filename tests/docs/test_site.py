"""README and site hold together: links lead somewhere, every page is in the menu, numbers stand in one place."""

from __future__ import annotations

import re

import pytest
import yaml

from tests.docs.pages import PAGES, ROOT

LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)")
WITHOUT_CODE = re.compile(r"^ *```.*?^ *```$|`[^`\n]*`", re.M | re.S)
ALL = [
    *PAGES,
    ROOT / "CHANGELOG.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "bench" / "results").glob("*.md")),
]


def anchor(heading: str) -> str:
    """A heading's anchor, by the rule of GitHub and of the site."""
    heading = re.sub(r"`|\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("page", ALL, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in LINK.findall(WITHOUT_CODE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"https?:|mailto:", target):
            continue
        path, _, wanted = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.name}: {target}"
        if wanted and there.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), re.M)
            assert re.sub("-+", "-", wanted) in {re.sub("-+", "-", anchor(h)) for h in headings}, (
                f"{page.name}: {target}"
            )


def menu(entries: object) -> list[str]:
    if isinstance(entries, str):
        return [entries]
    return [
        page for entry in (entries.values() if isinstance(entries, dict) else entries) for page in menu(entry)
    ]


def test_every_page_is_in_the_menu_once():
    class Loader(yaml.SafeLoader):
        """Ignores nothing: the file has plain values only."""

    pages = menu(yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)["nav"])
    assert len(pages) == len(set(pages))
    docs = ROOT / "docs"
    own = {str(path.relative_to(docs)) for kind in ("*.md", "*.ipynb") for path in docs.rglob(kind)}
    assert own <= set(pages), own - set(pages)


def test_lists_begin_after_an_empty_line():
    """Python-Markdown, unlike GitHub, takes them for a part of the paragraph otherwise."""
    for page in ALL:
        text = re.sub(r"^ *```.*?^ *```$", "\n", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        before = ""
        for line in text.splitlines():
            begins = re.match(r"([-*]|\d+\.) ", line)
            inside = re.match(r" *([-*]|\d+\.) | {2,}", before)
            assert not begins or not before.strip() or inside or before.startswith("#"), (
                f"{page.name}: {line}"
            )
            before = line


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_headline_figures_are_those_of_the_page_with_the_findings():
    """So that a new measurement cannot be entered in one of the two places only."""
    readme = (ROOT / "README.md").read_text()
    found = (ROOT / "docs" / "cifar10.md").read_text()
    headline = readme[readme.index("<!-- headline") : readme.index("<!-- end of headline -->")]
    findings = found[found.index("<!-- findings") : found.index("<!-- end of findings -->")]
    figures = re.findall(r"\d+\.\d+ %|\[\d+\.\d+,\s\d+\.\d+\]", headline)
    assert len(figures) > 5
    flat = " ".join(findings.split())
    for figure in figures:
        assert " ".join(figure.split()) in flat, figure


def test_the_readme_says_what_is_bundled_and_where_to_go():
    text = (ROOT / "README.md").read_text()
    for page in (
        "docs/start.md",
        "docs/cifar10.md",
        "bench/results/cifar10.md",
        "docs/demo.png",
        "docs/faq.md",
    ):
        assert page in text
