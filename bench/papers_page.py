"""docs/papers.md anew: every table and figure of `fastpure reproduce` in its small size, and their pictures.

    python -m bench.papers_page                      an estimated half hour of one core; continues after a kill
    python -m bench.papers_page coup-table4 ...      only these; the other sections stay as they are

What stands above the first section is written by hand and stays.
"""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from fastpure.errors import one_of
from fastpure.files import replace_file
from fastpure.reproduce import EXPERIMENTS, Small, reproduce

DOCS = Path(__file__).parents[1] / "docs"
PICTURES = "papers"
SAID_ABOVE = (
    r"^(Ours with 95 % Wilson intervals .*|\[all runs, with comparisons and checks\]\(report\.html\))\n\n"
)
"""Of ``table.md``: what the page says once for all, and the report, which lies where the command was run."""


def section(name: str, table: str) -> str:
    """The section of an entry, of the ``table.md`` that its command wrote."""
    title, body = table.split("\n", 1)
    body = re.sub(SAID_ABOVE, "", body, flags=re.MULTILINE)
    body = re.sub(r"(!\[[^\]]*\])\((?=[^):/]+\))", rf"\1({PICTURES}/", body.strip())
    return f"#{title}\n\n```\nfastpure reproduce {name} --small\n```\n\n{body}\n"


def merged(page: str, written: Mapping[str, str]) -> str:
    """The page with these sections in place of the former ones of the same entry, in the order of `EXPERIMENTS`.

    Raises:
        ValueError: an entry has neither a new section nor a former one.
    """
    intro, *former = re.split(r"^(?=## )", page, flags=re.MULTILINE)
    sections = {}
    for text in former:
        called = re.search(r"^fastpure reproduce (\S+) --small$", text, re.MULTILINE)
        if called is not None:
            sections[called[1]] = text.strip() + "\n"
    sections |= written
    if absent := [name for name in EXPERIMENTS if name not in sections]:
        raise ValueError(f"no section for {', '.join(absent)}: name them, or name none")
    return intro + "\n".join(sections[name] for name in EXPERIMENTS)


def run(names: Sequence[str], runs: Path, docs: Path) -> None:
    """Make what is missing of these entries below ``runs``, then the page and its pictures below ``docs``."""
    written = {}
    for name in names:
        folder = runs / name
        print(name, flush=True)
        made = reproduce(EXPERIMENTS[name], Small(), folder, progress=False)
        written[name] = section(name, (folder / "table.md").read_text(encoding="utf-8"))
        for path in made:
            if path.suffix in (".png", ".svg"):
                shutil.copy(path, docs / PICTURES / path.name)
    page = docs / "papers.md"
    replace_file(page, merged(page.read_text(encoding="utf-8"), written).encode())


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="entries of `fastpure reproduce`; all if none")
    parser.add_argument("--runs", type=Path, default=Path("runs/papers"))
    options = parser.parse_args(words)
    names = [one_of("names", name, EXPERIMENTS) for name in options.names] or list(EXPERIMENTS)
    run(names, options.runs, DOCS)
    print(f"wrote {DOCS / 'papers.md'}")


if __name__ == "__main__":
    main()
