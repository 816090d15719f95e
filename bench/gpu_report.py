"""What a run of `make gpu` found, against the goals and against the model of a step.

    python -m bench.gpu_report build/gpu/rows.jsonl              everything
    python -m bench.gpu_report build/gpu/rows.jsonl --readme     the README's tables only

A peer counts with the best that was measured of it: the better layout of a plain loop, the fastest mode of
torch.compile. What was not measured is a dash. Of a figure measured twice the later row counts.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

import fastpure as fp
from bench.devices import DEVICES, DTYPES
from bench.roofline import PLANS, Prediction, fake_tensors, predict
from bench.rows import read
from bench.workloads import workload
from fastpure.data import Dataset
from fastpure.evaluate.plan import count_queries

Row = Mapping[str, Any]
NETWORK, DEVICE = "ddpmpp-cifar10", "h200"
OURS, COMPILED = "fastpure, store", "torch.compile"
CHECKPOINT_GOALS = {1: 5.0, 20: 4.0, 64: 2.8}
COMPILE_GOALS = {1: 1.2, 20: 1.2, 64: 1.05}
PRODUCT_GOAL, MEMORY_GOAL, HOURS_GOAL = 0.55, 0.60, 10.0
IMAGES = 512


@dataclass(frozen=True)
class Measured:
    """The rows of a run, found by what they measure."""

    rows: Sequence[Row]

    def one(self, figure: str, **labels: Any) -> Row | None:
        """The last row of this figure with these labels that has a value."""
        found = [
            row
            for row in self.rows
            if row.get("figure") == figure
            and "median" in row
            and all(row.get(name) == value for name, value in labels.items())
        ]
        return found[-1] if found else None

    def best(self, figure: str, who: str, **labels: Any) -> Row | None:
        """The fastest of those whose name begins with ``who``."""
        names = {str(row["who"]) for row in self.rows if str(row.get("who", "")).startswith(who)}
        found = [row for name in names if (row := self.one(figure, who=name, **labels)) is not None]
        return max(found, key=lambda row: row["median"], default=None)

    def batches(self) -> list[int]:
        return sorted({row["batch"] for row in self.rows if "who" in row and "median" in row})

    def precisions(self) -> list[str]:
        found = {row["precision"] for row in self.rows if "who" in row and "median" in row}
        return [name for name in DTYPES if name in found]

    def fastest(self, figure: str) -> Row | None:
        """Ours in bf16 at its best batch."""
        return self.best(figure, "fastpure", precision="bf16")


def ratio(ours: Row | None, peer: Row | None, goal: float | None = None) -> str:
    """How many times as fast ours is, beside what it should be."""
    if ours is None or peer is None:
        return "-" if goal is None else f"- ({goal:g})"
    value = ours["median"] / peer["median"]
    if goal is None:
        return f"{value:.2f}"
    return f"{value:.2f} ({goal:g}{'' if value >= goal else ', missed'})"


def rate(row: Row | None) -> str:
    return "-" if row is None else f"{row['median']:.0f}"


def _memory(row: Row | None) -> str:
    return "-" if row is None or "reserved_gb" not in row else f"{row['reserved_gb']:.2f}"


def gradient_table(found: Measured, goals: bool = True) -> Iterator[str]:
    peers = "checkpointing | torch.compile | its mode"
    yield f"| precision | B | fastpure | {peers} | times checkpointing | times torch.compile |"
    yield "|---|---|---|---|---|---|---|---|"
    for precision in found.precisions():
        for batch in found.batches():
            labels = {"precision": precision, "batch": batch}
            ours = found.one("gradient", who=OURS, **labels)
            checkpoint = found.best("gradient", "checkpoint", **labels)
            compiled = found.best("gradient", COMPILED, **labels)
            if ours is None and checkpoint is None and compiled is None:
                continue
            wanted = [
                known.get(batch) if goals and precision == "bf16" else None
                for known in (CHECKPOINT_GOALS, COMPILE_GOALS)
            ]
            mode = "-" if compiled is None else compiled["who"].removeprefix(COMPILED).strip()
            cells = [precision, str(batch), rate(ours), rate(checkpoint), rate(compiled), mode]
            cells += [ratio(ours, checkpoint, wanted[0]), ratio(ours, compiled, wanted[1])]
            yield f"| {' | '.join(cells)} |"


def purification_table(found: Measured) -> Iterator[str]:
    yield "| precision | B | fastpure | plain loop | torch.compile | times plain loop | times torch.compile |"
    yield "|---|---|---|---|---|---|---|"
    for precision in found.precisions():
        for batch in found.batches():
            labels = {"precision": precision, "batch": batch}
            ours, plain = (found.one("purification", who=who, **labels) for who in ("fastpure", "plain loop"))
            compiled = found.best("purification", COMPILED, **labels)
            if ours is None and plain is None and compiled is None:
                continue
            cells = [precision, str(batch), rate(ours), rate(plain), rate(compiled)]
            yield f"| {' | '.join([*cells, ratio(ours, plain), ratio(ours, compiled)])} |"


@cache
def attack_queries() -> tuple[float, float]:
    """Gradients and purifications per image of AutoAttack's rand mode, as an evaluation with 10 fresh draws asks.

    Counted by running the attack against a stand-in that is never broken, so the most that it can need.
    """
    classes = tuple(str(k) for k in range(10))
    images = Dataset(
        torch.zeros(2, 3, 32, 32), torch.zeros(2, dtype=torch.int64), torch.arange(2), classes, "", ""
    )
    attack, protocol = fp.attacks.AutoAttack(version="rand"), fp.protocols.fresh()
    gradients, judgements = count_queries(images, attack, protocol, random=True, purifies=True)
    return (
        gradients,
        judgements + 2 * protocol.draws,
    )  # the images and what became of them are judged in the end


def attack_hours(gradient_rate: float, purification_rate: float, images: int = IMAGES) -> float:
    """Hours of that attack on purifications of published length, at these image-steps per second."""
    gradients, judgements = attack_queries()
    steps = len(fp.methods.coup_unguided().table())
    return images * steps * (gradients / gradient_rate + judgements / purification_rate) / 3600


def goals(found: Measured) -> Iterator[str]:
    """The other promises, one line each."""
    best, product = found.fastest("gradient"), found.one("matrix product", precision="bf16")
    if best is not None and product is not None:
        flops = prediction("bf16", best["batch"]).gflop / best["batch"] * 1e9 * best["median"]
        share = flops / (product["median"] * 1e12)
        yield (
            f"- arithmetic of the gradient, bf16, B = {best['batch']}: {flops / 1e12:.0f} TFLOP/s, "
            f"{100 * share:.0f} % of the measured product rate of {product['median']:.0f} "
            f"(goal {100 * PRODUCT_GOAL:.0f} %{missed(share, PRODUCT_GOAL)})"
        )
    for batch in found.batches():
        labels = {"precision": "bf16", "batch": batch}
        ours = found.one("gradient", who=OURS, **labels)
        compiled = found.best("gradient", COMPILED, **labels)
        if ours and compiled and "reserved_gb" in ours and compiled.get("reserved_gb"):
            share = ours["reserved_gb"] / compiled["reserved_gb"]
            yield (
                f"- memory of the gradient, bf16, B = {batch}: {_memory(ours)} GB, "
                f"{100 * share:.0f} % of the compiled loop's {_memory(compiled)} "
                f"(goal at most {100 * MEMORY_GOAL:.0f} %{missed(MEMORY_GOAL, share)})"
            )
    for words, prefix in (("COUP guided by WRN-28-10", "guided "), ("COUP without guidance", "")):
        gradient, purification = (found.fastest(prefix + figure) for figure in ("gradient", "purification"))
        if gradient is not None and purification is not None:
            hours = attack_hours(gradient["median"], purification["median"])
            yield (
                f"- projected: AutoAttack rand on {IMAGES} images of {words}, bf16: {hours:.1f} h at the rates of "
                f"B = {gradient['batch']} (goal below {HOURS_GOAL:g}{missed(HOURS_GOAL, hours)})"
            )


def missed(larger: float, smaller: float) -> str:
    return "" if larger >= smaller else ", missed"


@cache
def prediction(precision: str, batch: int) -> Prediction:
    with fake_tensors():
        load = workload(NETWORK, None, batch, DTYPES[precision], precision)
        return predict(load, PLANS[0], DEVICES[DEVICE])[0]


def model_table(found: Measured) -> Iterator[str]:
    yield f"Model: {DEVICES[DEVICE]}"
    yield ""
    yield "| precision | B | predicted ms per step | measured | measured / predicted |"
    yield "|---|---|---|---|---|"
    for precision in found.precisions():
        for batch in found.batches():
            row = found.one("gradient", who=OURS, precision=precision, batch=batch)
            if row is not None:
                predicted, measured = prediction(precision, batch).graph_ms, row["ms"] / row["steps"]
                yield f"| {precision} | {batch} | {predicted:.2f} | {measured:.2f} | {measured / predicted:.2f} |"


def run_table(found: Measured) -> Iterator[str]:
    """What ran where, and what did not."""
    for row in found.rows:
        if row.get("environment"):
            names = ("gpu", "torch", "cuda", "driver", "python", "commit")
            yield "- " + ", ".join(f"{name} {row[name]}" for name in names if row.get(name))
    for row in found.rows:
        if "outcome" in row:
            took = f" in {row['seconds']:g} s" if "seconds" in row else ""
            tests = ""
            if "tests" in row:
                bad = row["failures"] + row["errors"]
                tests = f"; {row['tests']} tests, {bad} failed, {row['skipped']} skipped"
            yield f"- {row.get('process', row['stage'])}: {row['outcome']}{took}{tests}"
            yield from (f"  - {name}" for name in row.get("failed", ()))
    for row in found.rows:
        if "error" in row and isinstance(row["error"], str):
            yield f"- {row['figure']}: {row['error']}"


def report(found: Measured, readme: bool = False) -> Iterator[str]:
    real = Measured([row for row in found.rows if not row.get("quick")])
    if any("median" in row for row in real.rows):
        yield from _report(real, readme)
        return
    if any(row.get("quick") for row in found.rows):
        yield "A quick run at digits size on the CPU: everything runs, and nothing below is a result."
        yield ""
        yield from gradient_table(found, goals=False)
        return
    yield "Nothing was measured."
    yield ""
    yield from run_table(found)


def _report(found: Measured, readme: bool) -> Iterator[str]:
    yield "Image-steps per second of the exact gradient (goals in brackets):"
    yield ""
    yield from gradient_table(found)
    yield ""
    yield "Image-steps per second of purification:"
    yield ""
    yield from purification_table(found)
    yield ""
    yield from goals(found)
    if not readme:
        yield ""
        yield from model_table(found)
        yield ""
        yield from run_table(found)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--readme", action="store_true")
    options = parser.parse_args(words)
    if not options.file.is_file():
        parser.error(
            f"file: expected the rows of a run, such as build/gpu/rows.jsonl; there is no {options.file}"
        )
    print("\n".join(report(Measured(read(options.file)), options.readme)))


if __name__ == "__main__":
    main()
