"""What does an attack find for what it costs? Robust accuracy against gradients per image; runs what is missing.

    python -m bench.attack_efficiency --only digits          an estimated two hours of one core; continues
    python -m bench.attack_efficiency --only cifar10 --data-path cifar-10-python.tar.gz    as long
    (with --runs holding a link "digits" to the runs of bench.robustness_digits, what both need is run once)
    python -m bench.attack_efficiency --table-only           only write attack_efficiency.md and the pictures

Start the command several times to use several cores (OMP_NUM_THREADS=1): each takes points that no other is busy with.
Every point is a run of `fp.evaluate` in its own file under --runs, the comparison of relatives a file per defence.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fastpure as fp
from fastpure.attacks.base import Attack
from fastpure.data import Dataset
from fastpure.evaluate import Protocol, Run
from fastpure.files import replace_file
from fastpure.report.charts import Chart, Series, picture, warned
from fastpure.report.data import open_entries

from . import cifar10_defences, robustness_cifar10, robustness_digits
from .published import PublishedRand
from .relatives import Sizes, measure
from .robustness import Makers, Row, Study, finished, gradients, lines, points, run_rows

RESULTS = Path(__file__).parent / "results"

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
        autoattack_on: the defences that AutoAttack is run on, ours and pyautoattack's, which take longest by far.
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
    autoattack_on: Sequence[str]
    protocol: Protocol
    n: int
    batch_size: int
    data: Callable[[Row], Dataset] | None
    sizes: Sizes

    def rows(self) -> tuple[Row, ...]:
        """All points: each at its place in every defence before the next."""
        found = []
        for name, settings in self.points():
            on = self.autoattack_on if "autoattack" in name.lower() else self.defences
            found += [Row(one, called(name, settings), self.protocol, self.n) for one in on]
        return tuple(found)

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
    ("DiffPure", robustness_digits.COUP),
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
    ("DiffPure",),
    robustness_cifar10.FRESH,
    32,
    32,
    None,
    Sizes(images=16, draws=32, batch_size=256),
)

SMALL = replace(
    DIGITS,
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


def run(bench: Bench, folder: Path) -> None:
    """Every point that is missing, then the comparisons of relatives that are."""
    study = bench.study()
    run_rows(study, bench.rows(), folder)
    for name in bench.defences:
        place = compared(folder, name)
        if not place.exists():
            data = study.data(Row(name, "none", bench.protocol, bench.sizes.images))
            found = measure(study.defences[name](), data, bench.eps, bench.sizes)
            replace_file(place, json.dumps(found, indent=1).encode())
            print(f"{name:<16} relatives", flush=True)


def compared(folder: Path, defence: str) -> Path:
    """The file with the comparison of the relatives of a defence."""
    return folder / f"{'-'.join(defence.replace('.', ' ').split())}-relatives.json"


def section(bench: Bench, folder: Path) -> str:
    """What is known of a data set; a sentence where nothing is."""
    found = finished(bench.rows(), folder)
    missing = len(bench.rows()) - len(found)
    more = f"\n{missing} points are not finished yet; the command above adds them.\n" if missing else ""
    if not found:
        return f"## {bench.title}\n{more}"
    ordered = dict(sorted(found.items(), key=lambda item: list(bench.defences).index(item[0].defence)))
    return f"""## {bench.title}

{bench.n} images, Linf {bench.eps:.4g}; accuracy is the mean over {bench.protocol.draws} fresh draws, with 95 % Wilson
intervals over images.
{more}
![robust accuracy against gradients per image](attack_efficiency-{bench.name}.svg)

### Adaptive beside {bench.reference}

Paired on the same images; negative: Adaptive leaves less.

{chr(10).join(beside(found, bench.reference))}

### Relatives of the defence

Mean gradients of the cross entropy on {bench.sizes.images} images, at the originals and at points that PGD found (20
iterations, 4 draws). Cosine: between the mean gradient of the relative and that of the defence, corrected for the noise
of both means, which can take it above 1 where a draw is nearly all noise, the median over images; in brackets of how
many, since draws can leave no positive squared length. Signal
to noise: squared length of the mean gradient by the variance of the gradient of one draw, summed over pixels, the
median over images. Cost: of a gradient, in gradients of the defence.

{chr(10).join(kin(bench, folder))}

### All points

