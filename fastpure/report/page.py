"""`report`: run files in, one self-contained HTML page out. No network, no script, no time of its own.

The same runs give the same bytes: what the page says of time was written by the runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from torch import nn

from ..errors import mistake, whole
from ..evaluate import Run
from ..evaluate.identity import canonical
from ..files import replace_file
from ..purify import Defense
from . import figures, svg, tables
from .data import LEVEL, Entry, doubts, matrices, open_entries
from .pictures import KINDS, Gallery, gallery
from .rebuild import CannotRebuild, find_defense
from .sweeps import sweeps

TEMPLATE, STYLE = "page.html.j2", "page.css"
MOST_WALKS = 8
"""Runs whose confidence is drawn: more lines cannot be told apart."""

Say = Callable[[str], None]


@final
@dataclass(frozen=True)
class Options:
    """What a page shows beyond its tables.

    Attributes:
        title: of the page.
        images: pictures per run, 0 for none.
        traced: images over which confidence along the reverse process is averaged, 0 for no such chart.
    """

    title: str = "Robustness report"
    images: int = 8
    traced: int = 16

    def __post_init__(self) -> None:
        if not isinstance(self.title, str) or not self.title.strip():
            raise ValueError(mistake("title", "a text", repr(self.title)))
        whole("images", self.images)
        whole("traced", self.traced)


def report(
    runs: Sequence[Run | str | Path],
    out: str | Path | None = None,
    *,
    defense: nn.Module | Sequence[nn.Module] = (),
    networks: tuple[Any, nn.Module] | None = None,
    options: Options | None = None,
    force: bool = False,
    say: Say | None = None,
) -> str:
    """Make the page of these runs; returns its HTML and writes it to ``out`` if given.

    Args:
        runs: run files or open runs; their order is that of the page.
        out: where to write, atomically.
        defense: the defence or defences of the runs, for purified images and confidences. One whose settings and
            weights are not those of a run is not used for it.
        networks: (denoiser, classifier) to rebuild defences from; where neither this nor ``defense`` fits, the
            bundled networks are tried if this is None. What cannot be rebuilt is left out, and the page says why.
        options: title and numbers of images.
        force: replace ``out`` if it exists.
        say: called with what is being done, for progress.

    Raises:
        ValueError: no runs, the same one twice, or an option out of range.
        FileNotFoundError, RunDamaged: a run file is missing or not what was written.
        FileExistsError: ``out`` exists and ``force`` is not given.
    """
    options, say = options or Options(), say or (lambda text: None)
    given = (defense,) if isinstance(defense, nn.Module) else tuple(defense)
    if out is not None:
        refuse_existing([Path(out)], force)
    with ExitStack() as stack:
        say("reading and verifying runs")
        entries = open_entries(runs, stack)
        html = render(collect(entries, options, given, networks, say))
    if out is not None:
        replace_file(out, html.encode())
    return html


def collect(
    entries: Sequence[Entry],
    options: Options,
    given: tuple[nn.Module, ...] = (),
    networks: tuple[Any, nn.Module] | None = None,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """All values the template names."""
    found, left_out = matrices(entries)
    shown = [entry for entry in entries if len(entry.run.positions)]
    defenses, notes = _defenses(shown, given, networks) if options.images or options.traced else ({}, {})
    galleries: list[Gallery] = []
    walks: list[figures.Walk] = []
    for entry in shown:
        if options.images:
            say(f"pictures of run {entry.key}")
            galleries.append(
                gallery(entry, defenses.get(entry.key), options.images, notes.get(entry.key, ""))
            )
        defended = defenses.get(entry.key)
        if options.traced and isinstance(defended, Defense) and len(walks) < MOST_WALKS:
            say(f"confidence along run {entry.key}")
            # Originals take the same way through the same defence: once is enough.
            clean = all(defenses.get(done.entry.key) is not defended for done in walks)
            walks.append(figures.walk(entry, defended, options.traced, clean))
    swept = sweeps(entries)
    return {
        "title": options.title,
        "entries": entries,
        "warnings": [(entry, entry.summary.warnings) for entry in entries if entry.summary.warnings],
        "doubts": doubts(entries),
        "matrices": found,
        "left_out": left_out,
        "sweeps": [figures.sweep_chart(sweep) for sweep in swept],
        "traces": figures.trace_charts(entries),
        "galleries": galleries,
        "walks": figures.walk_charts(walks) if walks else [],
        "walks_left": max(0, sum(isinstance(d, Defense) for d in defenses.values()) - MOST_WALKS),
        "not_rebuilt": notes,
        "protocols": _protocols(entries),
        "kinds": KINDS,
        "level": LEVEL,
    }


def render(values: dict[str, Any]) -> str:
    """The page. Every text is escaped by the template engine; only this package's own SVG and style are not."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = Markup
    environment.globals.update(
        bar=lambda interval, style: Markup(svg.interval_bar(interval, style)),
        tables=tables,
        style=Markup(Path(__file__).with_name(STYLE).read_text()),
        version=_version(),
    )
    return environment.get_template(TEMPLATE).render(values) + "\n"


def refuse_existing(paths: Sequence[Path], force: bool) -> None:
    """Raise FileExistsError for the first of ``paths`` that exists, unless ``force``."""
    for path in paths:
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder; name a file")
        if path.exists() and not force:
            raise FileExistsError(f"{path} exists; use --force (force=True) to replace it")


def _defenses(
    entries: Sequence[Entry], given: tuple[nn.Module, ...], networks: tuple[Any, nn.Module] | None
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    found: dict[str, nn.Module] = {}
    notes: dict[str, str] = {}
    known: dict[str, nn.Module] = {}
    for entry in entries:
        if not entry.purified:  # its recorded decisions are those of the bare classifier
            continue
        described = canonical(entry.identity["defense"])
        try:
            if described not in known:
                known[described] = find_defense(entry.identity["defense"], given, networks)
            found[entry.key] = known[described]
        except CannotRebuild as error:
            notes[entry.key] = str(error)
    return found, notes


def _protocols(entries: Sequence[Entry]) -> list[tuple[str, str, list[str]]]:
    """Every protocol on the page: as text, explained, and the runs under it."""
    found: dict[str, tuple[str, str, list[str]]] = {}
    for entry in entries:
        protocol = entry.run.protocol
        row = found.setdefault(protocol.hash, (str(protocol), tables.explain(protocol), []))
        row[2].append(entry.key)
    return list(found.values())


def _version() -> str:
    from .. import __version__

    return __version__
