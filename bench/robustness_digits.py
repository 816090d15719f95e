"""How robust is each defence on digits, under which attack? Runs what is missing, then writes the table.

    python -m bench.robustness_digits                     hours on one core; continues after a kill
    python -m bench.robustness_digits --table-only        only write bench/results/digits.md from finished runs

Every row is a run of `fp.evaluate` in its own file under --runs, so that an interrupted table continues, and
`fastpure report runs/digits/*.sqlite` draws it. Defences are compared at one diffusion time and number of steps, fixed
beforehand; nothing is tuned on the images reported on. COUP's scale 2 is the demo's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from torch import nn

import fastpure as fp
from fastpure.attacks.base import Attack
from fastpure.data import Dataset, load_dataset
from fastpure.evaluate import Protocol, Run

from .robustness import Row, Study, alarms, comparisons, finished, held, lines, lowest, points, run_rows

T, STEPS, EPS, IMAGES = 0.15, 12, 0.2, 100
DT = T / STEPS
TABLE = Path(__file__).parent / "results" / "digits.md"
FRESH = fp.protocols.fresh(10)
DETERMINISTIC = fp.protocols.dw_box()

BUDGET = 328.0
"""As much as one APGD-CE of 40 iterations and 8 draws takes."""

# Names as in `bench.attack_efficiency`: the same run in the same folder is one file.
ADAPTIVE, QUARTER, PGD_20, APGD_40 = "Adaptive 328", "Adaptive 82", "PGD 20 x 4", "APGD-CE 40 x 8"
STANDARD = "AutoAttack standard"
TRAINED, COUP = "adversarially trained", "COUP scale 2"
PGD = {"norm": "Linf", "eps": EPS, "n_iter": 20, "eot_iter": 4}
APGD = {"norm": "Linf", "eps": EPS, "n_iter": 40, "eot_iter": 8}


ATTACKS: dict[str, Callable[[], Attack | None]] = {
    "none": lambda: None,
    ADAPTIVE: lambda: fp.attacks.Adaptive(norm="Linf", eps=EPS, budget=BUDGET),
    QUARTER: lambda: fp.attacks.Adaptive(norm="Linf", eps=EPS, budget=BUDGET / 4),
    PGD_20: lambda: fp.attacks.PGD(**PGD),
    f"{PGD_20}, detached": lambda: fp.attacks.PGD(**PGD, gradient="detached"),
    APGD_40: lambda: fp.attacks.APGDCE(**APGD),
    f"{APGD_40}, detached": lambda: fp.attacks.APGDCE(**APGD, gradient="detached"),
    STANDARD: lambda: fp.attacks.AutoAttack(version="standard", norm="Linf", eps=EPS),
    "DW-box": lambda: fp.attacks.DWPGD(norm="Linf", eps=EPS, n_iter=40),
    "salt and pepper": lambda: fp.controls.SaltAndPepper(),
}

DEFENCES: dict[str, Callable[[], nn.Module]] = {
    "none": lambda: fp.load_classifier("digits"),
    TRAINED: lambda: fp.load_classifier("digits-aux"),
    "DiffPure": lambda: defended(fp.methods.diffpure(T, DT)),
    "COUP unguided": lambda: defended(fp.methods.coup_unguided(T, DT)),
    "COUP scale 1": lambda: defended(fp.methods.coup(fp.load_classifier("digits"), T, DT, scale=1.0)),
    "COUP scale 2": lambda: defended(fp.methods.coup(fp.load_classifier("digits"), T, DT, scale=2.0)),
    # 6e4 for 3072 pixels and steps of one index: the same pull for 64 pixels and steps of 12.
    "GDMP": lambda: defended(fp.methods.gdmp(t=T, rounds=1, chain=80, begin="level", guide_scale=100.0)),
    # The results are of penultimate features, though the paper's distance is one of logits.
    "AGDM-style": lambda: defended(
        fp.methods.agdm(
            fp.load_classifier("digits-aux"), t=T, dt=DT, sampler="sde", scale=1.0, latent="penultimate"
        )
    ),
    "DDIM-6": lambda: defended(fp.methods.addt("ddim", n_steps=33, strength=T)),
    "ADDT (DDIM-6)": lambda: defended(fp.methods.addt("ddim", n_steps=33, strength=T), "digits-addt"),
    "ADBM (DDIM-5)": lambda: defended(fp.methods.adbm(t=T, n_steps=5), "digits-adbm"),
    "ADDT + COUP": lambda: defended(
        fp.methods.addt("ddim", 33, T, classifier=guide(), scale=2.0), "digits-addt"
    ),
    "ADBM + COUP": lambda: defended(fp.methods.adbm(T, 5, classifier=guide(), scale=2.0), "digits-adbm"),
    "likelihood max.": lambda: defended(fp.methods.likelihood_max()),
}


SOURCES = ("DiffPure", "COUP unguided", COUP, "likelihood max.")
"""The defences that a whole APGD-CE is spent on, beside Adaptive with as much and with a quarter of it."""


def _row(defence: str, attack: str, protocol: Protocol = FRESH, n: int = IMAGES) -> Row:
    return Row(defence, attack, protocol, n)


def _moved(source: str) -> Iterator[Row]:
    """The images that APGD found on ``source``, judged on all others."""
    row = _row(source, APGD_40)
    for name in DEFENCES:
        if name not in ("none", TRAINED, source):
            yield replace(row, defence=name, attack=f"found on {source}", source=row)


ROWS: tuple[Row, ...] = (
    *(_row(name, ADAPTIVE) for name in DEFENCES),
    _row(TRAINED, STANDARD),
    *(_row(name, attack) for attack in (APGD_40, QUARTER) for name in SOURCES),
    _row(COUP, f"{APGD_40}, detached"),
    *_moved("DiffPure"),
    *_moved("COUP unguided"),
    *(_row(name, PGD_20) for name in DEFENCES if name != TRAINED),
    *(
        _row(name, f"{PGD_20}, detached")
        for name in (COUP, "COUP scale 1", "ADDT + COUP", "ADBM + COUP", "AGDM-style")
    ),
    *(_row(name, "DW-box", DETERMINISTIC) for name in ("DiffPure", "COUP unguided", COUP)),
    *(_row(name, "salt and pepper") for name in ("none", "DiffPure", "COUP unguided", COUP)),
)

PAIRS = (("DiffPure", COUP), ("COUP unguided", COUP))


def guide() -> nn.Module:
    return fp.load_classifier("digits")


def defended(method: fp.methods.Method, denoiser: str = "digits") -> fp.Defense:
    return fp.Defense(fp.Purifier(fp.load_denoiser(denoiser), method, seed=0), fp.load_classifier("digits"))


def data(row: Row) -> Dataset:
    return load_dataset("digits", "test").subset(row.n, data_seed=0)


STUDY = Study(DEFENCES, ATTACKS, data, batch_size=IMAGES)


def counts(row: Row) -> bool:
    """Whether a row says what its defence withstands: an attack, judged on fresh draws of all images."""
    return row.protocol is FRESH and row.n == IMAGES and "pepper" not in row.attack


def quarters(found: Mapping[Row, Run]) -> Iterator[str]:
    """What Adaptive leaves with a quarter of what the one beside it may spend."""
    yield f"| defence | {QUARTER} % | {APGD_40} % | difference, points | p |"
    yield "|---|---|---|---|---|"
    for name in SOURCES:
        small, large = (found.get(_row(name, attack)) for attack in (QUARTER, APGD_40))
        if small is not None and large is not None:
            result = fp.compare(large, small)
            robust = [str(fp.Report.of(run).robust).replace(" %", "") for run in (small, large)]
            yield f"| {name} | {' | '.join(robust)} | {points(result)} | {result.p_value:.2g} |".replace(
                " %", ""
            )


def write(folder: Path) -> None:
    found = finished(ROWS, folder)
    missing = sum(row not in found for row in ROWS)
    more = f"\n{missing} rows are not finished yet; the command above adds them.\n" if missing else ""
    text = f"""# Robustness on digits

