"""How robust is each defence on CIFAR-10, under which attack? Runs what is missing, then writes the table.

    python -m bench.robustness_cifar10 --data-path cifar-10-python.tar.gz    hours; continues after a kill
    python -m bench.robustness_cifar10 --table-only                          only write bench/results/cifar10.md

Start the command several times to use several cores (OMP_NUM_THREADS=1): each takes rows that no other is busy with.
Every row is a run of `fp.evaluate` in its own file under --runs; `fastpure report runs/cifar10/*.sqlite` draws them.
COUP's scale is chosen on images that no row reports on, by the worst of four accuracies: under the exact gradient,
under the one that leaves out the guidance's derivative, under BPDA, and on the images found on DiffPure.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import fastpure as fp
from fastpure.data import Dataset, load_dataset
from fastpure.evaluate import Protocol

from .cifar10_defences import (
    ATTACKS,
    CORRUPTED,
    DEFENCES,
    EPS_L2,
    EXACT,
    IMAGES,
    MANY_DRAWS,
    PGD,
    PRECISION,
    SCALES,
    STEPS,
    TIMES,
    TUNING_IMAGES,
    T,
    coup_name,
)
from .robustness import Row, Study, alarms, comparisons, finished, lines, lowest, run_rows

TRANSFERRED = ("DiffPure", "COUP unguided")
"""Whose adversarial images the others are judged on."""
RESULTS = Path(__file__).parent / "results"
IDS = json.loads((RESULTS / "cifar10_images.json").read_text(encoding="utf-8"))
FRESH = fp.protocols.fresh(5)
KNOWN = fp.protocols.dw_box(transfer_draws=5)
GRADIENTS = (EXACT, f"{EXACT}, detached", f"{EXACT}, bpda")


def _row(defence: str, attack: str, protocol: Protocol = FRESH) -> Row:
    return Row(defence, attack, protocol, IMAGES)


def _tuning(defence: str, attack: str = EXACT) -> Row:
    return Row(defence, attack, FRESH, TUNING_IMAGES, "tuning")


def _moved(row: Row, *targets: str) -> Iterator[Row]:
    """The images found in a row, judged on other defences."""
    for target in targets:
        if target != row.defence:
            norm = "L2" if row.attack == "PGD L2" else "Linf"
            draws = ", EOT 8" if row.attack == MANY_DRAWS else ""
            yield replace(row, defence=target, attack=f"{norm}, found on {row.defence}{draws}", source=row)


TUNING = (
    *(_tuning(coup_name(scale), attack) for attack in GRADIENTS for scale in SCALES),
    _tuning("DiffPure"),
    *_moved(_tuning("DiffPure"), *(coup_name(scale) for scale in SCALES)),
)
SWEEPS = (
    *(_tuning(name) for t in TIMES for name in (f"DiffPure t={t:g}", f"{coup_name(1.0)} t={t:g}")),
    _tuning("COUP unguided"),
    *(_tuning("DiffPure", f"PGD-10, EOT {eot}") for eot in (1, 4, 8)),
    *(_tuning("DiffPure", f"PGD-{n_iter}, EOT 2") for n_iter in (5, 20, 40)),
    *(_tuning(coup_name(16), f"PGD-10, EOT {eot}") for eot in (1, 4, 8)),
)


@dataclass(frozen=True)
class Choice:
    """The scale found on the tuning images: its defence's name."""

    best: str

    @staticmethod
    def of(folder: Path) -> Choice | None:
        """From finished tuning runs; None while some are missing."""
        found = finished(TUNING, folder)
        if len(found) < len(TUNING):
            return None
        worse: dict[str, float] = {}
        for row, run in found.items():
            if not row.defence.startswith("COUP scale"):
                continue
            robust = float(run.values("adversarial").mean())
            worse[row.defence] = min(robust, worse.get(row.defence, 1.0))
        return Choice(max(worse, key=lambda name: worse[name]))


def table_rows(best: str) -> tuple[Row, ...]:
    """Rows of the table, the ones that say most first."""
    guided = tuple(dict.fromkeys((coup_name(1.0), best, "AGDM-style")))
    purifying = ("DiffPure", "COUP unguided", *guided, "GDMP")
    retrained = ("ADDT (DDIM)", "ADBM")
    everything = ("none", *purifying, *retrained)
    return (
        _row("none", "PGD Linf"),
        *(_row(name, "PGD Linf") for name in purifying),
        *(_row(name, "PGD Linf, detached") for name in guided),
        *(_row(name, CORRUPTED) for name in ("none", *purifying)),
        *(_row(name, "PGD Linf, BPDA") for name in purifying),
        *(moved for source in TRANSFERRED for moved in _moved(_row(source, "PGD Linf"), *purifying)),
        *(_row(name, "APGD-CE Linf") for name in ("none", *purifying)),
        *(_row(name, "PGD Linf") for name in ("DDIM", *retrained)),
        *(
            _row(name, attack)
            for attack in ("PGD Linf, BPDA", CORRUPTED, "APGD-CE Linf")
            for name in retrained
        ),
        *(moved for source in TRANSFERRED for moved in _moved(_row(source, "PGD Linf"), *retrained)),
        *(_row(name, "PGD L2") for name in everything),
        *_moved(_row("DiffPure", "PGD L2"), *purifying, *retrained),
        *(_row(name, MANY_DRAWS) for name in TRANSFERRED),
        *_moved(_row("DiffPure", MANY_DRAWS), *purifying, "DDIM", *retrained),
        *(_row(name, "DW-box Linf", KNOWN) for name in (*purifying, *retrained)),
    )


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


