"""How robust is each defence on digits, under which attack? Runs what is missing, then writes the table.

    python -m bench.robustness_digits                     about an hour on one free core; continues after a kill
    python -m bench.robustness_digits --table-only        only write bench/results/digits.md from finished runs

Every row is a run of `fp.evaluate` in its own file under --runs, so that an interrupted table continues, and
`fastpure report runs/digits/*.sqlite` draws it. Defences are compared at one diffusion time and number of steps, fixed
beforehand; nothing is tuned on the images reported on. COUP's scale 2 is the demo's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import nn

import fastpure as fp
from fastpure.attacks.base import Attack
from fastpure.data import load_dataset
from fastpure.evaluate import Protocol, Run, across

T, STEPS, EPS, IMAGES = 0.15, 12, 0.2, 100
DT = T / STEPS
TABLE = Path(__file__).parent / "results" / "digits.md"
FRESH = fp.protocols.fresh(10)
DETERMINISTIC = fp.protocols.dw_box()

PGD = {"norm": "Linf", "eps": EPS, "n_iter": 20, "eot_iter": 4}
APGD = {"norm": "Linf", "eps": EPS, "n_iter": 40, "eot_iter": 8}


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    defence: str
    attack: str
    protocol: Protocol = FRESH
    n: int = IMAGES

    @property
    def file(self) -> str:
        words = f"{self.defence} {self.attack} {self.protocol.name}"
        return "-".join("".join(c if c.isalnum() else " " for c in words).split()) + f"-{self.n}.sqlite"


ATTACKS: dict[str, Callable[[], Attack | None]] = {
    "none": lambda: None,
    "PGD": lambda: fp.attacks.PGD(**PGD),
    "PGD, detached": lambda: fp.attacks.PGD(**PGD, gradient="detached"),
    "PGD, BPDA": lambda: fp.attacks.PGD(**PGD, gradient="bpda"),
    "PGD, surrogate": lambda: fp.attacks.PGD(**PGD, gradient="surrogate", surrogate_steps=4),
    "APGD-CE": lambda: fp.attacks.APGDCE(**APGD),
    "APGD-CE, detached": lambda: fp.attacks.APGDCE(**APGD, gradient="detached"),
    "AutoAttack rand": lambda: fp.attacks.AutoAttack(
        version="rand", norm="Linf", eps=EPS, n_iter=25, eot_iter=8
    ),
    "AutoAttack standard": lambda: fp.attacks.AutoAttack(
        version="standard", norm="Linf", eps=EPS, n_iter=25, n_target_classes=3, n_queries=300
    ),
    "DW-box": lambda: fp.attacks.DWPGD(norm="Linf", eps=EPS, n_iter=40),
    "salt and pepper": lambda: fp.controls.SaltAndPepper(),
}

DEFENCES: dict[str, Callable[[], nn.Module]] = {
    "none": lambda: fp.load_classifier("digits"),
    "DiffPure": lambda: defended(fp.methods.diffpure(T, DT)),
    "COUP unguided": lambda: defended(fp.methods.coup_unguided(T, DT)),
    "COUP scale 1": lambda: defended(fp.methods.coup(fp.load_classifier("digits"), T, DT, scale=1.0)),
    "COUP scale 2": lambda: defended(fp.methods.coup(fp.load_classifier("digits"), T, DT, scale=2.0)),
    # 6e4 for 3072 pixels and steps of one index: the same pull for 64 pixels and steps of 12.
    "GDMP": lambda: defended(fp.methods.gdmp(t=T, rounds=1, chain=80, guide_scale=100.0)),
    "AGDM-style": lambda: defended(
        fp.methods.agdm(fp.load_classifier("digits-aux"), t=T, dt=DT, sampler="sde", scale=1.0)
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

COUP = "COUP scale 2"
ROWS: tuple[Row, ...] = (
    Row("none", "PGD"),
    *(Row(name, "PGD") for name in DEFENCES if name != "none"),
    *(Row(name, "PGD, BPDA") for name in DEFENCES if name != "none"),
    *(
        Row(name, "PGD, detached")
        for name in (COUP, "COUP scale 1", "ADDT + COUP", "ADBM + COUP", "AGDM-style")
    ),
    Row(COUP, "PGD, surrogate"),
    Row("DiffPure", "PGD, surrogate"),
    *(Row(name, "DW-box", DETERMINISTIC) for name in ("DiffPure", "COUP unguided", COUP)),
    *(Row(name, "salt and pepper") for name in ("none", "DiffPure", "COUP unguided", COUP)),
    *(Row(name, "APGD-CE") for name in ("DiffPure", "COUP unguided", COUP)),
    Row(COUP, "APGD-CE, detached"),
    *(Row(name, "AutoAttack rand") for name in ("DiffPure", "COUP unguided", COUP)),
    *(Row(name, "AutoAttack standard", n=40) for name in ("DiffPure", COUP)),
)

PAIRS = (("DiffPure", COUP), ("COUP unguided", COUP))


def guide() -> nn.Module:
    return fp.load_classifier("digits")


def defended(method: fp.methods.Method, denoiser: str = "digits") -> fp.Defense:
    return fp.Defense(fp.Purifier(fp.load_denoiser(denoiser), method, seed=0), fp.load_classifier("digits"))


def run(row: Row, folder: Path) -> None:
    data = load_dataset("digits", "test").subset(row.n, data_seed=0)
    defence, attack = DEFENCES[row.defence](), ATTACKS[row.attack]()
    report = fp.evaluate(
        defence, data, attack, row.protocol, folder / row.file, batch_size=50, progress=False
    )
    print(f"{row.defence:<16} {row.attack:<20} clean {report.clean}  robust {report.robust}", flush=True)


def lines(folder: Path) -> Iterator[str]:
    """The table, one line per finished run."""
    yield "| defence | attack | decided on | images | clean % | robust % | on fresh noise % | seconds | warnings |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for row in ROWS:
        if not (folder / row.file).exists():
            continue
        report = fp.Report.of(Run.open(folder / row.file))
        if report.n_images < report.n_total or report.robust is None:
            continue
        numbers = [
            str(value).replace(" %", "") if value else ""
            for value in (report.clean, report.robust, report.transfer)
        ]
        warnings = "; ".join(finding.name for finding in report.warnings)
        seconds = sum(report.seconds.values())
        yield (
            f"| {row.defence} | {row.attack} | {row.protocol} | {row.n} | "
            + " | ".join(numbers)
            + f" | {seconds:.0f} | {warnings} |"
        )


def comparisons(folder: Path) -> Iterator[str]:
    """Paired comparisons of COUP with its ablations, per attack."""
    yield "| attack | a | b | b - a, points | better / worse images | exact McNemar p |"
    yield "|---|---|---|---|---|---|"
    for attack in dict.fromkeys(row.attack for row in ROWS):
        for a, b in PAIRS:
            found = {
                row.defence: folder / row.file
                for row in ROWS
                if row.attack == attack and row.defence in (a, b)
            }
            if len(found) < 2 or not all(path.exists() for path in found.values()):
                continue
            result = fp.compare(found[a], found[b])
            yield (
                f"| {attack} | {a} | {b} | {100 * result.difference:+.1f} [{100 * result.low:+.1f}, "
                f"{100 * result.high:+.1f}] | {result.wins} / {result.losses} | {result.p_value:.2g} |"
            )


def lowest(folder: Path) -> Iterator[str]:
    """Per defence the attack that found most, judged on fresh draws: what the defence can be said to withstand."""
    yield "| defence | clean % | lowest robust % | found by |"
    yield "|---|---|---|---|"
    for name in DEFENCES:
        rows = [row for row in ROWS if row.defence == name and row.protocol is FRESH and row.n == IMAGES]
        rows = [row for row in rows if "pepper" not in row.attack and (folder / row.file).exists()]
        reports = [(row, fp.Report.of(Run.open(folder / row.file))) for row in rows]
        done = [
            (report.robust, row, report)
            for row, report in reports
            if report.robust and report.n_images == row.n
        ]
        if not done:
            continue
        robust, row, report = min(done, key=lambda entry: entry[0].estimate)
        yield f"| {name} | {report.clean} | **{robust}** | {row.attack} |".replace(" %", "")


def alarms(folder: Path) -> Iterator[str]:
    """What the runs of one defence say about each other's attacks."""
    for name in DEFENCES:
        files = [folder / row.file for row in ROWS if row.defence == name and (folder / row.file).exists()]
        for finding in across([Run.open(file) for file in files]):
            if finding.alarm:
                yield f"- {name}, {finding.explanation}"


