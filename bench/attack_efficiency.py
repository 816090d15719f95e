"""What does an attack find for what it costs? Robust accuracy against gradients per image; runs what is missing.

    python -m bench.attack_efficiency --only digits          two hours of one core and more; continues
    python -m bench.attack_efficiency --only cifar10 --data-path cifar-10-python.tar.gz    four to six hours
    (with --runs holding a link "digits" to the runs of bench.robustness_digits, what both need is run once)
    python -m bench.attack_efficiency --table-only           only write attack_efficiency.md and the pictures

Start the command several times to use several cores (OMP_NUM_THREADS=1): each takes points that no other is busy with.
Every point is a run of `fp.evaluate` in its own file under --runs, the comparison of relatives a file per defence. What
came out is kept in attack_efficiency.json, and is not run again, also where the run files are gone; --anew forgets it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import filelock

import fastpure as fp
from fastpure.attacks.base import Attack
from fastpure.data import Dataset
from fastpure.evaluate import Protocol
from fastpure.files import replace_file
from fastpure.report.charts import Chart, Series, picture

from . import cifar10_defences, robustness_cifar10, robustness_digits
from .points import HEADER, Known, Point, load, paired, save, warned
from .published import PublishedRand
from .relatives import Sizes, measure
from .robustness import Makers, Row, Study, finished, run_rows

RESULTS, KEPT = Path(__file__).parent / "results", "attack_efficiency.json"

Settings = tuple[int, ...]
"""Of a point: iterations and draws per gradient, or a budget."""


@dataclass(frozen=True)
class Family:
    """An attack at several budgets.

    Fields:
        name: of the line in the pictures.
        make: (norm and eps, a point's settings) to the attack.
    """

    name: str
    make: Callable[[dict[str, Any], Settings], Attack]


FAMILIES = (
    Family("Adaptive", lambda ball, at: fp.attacks.Adaptive(**ball, budget=float(at[0]))),
    Family("APGD-CE", lambda ball, at: fp.attacks.APGDCE(**ball, n_iter=at[0], eot_iter=at[1])),
    Family("PGD", lambda ball, at: fp.attacks.PGD(**ball, n_iter=at[0], eot_iter=at[1])),
    Family("DiffHammer", lambda ball, at: fp.attacks.DiffHammer(**ball, n_iter=at[0], eot_iter=at[1])),
    Family(
        "AutoAttack rand",
        lambda ball, at: fp.attacks.AutoAttack(**ball, version="rand", n_iter=at[0], eot_iter=at[1]),
    ),
    Family("pyautoattack rand", lambda ball, at: PublishedRand(**ball, n_iter=at[0], eot_iter=at[1])),
)
"""Styles of the lines follow this order."""


@dataclass(frozen=True)
class Bench:
    """The points of one data set.

    Fields:
        name, title: of files, of the pictures.
        defences: name -> maker.
        eps: Linf radius.
        budgets: name of a family -> its points, the largest first, because they say most.
        reference: the attack that Adaptive is put beside, by name: of the largest of its budgets.
        protocol: who decides.
        n: images.
        batch_size: images per block, which share what Adaptive may spend.
        data: row -> images, or None where none are at hand.
        sizes: of the comparison of relatives.
    """

    name: str
    title: str
    defences: Makers
    eps: float
    budgets: Mapping[str, Sequence[Settings]]
    reference: str
    protocol: Protocol
    n: int
    batch_size: int
    data: Callable[[Row], Dataset] | None
    sizes: Sizes

    @property
    def setting(self) -> dict[str, Any]:
        """What all points share and a row's name does not say."""
        return {"eps": self.eps, "batch_size": self.batch_size, "draws": self.protocol.draws}

    def rows(self) -> tuple[Row, ...]:
        """All points: each at its place in every defence before the next."""
        return tuple(
            Row(defence, called(name, settings), self.protocol, self.n)
            for name, settings in self.points()
            for defence in self.defences
        )

    def points(self) -> list[tuple[str, Settings]]:
        """(family, settings): the largest budgets of all families, then the next."""
        deepest = max(map(len, self.budgets.values()))
        return [
            (name, settings[i])
            for i in range(deepest)
            for name, settings in self.budgets.items()
            if i < len(settings)
        ]

    def study(self) -> Study:
        """The rows' defences and attacks."""
        assert self.data is not None
        ball = {"norm": "Linf", "eps": self.eps}
        makers = {family.name: family.make for family in FAMILIES}
        attacks = {
            called(name, at): (lambda name=name, at=at: makers[name](ball, at)) for name, at in self.points()
        }
        return Study(self.defences, attacks, self.data, self.batch_size)


def called(name: str, settings: Settings) -> str:
    """ "PGD 20 x 4": iterations and draws per gradient; "Adaptive 82": its budget."""
    return f"{name} {' x '.join(map(str, settings))}"


def _some(defences: Makers, *names: str) -> Makers:
    return {name: defences[name] for name in names}


DIGITS = Bench(
    "digits",
    "digits",
    _some(
        robustness_digits.DEFENCES, "DiffPure", "COUP scale 1", robustness_digits.COUP, "AGDM-style", "GDMP"
    ),
    robustness_digits.EPS,
    {
        "Adaptive": [(328,), (164,), (82,), (41,)],
        "APGD-CE": [(40, 8), (10, 8)],
        "PGD": [(20, 4), (20, 1)],
        "DiffHammer": [(10, 10), (5, 10)],
        "AutoAttack rand": [(25, 8)],
        "pyautoattack rand": [(25, 8)],
    },
    "APGD-CE 40 x 8",
    robustness_digits.FRESH,
    robustness_digits.IMAGES,
    robustness_digits.IMAGES,
    robustness_digits.data,
    Sizes(images=24, draws=128, batch_size=256),
)

CIFAR10 = Bench(
    "cifar10",
    "CIFAR-10",
    _some(
        cifar10_defences.DEFENCES,
        "DiffPure",
        cifar10_defences.coup_name(1.0),
        cifar10_defences.coup_name(cifar10_defences.BEST),
        "AGDM-style",
        "GDMP",
    ),
    cifar10_defences.EPS,
    {
        "Adaptive": [(82,), (41,)],
        "APGD-CE": [(10, 8)],
        "PGD": [(20, 4), (20, 1)],
        "DiffHammer": [(5, 10)],
        "AutoAttack rand": [(10, 8)],
        "pyautoattack rand": [(10, 8)],
    },
    "APGD-CE 10 x 8",
    robustness_cifar10.FRESH,
    32,
    32,
    None,
    Sizes(images=16, draws=32, batch_size=256),
)

SMALL = replace(
    DIGITS,
    name="trial",
    title="digits, a trial",
    defences=_some(robustness_digits.DEFENCES, "DiffPure", robustness_digits.COUP),
    budgets={
        "Adaptive": [(20,), (10,)],
        "APGD-CE": [(2, 2)],
        "PGD": [(2, 2), (2, 1)],
        "DiffHammer": [(1, 2)],
        "AutoAttack rand": [(1, 2)],
        "pyautoattack rand": [(1, 2)],
    },
    reference="APGD-CE 2 x 2",
    protocol=fp.protocols.fresh(2),
    n=4,
    batch_size=4,
    sizes=Sizes(images=2, draws=2, batch_size=64),
)


def run(bench: Bench, folder: Path, known: Known) -> None:
    """Every point that is missing, then the comparisons of relatives that are."""
    study = bench.study()
    run_rows(study, (row for row in bench.rows() if row.file not in known.points), folder)
    for name in bench.defences:
        place = compared(folder, name)
        if name not in known.relatives and not place.exists():
            data = study.data(Row(name, "none", bench.protocol, bench.sizes.images))
            found = measure(study.defences[name](), data, bench.eps, bench.sizes)
            replace_file(place, json.dumps(found, indent=1).encode())
            print(f"{name:<16} relatives", flush=True)


def compared(folder: Path, defence: str) -> Path:
    """The file with the comparison of the relatives of a defence."""
    return folder / f"{'-'.join(defence.replace('.', ' ').split())}-relatives.json"


def gather(bench: Bench, folder: Path, known: Known) -> None:
    """Add what has been finished in ``folder``."""
    for row, found in finished(bench.rows(), folder).items():
        known.points[row.file] = Point.of(row.defence, row.attack, found)
    for one in points(bench, known):
        reference = reached(bench, known, one.defence, bench.reference)
        if one.attack.startswith("Adaptive ") and reference is not None:
            known.pair(reference, one)
    for name in bench.defences:
        if compared(folder, name).exists():
            known.relatives[name] = json.loads(compared(folder, name).read_text(encoding="utf-8"))


def points(bench: Bench, known: Known) -> list[Point]:
    """The bench's points that are known, a defence after the other."""
    found = [known.points[row.file] for row in bench.rows() if row.file in known.points]
    return sorted(found, key=lambda point: list(bench.defences).index(point.defence))


def reached(bench: Bench, known: Known, defence: str, attack: str) -> Point | None:
    """What is known of an attack on a defence."""
    return next((one for one in points(bench, known) if (one.defence, one.attack) == (defence, attack)), None)


def section(bench: Bench, known: Known) -> str:
    """What is known of a data set; a sentence where nothing is."""
    found = points(bench, known)
    missing = len(bench.rows()) - len(found)
    more = f"\n{missing} points are not finished yet; the command above adds them.\n" if missing else ""
    if not found:
        return f"## {bench.title}\n{more}"
    return f"""## {bench.title}

{bench.n} images, Linf {bench.eps:.4g}; accuracy is the mean over {bench.protocol.draws} fresh draws, with 95 % Wilson
intervals over images.
{more}
![robust accuracy against gradients per image](attack_efficiency-{bench.name}.svg)

### Adaptive beside {bench.reference}

Paired on the same images; negative: Adaptive leaves less.

{chr(10).join(beside(bench, known))}

### Relatives of the defence

Mean gradients of the cross entropy on {bench.sizes.images} images, at the originals and at points that PGD found (20
iterations, 4 draws). Cosine: between the mean gradient of the relative and that of the defence, corrected for the noise
of both means, which can take it above 1 where a draw is nearly all noise, the median over images; in brackets of how
many, since draws can leave no positive squared length. Signal
to noise: squared length of the mean gradient by the variance of the gradient of one draw, summed over pixels, the
median over images. Cost: of a gradient, in gradients of the defence.

{chr(10).join(kin(bench, known))}

### All points

{chr(10).join((*HEADER, *(point.line for point in found)))}
"""


def beside(bench: Bench, known: Known) -> Iterator[str]:
    """What Adaptive leaves at each budget, minus what the reference leaves."""
    yield f"| defence | attack | gradients per image | robust % | {bench.reference} % | difference, points | p |"
    yield "|---|---|---|---|---|---|---|"
    smallest_first = sorted(at[0] for at in bench.budgets["Adaptive"])
    for name in bench.defences:
        reference = reached(bench, known, name, bench.reference)
        for attack in (called("Adaptive", (budget,)) for budget in smallest_first):
            one, key = reached(bench, known, name, attack), paired(name, attack, bench.reference)
            if reference is not None and one is not None and key in known.pairs:
                difference, low, high, p = known.pairs[key]
                apart = f"{100 * difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
                cells = (name, attack, f"{one.gradients or 0:.0f}", one.robust, reference.robust, apart)
                yield f"| {' | '.join(map(str, cells))} | {p:.2g} |".replace(" %", "")


def kin(bench: Bench, known: Known) -> Iterator[str]:
    """The table of relatives."""
    yield "| defence | relative | cost | cosine | signal to noise | cosine, attacked | signal to noise, attacked |"
    yield "|---|---|---|---|---|---|---|"
    for name in bench.defences:
        if name in known.relatives:
            own, *others = known.relatives[name]
            for one in (own, *others):
                cells = [f"{one['cost']:.3g}"]
                for where in ("", " attacked"):
                    cosine = f"{one[f'cosine{where}']:.2f} ({one[f'images{where}']})"
                    cells += ["1" if one is own else cosine, f"{one[f'signal{where}']:.2g}"]
                yield f"| {name} | {one['relative']} | {' | '.join(cells)} |"


def charts(bench: Bench, known: Known) -> list[Chart]:
    """A chart per defence with more than one attack, a line per family, from the points that say what they spent."""
    drawn = []
    for name in bench.defences:
        found = {point.attack: point for point in points(bench, known) if point.defence == name}
        lines = [
            series
            for style, family in enumerate(FAMILIES)
            if (series := _line(family.name, style, bench, found)) is not None
        ]
        if len(lines) > 1:
            drawn.append(_chart(bench, name, lines, list(found.values())))
    return drawn


def _line(name: str, style: int, bench: Bench, found: Mapping[str, Point]) -> Series | None:
    spots = []
    for settings in bench.budgets.get(name, ()):
        point = found.get(called(name, settings))
        if point is not None and point.gradients and point.robust is not None:
            robust = point.robust
            spots.append((point.gradients, robust.estimate, robust.low, robust.high))
    if not spots:
        return None
    x, y, low, high = zip(*sorted(spots), strict=True)
    return Series(name, x, y, low, high, style)


def _chart(bench: Bench, name: str, series: list[Series], found: list[Point]) -> Chart:
    return Chart(
        f"attack-efficiency-{bench.name}-{name}",
        f"{name}, {bench.title}",
        f"{100 * found[0].clean.estimate:.1f} % are right without attack. Each point is an attack of its own on "
        f"{bench.n} images, Linf {bench.eps:.4g}, decided on {bench.protocol}; 95 % Wilson intervals over images.",
        (),
        tuple(series),
        x_label="gradients spent per image (a forward pass is a half)",
        y_label="robust accuracy, %",
        percent=True,
        logarithmic=True,
        warnings=warned(found),
    )


def write(benches: Sequence[Bench], known: dict[str, Known], out: Path) -> Path:
    """attack_efficiency.json, attack_efficiency.md and the pictures in ``out``."""
    save(known, out / KEPT)
    sections = []
    for bench in benches:
        one = known.get(bench.name, Known())
        sections.append(section(bench, one))
        if drawn := charts(bench, one):
            for kind in ("svg", "png"):
                replace_file(out / f"attack_efficiency-{bench.name}.{kind}", picture(drawn, kind))
    text = f"""# What attacks find for what they cost

Written by `python -m bench.attack_efficiency`: bundled networks, defences and images as in [digits.md](digits.md) and
[cifar10.md](cifar10.md). A gradient is one draw of the defence, forward and backward; a forward pass is a half, a
cheaper gradient its share of the network passes. Attacks are named by iterations x draws per gradient (of each restart
and member), Adaptive by its budget. Attacks leave alone what they take for broken, so that they spend less than they
might; an Adaptive that spent clearly less than its budget has stopped by itself. "AutoAttack rand" is ours, which gives
an image up when no choosing draw is right; pyautoattack's gives it up on one wrong draw, so that on fresh draws it
leaves more than it believes, and it counts gradients for all images together. Hours: shared cores, not comparable.
[{KEPT}]({KEPT}) has what came out for each image of the points measured since it exists.

{chr(10).join(sections)}"""
    return replace_file(out / "attack_efficiency.md", text.encode())


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/efficiency"))
    parser.add_argument("--out", type=Path, help="bench/results; for a trial the folder of its runs")
    parser.add_argument("--only", choices=("digits", "cifar10"))
    parser.add_argument(
        "--data-path", type=Path, help="CIFAR-10: official archive, its folder, or JPEG packs"
    )
    parser.add_argument("--table-only", action="store_true")
    parser.add_argument("--anew", action="store_true", help="forget what is known without a run file")
    parser.add_argument("--small", action="store_true", help="a trial on four digits, which shows nothing")
    options = parser.parse_args(words)
    benches = [SMALL] if options.small else [DIGITS, CIFAR10]
    chosen = [bench for bench in benches if options.only in (None, bench.name)]
    out = options.out or (options.runs if options.small else RESULTS)
    for bench in chosen if not options.table_only else ():
        folder = options.runs / bench.name
        folder.mkdir(parents=True, exist_ok=True)
        if bench is CIFAR10:
            if options.data_path is None:
                parser.error("--data-path is needed, unless --table-only or --only digits")
            bench = replace(bench, data=robustness_cifar10.images(options.data_path))
        run(bench, folder, Known() if options.anew else known_of(bench, load(out / KEPT)))
    out.mkdir(parents=True, exist_ok=True)
    options.runs.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(options.runs / "known.lock"):
        # Anew: others may have added theirs in the hours meanwhile.
        known = load(out / KEPT)
        for bench in chosen:
            known[bench.name] = Known(bench.setting) if options.anew else known_of(bench, known)
            gather(bench, options.runs / bench.name, known[bench.name])
        print(f"wrote {write(benches, known, out)}")


def known_of(bench: Bench, known: Mapping[str, Known]) -> Known:
    """What is known of the bench's data set; SystemExit where that was measured with other settings."""
    found = known.get(bench.name, Known(bench.setting))
    if found.setting != bench.setting:
        said = f"{KEPT} has points of {bench.name} with {found.setting}, and the bench says {bench.setting}"
        raise SystemExit(f"{said}; --anew forgets them")
    return found


if __name__ == "__main__":
    main()