{chr(10).join(lines(ordered))}
"""


def beside(found: Mapping[Row, Run], reference: str) -> Iterator[str]:
    """What Adaptive leaves at each budget, minus what the reference leaves."""
    yield f"| defence | attack | gradients per image | robust % | {reference} % | difference, points | p |"
    yield "|---|---|---|---|---|---|---|"
    for name in dict.fromkeys(row.defence for row in found):
        runs = {row.attack: run for row, run in found.items() if row.defence == name}
        for attack in sorted(
            (a for a in runs if a.startswith("Adaptive ")), key=lambda a: int(a.split()[-1])
        ):
            if reference in runs:
                result = fp.compare(runs[reference], runs[attack])
                robust = [fp.Report.of(runs[one]).robust for one in (attack, reference)]
                cells = (name, attack, f"{gradients(runs[attack]):.0f}", *robust, points(result))
                yield f"| {' | '.join(map(str, cells))} | {result.p_value:.2g} |".replace(" %", "")


def kin(bench: Bench, folder: Path) -> Iterator[str]:
    """The table of relatives."""
    yield "| defence | relative | cost | cosine | signal to noise | cosine, attacked | signal to noise, attacked |"
    yield "|---|---|---|---|---|---|---|"
    for name in bench.defences:
        if compared(folder, name).exists():
            own, *others = json.loads(compared(folder, name).read_text(encoding="utf-8"))
            for one in (own, *others):
                cells = [f"{one['cost']:.3g}"]
                for where in ("", " attacked"):
                    cosine = f"{one[f'cosine{where}']:.2f} ({one[f'images{where}']})"
                    cells += ["1" if one is own else cosine, f"{one[f'signal{where}']:.2g}"]
                yield f"| {name} | {one['relative']} | {' | '.join(cells)} |"


def charts(bench: Bench, folder: Path) -> list[Chart]:
    """A chart per defence, a line per family, from the finished runs that say what they spent."""
    drawn = []
    found = finished(bench.rows(), folder)
    for name in bench.defences:
        runs = {row.attack: run for row, run in found.items() if row.defence == name}
        lines_ = [
            series
            for style, family in enumerate(FAMILIES)
            if (series := _line(family.name, style, bench, runs)) is not None
        ]
        if lines_:
            drawn.append(_chart(bench, name, lines_, list(runs.values())))
    return drawn


def _line(name: str, style: int, bench: Bench, runs: Mapping[str, Run]) -> Series | None:
    spots = []
    for settings in bench.budgets.get(name, ()):
        run = runs.get(called(name, settings))
        spent = None if run is None else gradients(run)
        if run is not None and spent:
            robust = fp.Report.of(run).robust
            assert robust is not None
            spots.append((spent, robust.estimate, robust.low, robust.high))
    if not spots:
        return None
    x, y, low, high = zip(*sorted(spots), strict=True)
    return Series(name, x, y, low, high, style)


def _chart(bench: Bench, name: str, series: list[Series], runs: list[Run]) -> Chart:
    with ExitStack() as stack:
        entries = open_entries(runs, stack)
        clean = entries[0].summary.clean.estimate
        return Chart(
            f"attack-efficiency-{bench.name}-{name}",
            f"{name}, {bench.title}",
            f"{100 * clean:.1f} % are right without attack. Each point is an attack of its own; 95 % Wilson intervals "
            "over images.",
            tuple(entries),
            tuple(series),
            x_label="gradients spent per image (a forward pass is a half)",
            y_label="robust accuracy, %",
            percent=True,
            logarithmic=True,
            warnings=warned(entries),
        )


def write(benches: Sequence[Bench], runs: Path, out: Path) -> Path:
    """attack_efficiency.md and the pictures in ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    sections = []
    for bench in benches:
        folder = runs / bench.name
        sections.append(section(bench, folder))
        if drawn := charts(bench, folder):
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

{chr(10).join(sections)}"""
    return replace_file(out / "attack_efficiency.md", text.encode())


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/efficiency"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--only", choices=("digits", "cifar10"))
    parser.add_argument(
        "--data-path", type=Path, help="CIFAR-10: official archive, its folder, or JPEG packs"
    )
    parser.add_argument("--table-only", action="store_true")
    parser.add_argument("--small", action="store_true", help="a trial on four digits, which shows nothing")
    options = parser.parse_args(words)
    benches = [SMALL] if options.small else [DIGITS, CIFAR10]
    chosen = [bench for bench in benches if options.only in (None, bench.name)]
    if not options.table_only:
        for bench in chosen:
            folder = options.runs / bench.name
            folder.mkdir(parents=True, exist_ok=True)
            if bench is CIFAR10:
                if options.data_path is None:
                    parser.error("--data-path is needed, unless --table-only or --only digits")
                bench = replace(bench, data=robustness_cifar10.images(options.data_path))
            run(bench, folder)
    print(f"wrote {write(benches, options.runs, options.out)}")


if __name__ == "__main__":
    main()