def write(folder: Path) -> None:
    text = f"""# Robustness on digits

Written by `python -m bench.robustness_digits`: bundled networks, {IMAGES} or 40 images of
`load_dataset("digits", "test").subset(n, data_seed=0)`, Linf {EPS}, t = {T}, {STEPS} steps where a method has them.
PGD: 20 iterations, 4 draws; APGD: 40 iterations, 8 draws; AutoAttack rand: 25 iterations of each member, 8 draws;
AutoAttack standard: 25 iterations, 3 target classes, 300 queries of Square; DW-box: PGD-40 on one known draw, also
judged on ten fresh ones. Accuracy is the mean over ten fresh draws unless said otherwise, with 95 % Wilson intervals
over images. These budgets compare rows; larger ones would lower every number. Seconds: shared cores, not comparable.

{chr(10).join(lines(folder))}

## What each defence withstands

The lowest number over the attacks tried, which is an upper bound of the robustness.

{chr(10).join(lowest(folder))}

## Where an attack was weak

Checks that compare runs of one defence (`fastpure.evaluate.across`):

{chr(10).join(alarms(folder))}

## Does guidance help? Paired on the same images

{chr(10).join(comparisons(folder))}
"""
    TABLE.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/digits"))
    parser.add_argument("--table-only", action="store_true")
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    if not options.table_only:
        for row in ROWS:
            run(row, options.runs)
    write(options.runs)
    print(f"wrote {TABLE}")


if __name__ == "__main__":
    main()
