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
from ..files import Unfinished, unfinished
from ..progress import Progress
from ..purify import Target
from ..version import __version__
from . import tables
from .charts import svg
from .data import LEVEL, Entry, doubts, finding, headlines, matrices, open_entries, smallest
from .figures import Walk, sweep_chart, trace_charts, walk, walk_charts, walk_names
from .pictures import KINDS, RULE, Gallery, gallery
from .plotting import SAME
from .quality import Quality, quality
from .quality import notes as lacking
from .rebuild import CannotRebuild, find_defense
from .sheet import file_names, write_pictures
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
        measured: images whose purified versions are measured (distance, PSNR, SSIM, compression), 0 for no such table.
    """

    title: str = "Robustness report"
    images: int = 8
    traced: int = 16
    measured: int = 16

    def __post_init__(self) -> None:
        if not isinstance(self.title, str) or not self.title.strip():
            raise ValueError(mistake("title", "a text", repr(self.title)))
        whole("images", self.images)
        whole("traced", self.traced)
        whole("measured", self.measured)


def report(
    runs: Sequence[Run | str | Path],
    out: str | Path | None = None,
    *,
    figures: str | Path | None = None,
    formats: Sequence[str] = ("svg",),
    defense: nn.Module | Sequence[nn.Module] = (),
    networks: tuple[Any, nn.Module] | None = None,
    options: Options | None = None,
    force: bool = False,
    say: Say | None = None,
    progress: bool = False,
    wrote: Callable[[Path], None] | None = None,
    measured: Callable[[Sequence[Quality]], None] = lambda found: None,
    within: Unfinished | None = None,
) -> str:
    """Make the page of these runs; returns its HTML and writes it to ``out`` if given.

    Killed between two files and given again, it replaces those it had written.

    Args:
        runs: run files or open runs; their order is that of the page.
        out: where to write, atomically.
        figures: folder for the page's charts and galleries as pictures of their own, see `write_figures`.
        formats: of these charts, among "svg", "png" and "pdf"; galleries are PNG, and PDF where that is among them.
        defense: the defence or defences of the runs, for purified images and confidences. One whose settings and
            weights are not those of a run is not used for it.
        networks: (denoiser, classifier) to rebuild defences from; where neither this nor ``defense`` fits, the
            bundled networks are tried if this is None. What cannot be rebuilt is left out, and the page says why.
        options: title and numbers of images.
        force: replace files that exist.
        say: called with what is being done.
        progress: show a bar instead where there is a terminal or a notebook.
        wrote: called with the path of every file that was written.
        measured: called with what was measured of purified images, which `write_csv` takes.
        within: the files of a command that writes more than these.

    Raises:
        ValueError: no runs, the same one twice, or an option out of range.
        FileNotFoundError, RunDamaged: a run file is missing or not what was written.
        FileExistsError: ``out`` or a picture exists and ``force`` is not given; nothing is written then.
        NotADirectoryError: a file is where a folder should be; nothing is written then.
    """
    check_formats(formats)
    options, wrote = options or Options(), wrote or (lambda path: None)
    given = (defense,) if isinstance(defense, nn.Module) else tuple(defense)
    folder = None if figures is None else Path(figures)
    first = [Path(out)] if out is not None else [folder / "figures"] if folder is not None else []
    with ExitStack() as stack:
        most = 1 + len(runs) * sum(map(bool, (options.images, options.traced, options.measured)))
        bar = stack.enter_context(Progress(most, "steps at most", doing="report", shown=progress))
        say = bar.telling(say)
        batch = stack.enter_context(unfinished(first, within)) if first else None
        if out is not None:
            refuse_existing([Path(out)], force, batch)
        if folder is not None:
            refuse_file(folder)

        def check(names: Sequence[str]) -> None:
            if folder is not None:
                refuse_existing([folder / name for name in names], force, batch)

        say("reading and verifying runs")
        values = collect(open_entries(runs, stack), options, given, networks, say, formats, check)
        measured(values["measured"])
        html = render(values)
        if folder is not None and batch is not None:
            charts = [*values["sweeps"], *values["traces"], *values["walks"]]
            for path in write_pictures(folder, values["files"], charts, values["galleries"], batch, formats):
                wrote(path)
        if out is not None and batch is not None:
            wrote(batch.write(out, html.encode()))
    return html


def write_figures(
    runs: Sequence[Run | str | Path],
    folder: str | Path,
    *,
    formats: Sequence[str] = ("svg",),
    defense: nn.Module | Sequence[nn.Module] = (),
    networks: tuple[Any, nn.Module] | None = None,
    options: Options | None = None,
    force: bool = False,
    say: Say | None = None,
) -> list[Path]:
    """Write every chart and gallery of the page of these runs as a picture of its own; returns their paths.

    Charts have title, legend and caption inside and are SVG for a README, PDF for a paper or PNG for slides, as
    ``formats`` says; galleries are PNG, and PDF where that is among them; all on white.
    Names say what is shown, `accuracy-against-t.svg` or `images-diffpure-pgd.png` after the name of a run file, and
    are the same whenever the same is shown. Each file is written whole or not at all.

    Args:
        folder: made if it does not exist.
        Others: as for `report`.

    Raises:
        FileExistsError: one of the pictures exists and ``force`` is not given; nothing is written then.
        NotADirectoryError: a file is where the folder should be.
        Others: as for `report`.
    """
    paths: list[Path] = []
    report(
        runs,
        figures=folder,
        formats=formats,
        defense=defense,
        networks=networks,
        options=options,
        force=force,
        say=say,
        wrote=paths.append,
    )
    return paths


def collect(
    entries: Sequence[Entry],
    options: Options,
    given: tuple[nn.Module, ...] = (),
    networks: tuple[Any, nn.Module] | None = None,
    say: Say = lambda text: None,
    formats: Sequence[str] = ("svg",),
    check: Callable[[Sequence[str]], None] = lambda names: None,
) -> dict[str, Any]:
    """All values the template names, and "files", the names of files for the pictures.

    ``check`` is called with these names before anything is purified, and may raise.
    """
    found, left_out = matrices(entries)
    shown = [entry for entry in entries if len(entry.run.positions)]
    wanted = options.images or options.traced or options.measured
    defenses, notes = _defenses(shown, given, networks) if wanted else ({}, {})
    charts = [sweep_chart(sweep) for sweep in sweeps(entries)]
    traces = trace_charts(entries)
    walked = [e for e in shown if options.traced and e.key in defenses and defenses[e.key].purifies]
    names = [chart.name for chart in (*charts, *traces)]
    files = file_names(names + walk_names(walked[:MOST_WALKS]), shown if options.images else [], formats)
    check(files)
    if walked[MOST_WALKS:]:
        say(f"confidence is drawn for the first {MOST_WALKS} of {len(walked)} runs")
    galleries: list[Gallery] = []
    walks: list[Walk] = []
    measured: list[Quality] = []
    for entry in shown:
        if options.images:
            say(f"pictures of run {entry.key}")
            galleries.append(
                gallery(entry, defenses.get(entry.key), options.images, notes.get(entry.key, ""))
            )
        defended = defenses.get(entry.key)
        if defended is not None and entry in walked[:MOST_WALKS]:
            say(f"confidence along run {entry.key}")
            # Originals take the same way through the same defence: once is enough.
            clean = all(defenses.get(done.entry.key) is not defended for done in walks)
            walks.append(walk(entry, defended, options.traced, clean))
        if defended is not None and defended.purifies and options.measured:
            say(f"purified images of run {entry.key}")
            measured.append(quality(entry, defended, options.measured))
    return {
        "title": options.title,
        "entries": entries,
        "warnings": [(entry, entry.summary.warnings) for entry in entries if entry.summary.warnings],
        "doubts": doubts(entries),
        "headlines": headlines(entries),
        "matrices": found,
        "left_out": left_out,
        "smallest": smallest(entries),
        "sweeps": charts,
        "traces": traces,
        "galleries": galleries,
        "walks": walk_charts(walks) if walks else [],
        "walks_left": len(walked[MOST_WALKS:]),
        "measured": measured,
        "measured_lpips": any(row.lpips is not None for one in measured for row in one.rows),
        "measured_notes": lacking(measured),
        "files": files,
        "not_rebuilt": notes,
        "protocols": _protocols(entries),
        "kinds": KINDS,
        "rule": RULE,
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
    environment.globals.update(
        svg=lambda chart: Markup(svg(chart)),
        tables=tables,
        finding=finding,
        style=Markup(Path(__file__).with_name(STYLE).read_text()),
        version=__version__,
    )
    return environment.get_template(TEMPLATE).render(values) + "\n"


def check_formats(formats: Sequence[str]) -> None:
    """Raise ValueError unless these are one or more formats of pictures, each once."""
    given = [formats] if isinstance(formats, str) else list(formats)
    if isinstance(formats, str) or not given or len(set(given)) < len(given) or set(given) - set(SAME):
        known = f"one or more of {', '.join(SAME)}, each once"
        raise ValueError(mistake("formats", known, ", ".join(map(str, given)) or "none"))


def refuse_existing(paths: Sequence[Path], force: bool, batch: Unfinished | None = None) -> None:
    """Raise FileExistsError for the first of ``paths`` that exists, unless ``force`` or ``batch`` wrote it.

    Whatever ``force``: a folder of that name raises IsADirectoryError, a file in its place NotADirectoryError.
    """
    for path in paths:
        refuse_file(path.parent)
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder; name a file")
        if path.exists() and not force and not (batch is not None and batch.ours(path)):
            raise FileExistsError(f"{path} exists; use --force (force=True) to replace it")


def refuse_file(folder: Path) -> None:
    """Raise NotADirectoryError if ``folder`` cannot be one because it, or a folder it is in, is a file."""
    for path in (folder, *folder.parents):
        if path.exists() or path.is_symlink():
            if not path.is_dir():
                raise NotADirectoryError(f"{path} is a file where a folder should be")
            return


def _defenses(
    entries: Sequence[Entry], given: tuple[nn.Module, ...], networks: tuple[Any, nn.Module] | None
) -> tuple[dict[str, Target], dict[str, str]]:
    found: dict[str, Target] = {}
    notes: dict[str, str] = {}
    known: dict[str, Target] = {}
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