def tuned(folder: Path) -> Iterator[str]:
    """Accuracies on the tuning images."""
    yield "| defence | attack | clean % | robust % |"
    yield "|---|---|---|---|"
    for row, run in finished((*TUNING, *SWEEPS), folder).items():
        report = fp.Report.of(run)
        yield f"| {row.defence} | {row.attack} | {report.clean} | {report.robust} |".replace(" %", "")


def write(folder: Path) -> Path:
    """bench/results/cifar10.md from the finished runs."""
    choice = Choice.of(folder)
    if choice is None:
        raise SystemExit("the tuning runs are not finished; start the command without --table-only")
    found = finished(table_rows(choice.best), folder)
    names = dict.fromkeys(row.defence for row in found)
    pairs = [
        ("DiffPure", "COUP unguided"),
        *(
            (base, name)
            for name in dict.fromkeys((coup_name(1.0), choice.best))
            for base in ("DiffPure", "COUP unguided")
        ),
        ("DiffPure", "GDMP"),
        ("DiffPure", "AGDM-style"),
        ("DDIM", "ADDT (DDIM)"),
        ("DDIM", "ADBM"),
    ]
    missing = len(table_rows(choice.best)) - len(found)
    more = f"\n{missing} rows are not finished yet; the command above adds them.\n" if missing else ""
    text = f"""# Robustness on CIFAR-10

Written by `python -m bench.robustness_cifar10 --data-path PATH`: the bundled small networks
([how they were made](../../fastpure/zoo/README.md)), {IMAGES} test images ([which](cifar10_images.json)), t = {T:g},
{STEPS} steps of the exponential integrator (DDPM and DDIM for those that are made for them), networks in {PRECISION}.
Linf 8/255, L2 {EPS_L2}. PGD and APGD: {PGD["n_iter"]} iterations, {PGD["eot_iter"]} draws per gradient if not
said otherwise; DW-box: PGD-20 on one known draw, also judged on five fresh ones. Accuracy is the mean over five
fresh draws if not said otherwise, with 95 % Wilson intervals over images. These budgets compare rows; larger ones
would lower every number. Network calls: images through the network, a gradient counts twice, at most.
Hours: one thread of a shared machine. COUP's scale was chosen on {TUNING_IMAGES} other images: {choice.best[5:]}.
{more}
{chr(10).join(lines(found))}

## What each defence withstands under Linf

The lowest number over the attacks tried, which is an upper bound of the robustness; in the last column an attacker
chooses for each image the attack that worked best on half of the draws, and is judged on the others.

{chr(10).join(lowest(found, names, counts))}

## Where an attack was weak

Checks that compare runs of one defence (`fastpure.evaluate.across`):

{chr(10).join(alarms(found)) or "No alarm."}

## Paired on the same images

{chr(10).join(comparisons(found, pairs, counts))}

## On the tuning images

{TUNING_IMAGES} images that no row above reports on; five fresh draws, Linf 8/255.

{chr(10).join(tuned(folder))}
"""
    table = RESULTS / "cifar10.md"
    table.write_text(text, encoding="utf-8")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/cifar10"))
    parser.add_argument(
        "--data-path", type=Path, help="CIFAR-10: official archive, its folder, or JPEG packs"
    )
    parser.add_argument("--table-only", action="store_true")
    options = parser.parse_args()
    if not options.table_only:
        if options.data_path is None:
            parser.error("--data-path is needed, unless --table-only")
        options.runs.mkdir(parents=True, exist_ok=True)
        study = Study(DEFENCES, ATTACKS, images(options.data_path), batch_size=32)
        run_rows(study, TUNING, options.runs)
        choice = Choice.of(options.runs)
        if choice is None:
            raise SystemExit(
                "another process still runs tuning rows; start this one again when it has finished"
            )
        run_rows(study, table_rows(choice.best), options.runs)
        run_rows(study, SWEEPS, options.runs)
    print(f"wrote {write(options.runs)}")


if __name__ == "__main__":
    main()
