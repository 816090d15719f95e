"""How robust is each defence on CIFAR-10 under one strong attack? Runs what is missing, then writes the table.

    python -m bench.robustness_cifar10 --data-path cifar-10-python.tar.gz    hours; continues after a kill
    python -m bench.robustness_cifar10 --data-path ... --l2                  the same attack in L2 as well
    python -m bench.robustness_cifar10 --data-path ... --sweeps              scales, times, iterations and draws as well
    python -m bench.robustness_cifar10 --table-only                          only write bench/results/cifar10.md

Start the command several times to use several cores (OMP_NUM_THREADS=1): each takes rows that no other is busy with.
Every row is a run of `fp.evaluate` in its own file under --runs; `fastpure report runs/cifar10/*.sqlite` draws them.

COUP's scale 16 comes from the sweep of scales, on images that no row of the table reports on: it had the highest of the
worst of four accuracies, under PGD with the exact gradient, with the one that leaves out the guidance's derivative and
with BPDA, and on the images found on DiffPure.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import fastpure as fp
from fastpure.data import Dataset, load_dataset
from fastpure.evaluate import Protocol, Run

from .cifar10_defences import (
    ADAPTIVE,
    ADAPTIVE_L2,
    ATTACKS,
    BEST,
    BUDGET,
    CORRUPTED,
    DEFENCES,
    EPS_L2,
    EXACT,
    IMAGES,
    PGD,
    PRECISION,
    SCALES,
    STANDARD,
    STEPS,
    SWEEP_IMAGES,
    TIMES,
    TRAINED,
    T,
    coup_name,
)
from .robustness import Row, Study, alarms, comparisons, finished, held, lines, lowest, run_rows

RESULTS = Path(__file__).parent / "results"
IDS = json.loads((RESULTS / "cifar10_images.json").read_text(encoding="utf-8"))
FRESH, SWEPT = fp.protocols.fresh(10), fp.protocols.fresh(5)

GUIDED = (coup_name(1.0), coup_name(BEST), "AGDM-style")
UNGUIDED = ("DiffPure", "COUP unguided")
PURIFYING = (*UNGUIDED, *GUIDED, "GDMP", "DDIM", "ADDT (DDIM)", "ADBM")
PAIRS = (
    UNGUIDED,
    *((base, name) for name in GUIDED[:2] for base in UNGUIDED),
    ("DiffPure", "AGDM-style"),
    ("DiffPure", "GDMP"),
    ("DDIM", "ADDT (DDIM)"),
    ("DDIM", "ADBM"),
)


def _row(defence: str, attack: str, protocol: Protocol = FRESH) -> Row:
    return Row(defence, attack, protocol, IMAGES)


def _swept(defence: str, attack: str = EXACT) -> Row:
    return Row(defence, attack, SWEPT, SWEEP_IMAGES, "tuning")


def _moved(row: Row, targets: Iterable[str]) -> Iterator[Row]:
    """The images found in a row, judged on other defences."""
    for target in targets:
        if target != row.defence:
            yield replace(row, defence=target, attack=f"Linf, found on {row.defence}", source=row)


ROWS = (
    *(_row(name, ADAPTIVE) for name in ("none", *PURIFYING, TRAINED)),
    _row(TRAINED, STANDARD),
    *_moved(_row("DiffPure", ADAPTIVE), PURIFYING),
    *(_row(name, CORRUPTED) for name in ("none", "DiffPure")),
    *(_row(coup_name(BEST), attack) for attack in ("PGD Linf", "PGD Linf, detached")),
)
"""The table, the rows that say most first."""

L2_ROWS = tuple(_row(name, ADAPTIVE_L2) for name in ("none", *PURIFYING))

SWEEPS = (
    *(
        _swept(coup_name(scale), attack)
        for attack in (EXACT, f"{EXACT}, detached", f"{EXACT}, bpda")
        for scale in SCALES
    ),
    _swept("DiffPure"),
    *_moved(_swept("DiffPure"), map(coup_name, SCALES)),
    *(_swept(name) for t in TIMES for name in (f"DiffPure t={t:g}", f"{coup_name(1.0)} t={t:g}")),
    _swept("COUP unguided"),
    *(_swept("DiffPure", f"PGD-10, EOT {eot}") for eot in (1, 4, 8)),
    *(_swept("DiffPure", f"PGD-{n_iter}, EOT 2") for n_iter in (5, 20, 40)),
    *(_swept(coup_name(BEST), f"PGD-10, EOT {eot}") for eot in (1, 4, 8)),
)
"""Settings and attacks beside each other on images that no other row has."""


def images(path: Path) -> Callable[[Row], Dataset]:
    """Row -> its images, by their positions in the official test set, so that any copy of CIFAR-10 gives the same."""
    test = load_dataset("cifar10", "test", path=path)
    position = {int(name): row for row, name in enumerate(test.sample_ids)}

    def chosen(row: Row) -> Dataset:
        return test.select(
            [position[name] for name in IDS["tuning" if row.split == "tuning" else "reported"][: row.n]]
        )

    return chosen


def counts(row: Row) -> bool:
    """Whether a row says what its defence withstands under Linf: an attack, judged on fresh draws."""
    return row.protocol is FRESH and "Linf" in row.attack


def against_adaptive(found: Mapping[Row, Run]) -> Iterator[str]:
    """The alarms that concern the adaptive attack: another gradient, or another's images, found more than it."""
    alone = {row: run for row, run in found.items() if "Adaptive" in row.attack or row.source is not None}
    yield from alarms(alone)