Written by `python -m bench.robustness_digits`: bundled networks, {IMAGES} images of
`load_dataset("digits", "test").subset(n, data_seed=0)`, Linf {EPS}, t = {T}, {STEPS} steps where a method has them.
Adaptive: a budget of {BUDGET:g} or {BUDGET / 4:g} gradients per image and nothing else; PGD: 20 iterations, 4 draws;
APGD: 40 iterations, 8 draws; DW-box: PGD-40 on one known draw, also judged on ten fresh ones. "{TRAINED}": a classifier
trained with TRADES alone, without a purifier, where AutoAttack standard (as published, no setting changed) says what is
true. Accuracy is the mean over ten fresh draws unless said otherwise, with 95 % Wilson intervals over images. The same
defences under PGD with other gradients and under AutoAttack, measured earlier: [digits_pgd.md](digits_pgd.md).

Gradients per image: of the defence, as the attack counted them; a forward pass is a half, a cheaper gradient its share
of the network passes. Network calls: images through the network, a gradient counts twice; at most, where the attack
does not count. Hours: shared cores, not comparable.
{more}
{chr(10).join(lines(found))}

## What each defence withstands

The lowest number over the attacks tried, which is an upper bound of the robustness; in the last column an attacker
chooses for each image the attack that worked best on half of the draws, and is judged on the others.
"found on": the images that {APGD_40} found on that defence.

{chr(10).join(lowest(found, DEFENCES, counts))}

## Was Adaptive beaten?

Beside the lowest of all other rows, paired on the same images; the minimum over many rows is low by chance too.

{chr(10).join(held(found, ADAPTIVE, lambda row: counts(row) and row.attack != QUARTER))}

## A quarter of the budget

Adaptive with {BUDGET / 4:g} gradients per image beside {APGD_40}, which may take {BUDGET:g}; negative: Adaptive leaves
less.

{chr(10).join(quarters(found))}

## Where an attack was weak

Checks that compare runs of one defence (`fastpure.evaluate.across`):

{chr(10).join(alarms(found)) or "No alarm."}

## Does guidance help? Paired on the same images

{chr(10).join(comparisons(found, PAIRS, counts))}
"""
    TABLE.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/digits"))
    parser.add_argument("--table-only", action="store_true")
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    if not options.table_only:
        run_rows(STUDY, ROWS, options.runs)
    write(options.runs)
    print(f"wrote {TABLE}")


if __name__ == "__main__":
    main()
