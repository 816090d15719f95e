"""The page of the papers: sections made of what the commands wrote, the others as they were, in the list's order."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import papers_page
from bench.papers_page import DOCS, merged, run, section
from fastpure.reproduce import EXPERIMENTS

NAME = "coup-figure3b"


def test_the_page_we_have_is_kept_where_nothing_is_new():
    page = (DOCS / "papers.md").read_text(encoding="utf-8")
    assert merged(page, {}) == page
    text = section(
        NAME,
        "# A title\n\nOurs.\n\n![a picture](a.svg) [elsewhere](other.md)\n\n"
        "[all runs, with comparisons and checks](report.html)\n\n"
        "Ours with 95 % Wilson intervals over images; more.\n\n- note\n",
    )
    assert text.endswith("(other.md)\n\n- note\n")
    assert text.startswith(f"## A title\n\n```\nfastpure reproduce {NAME} --small\n```\n\nOurs.\n")
    assert "![a picture](papers/a.svg) [elsewhere](other.md)" in text
    changed = merged(page, {NAME: text})
    assert text in changed
    assert changed.count("\n## ") == page.count("\n## ")
    titles = [line for line in page.splitlines() if line.startswith("## ")]
    at = list(EXPERIMENTS).index(NAME)
    assert [line for line in changed.splitlines() if line.startswith("## ")] == [
        *titles[:at],
        "## A title",
        *titles[at + 1 :],
    ]


def test_an_entry_without_a_section_is_missed():
    with pytest.raises(ValueError, match="no section for coup-table1, coup-table2"):
        merged("intro\n\n", {NAME: "## x\n"})


def test_pictures_come_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers.md").write_text(
        "by hand\n\n## old\n\n```\nfastpure reproduce a --small\n```\n", encoding="utf-8"
    )

    def reproduce(experiment: str, setting: object, folder: Path, *, progress: bool) -> list[Path]:
        folder.mkdir(parents=True)
        (folder / "table.md").write_text(f"# {experiment}\n\n![p](p.png)\n", encoding="utf-8")
        (folder / "p.png").write_bytes(b"drawn")
        return [folder / "p.png", folder / "table.md"]

    monkeypatch.setattr(papers_page, "EXPERIMENTS", {"a": "The title"})
    monkeypatch.setattr(papers_page, "reproduce", reproduce)
    run(["a"], tmp_path / "runs", tmp_path)
    assert (tmp_path / "papers" / "p.png").read_bytes() == b"drawn"
    assert [path.name for path in (tmp_path / "papers").iterdir()] == ["p.png"]
    page = (tmp_path / "papers.md").read_text(encoding="utf-8")
    assert page == (
        "by hand\n\n## The title\n\n```\nfastpure reproduce a --small\n```\n\n![p](papers/p.png)\n"
    )