def swept(folder: Path) -> str:
    """The section on the sweeps; empty while none of them is finished."""
    found = finished(SWEEPS, folder)
    if not found:
        return ""
    cells = []
    for row, run in found.items():
        report = fp.Report.of(run)
        cells.append(f"| {row.defence} | {row.attack} | {report.clean} | {report.robust} |".replace(" %", ""))
    return f"""
## Sweeps

{SWEEP_IMAGES} images that no row above reports on; {SWEPT.draws} fresh draws, Linf 8/255.

| defence | attack | clean % | robust % |
|---|---|---|---|
{chr(10).join(cells)}
"""


def write(folder: Path) -> Path:
    """bench/results/cifar10.md from the finished runs."""
    found = finished((*ROWS, *L2_ROWS), folder)
    names = dict.fromkeys(row.defence for row in found)
    missing = sum(row not in found for row in ROWS)
    more = f"\n{missing} rows are not finished yet; the command above adds them.\n" if missing else ""
    scales = ", ".join(f"{scale:g}" for scale in SCALES)
    text = f"""# Robustness on CIFAR-10

Written by `python -m bench.robustness_cifar10 --data-path PATH`: the bundled small networks
([how they were made](../../fastpure/zoo/README.md)), {IMAGES} test images ([which](cifar10_images.json)), t = {T:g},
{STEPS} steps of the exponential integrator (DDPM and DDIM for those that are made for them), networks in {PRECISION}.
Linf 8/255, L2 {EPS_L2}. Adaptive: a budget of {BUDGET:g} gradients per image and nothing else. For comparison, PGD with
{PGD["n_iter"]} iterations and {PGD["eot_iter"]} draws per gradient, with the exact gradient and with guidance taken for
constant ("detached"); the images that Adaptive found on DiffPure; and random salt and pepper. What PGD with other
gradients and draws, APGD and DW-box left of most rows: [cifar10_pgd.md](cifar10_pgd.md). "{TRAINED}": a
classifier trained with TRADES, without a purifier, where AutoAttack standard, as published, says what is true. Accuracy
is the mean over {FRESH.draws} fresh draws if not said otherwise, with 95 % Wilson intervals over images.

Gradients per image: of the defence, as the attack counted them; a forward pass is a half, a cheaper gradient its share
of the network passes. Network calls: images through the network, a gradient counts twice; at most, where the attack
does not count. Hours: one thread of a shared machine.

COUP's scale {BEST:g} is not tuned on this table. It comes from a sweep over {scales}
on {SWEEP_IMAGES} other images under PGD-10 with 2 draws ([picture](../../docs/cifar10/accuracy-against-scale.svg)),
where it had the highest of the worst of four accuracies: exact gradient, detached, BPDA, and the images found on
DiffPure. A sweep under Adaptive might choose another.
{more}
{chr(10).join(lines(found))}

## What each defence withstands under Linf

The lowest number over the attacks tried, which is an upper bound of the robustness; in the last column an attacker
chooses for each image the attack that worked best on half of the draws, and is judged on the others.

{chr(10).join(lowest(found, names, counts))}

## Was Adaptive beaten?

Beside the lowest of all other rows, paired on the same images; the minimum over several rows is low by chance too.

{chr(10).join(held(found, ADAPTIVE, counts))}

Of the checks that compare an exact gradient with inexact ones and with others' images, those that speak against
Adaptive:

{chr(10).join(against_adaptive(found)) or "None."}

## Where an attack was weak

All checks that compare runs of one defence (`fastpure.evaluate.across`):

{chr(10).join(alarms(found)) or "No alarm."}

## Paired on the same images

{chr(10).join(comparisons(found, PAIRS, counts))}
{swept(folder)}"""
    table = RESULTS / "cifar10.md"
    table.write_text(text, encoding="utf-8")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/cifar10"))
    parser.add_argument(
        "--data-path", type=Path, help="CIFAR-10: official archive, its folder, or JPEG packs"
    )
    parser.add_argument("--l2", action="store_true", help="after the table, the adaptive attack in L2")
    parser.add_argument("--sweeps", action="store_true", help="at last, the sweeps")
    parser.add_argument("--table-only", action="store_true")
    options = parser.parse_args()
    if not options.table_only:
        if options.data_path is None:
            parser.error("--data-path is needed, unless --table-only")
        options.runs.mkdir(parents=True, exist_ok=True)
        study = Study(DEFENCES, ATTACKS, images(options.data_path), batch_size=64)
        run_rows(study, ROWS, options.runs)
        if options.l2:
            run_rows(study, L2_ROWS, options.runs)
        if options.sweeps:
            run_rows(study, SWEEPS, options.runs)
    print(f"wrote {write(options.runs)}")


if __name__ == "__main__":
    main()
