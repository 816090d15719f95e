"""One digit against the others: AUROC of AnomalyDetector and of PCA reconstruction, clean, attacked and certified.

    python -m bench.anomaly_digits [--steps 400] [--classes 3]       writes bench/results/anomaly_digits.md

For each of the first CLASSES digits a small denoiser is trained for STEPS steps on that digit's training images only;
the detector's mean error map comes from the same images. PCA keeps 90 % of their variance, its score is the squared
reconstruction error. The test images of the digit are normal, twice as many others are anomalous. The attack is
PGD with exact gradients (and EOT for the detector), Linf; it raises the scores of normal images and lowers those of
anomalous ones. Scores are means over fresh draws.

Certified: the detector's score is smoothed with Gaussian noise. The certified AUC is a lower bound for all changes of
all images within an L2 radius; certified accuracy is the share of right decisions that no such change alters. The
threshold of the decision is the 95th percentile of smoothed scores of normal training images.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import fastpure as fp
from fastpure.anomaly import AnomalyAttack
from fastpure.certify import rate_at
from fastpure.data import load_dataset
from fastpure.kernels import Domain
from fastpure.train import DENOISER_RECIPES, DenoiserLoss, Trainer

EPS = (0.03, 0.1)
SIGMAS = (0.1, 0.25)
RADII = (0.0, 0.05, 0.1, 0.2, 0.4)
CHOOSING, ESTIMATING, ALPHA = 50, 500, 0.001
TABLE = Path(__file__).parent / "results" / "anomaly_digits.md"


@dataclass(frozen=True, eq=False)
class PcaScore:
    """Squared distance of an image from the principal subspace of the normal ones."""

    mean: Tensor
    components: Tensor

    @staticmethod
    def fit(normal: Tensor) -> PcaScore:
        from sklearn.decomposition import PCA

        found = PCA(n_components=0.9).fit(normal.flatten(1).numpy())
        return PcaScore(*(torch.from_numpy(a.astype(np.float32)) for a in (found.mean_, found.components_)))

    def score(self, x: Tensor, sample_ids: object, draw: object, *, domain: Domain) -> Tensor:
        centred = x.flatten(1) - self.mean
        return (centred - centred @ self.components.T @ self.components).square().sum(1)


def train_denoiser(digit: int, steps: int) -> fp.Denoiser:
    data = load_dataset("digits", "train")
    data = data.select(torch.where(data.labels == digit)[0].numpy())
    recipe = DENOISER_RECIPES["digits"]
    config = replace(recipe.train, steps=steps, batch_size=64, warmup=20, ema=0.98)
    model = fp.Denoiser.from_config(recipe.network, seed=0, init_scale=0.0)
    trainer = Trainer(model, DenoiserLoss(t_max=0.3), data, config)
    for _ in range(steps):
        trainer.advance()
    return trainer.average


def auroc(anomalous: Tensor, scores: Tensor) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(anomalous.numpy(), scores.numpy()))


@dataclass(frozen=True, eq=False)
class OneClass:
    """A normal digit: its training images, and test images x of which some are ``anomalous``, with their ids."""

    digit: int
    normal: Tensor
    normal_ids: Tensor
    x: Tensor
    ids: Tensor
    anomalous: Tensor

    @staticmethod
    def of(digit: int) -> OneClass:
        train, test = load_dataset("digits", "train"), load_dataset("digits", "test")
        rows = train.labels == digit
        own = torch.where(test.labels == digit)[0]
        others = torch.where(test.labels != digit)[0]
        picked = others[torch.from_numpy(np.random.RandomState(0).permutation(len(others))[: 2 * len(own)])]
        chosen = torch.cat([own, picked])
        return OneClass(
            digit,
            train.images[rows],
            train.sample_ids[rows],
            test.images[chosen],
            test.sample_ids[chosen],
            test.labels[chosen] != digit,
        )


def attacked(case: OneClass, denoiser: fp.Denoiser) -> Iterator[tuple[str, list[float]]]:
    """AUROC by detector: clean, then attacked with each of EPS."""
    detectors = {
        "AnomalyDetector": fp.AnomalyDetector(denoiser).fit(case.normal, case.normal_ids),
        "PCA reconstruction": PcaScore.fit(case.normal),
    }
    for name, detector in detectors.items():
        random = name == "AnomalyDetector"
        values: list[float] = []
        for eps in EPS:
            attack = AnomalyAttack(
                eps=eps, n_iter=20, eot_iter=4 if random else 1, eval_draws=10 if random else 1
            )
            result = attack(detector, case.x, case.anomalous, sample_ids=case.ids)
            values = values or [auroc(case.anomalous, result.clean_score)]
            values.append(auroc(case.anomalous, result.attacked_score))
        yield name, values


def certified(
    case: OneClass, denoiser: fp.Denoiser
) -> Iterator[tuple[float, float, list[float], list[float]]]:
    """Per sigma: AUROC of the smoothed score, then certified AUC and certified accuracy at each of RADII."""
    for sigma in SIGMAS:
        detector = fp.AnomalyDetector(denoiser).fit(case.normal, case.normal_ids, sigma=sigma)
        found = detector.certify(case.x, case.ids, CHOOSING, ESTIMATING, ALPHA)
        known = detector.certify(case.normal[:40], case.normal_ids[:40], 1, 50, ALPHA)
        threshold = float(known.scores.median(1).values.double().quantile(0.95))
        decisions = found.decide(threshold)
        right = (decisions.predicted == case.anomalous.long()).tolist()
        yield (
            sigma,
            auroc(case.anomalous, found.scores.median(1).values),
            [found.certified_auc(case.anomalous, radius) for radius in RADII],
            [rate_at(right, decisions.radius.tolist(), radius) / len(right) for radius in RADII],
        )


def written(steps: int, classes: int) -> str:
    """Both tables, in Markdown; what is measured is printed as it comes."""
    attacks: dict[str, list[list[float]]] = {}
    certificates: dict[float, list[list[float]]] = {}
    for digit in range(classes):
        case, denoiser = OneClass.of(digit), train_denoiser(digit, steps)
        for name, values in attacked(case, denoiser):
            attacks.setdefault(name, []).append(values)
            print(f"digit {digit}, {name}: AUROC " + _percent(values), flush=True)
        for sigma, smoothed, aucs, rates in certified(case, denoiser):
            certificates.setdefault(sigma, []).append([smoothed, *aucs, *rates])
            print(f"digit {digit}, sigma {sigma:g}: {_percent([smoothed, *aucs, *rates])}", flush=True)
    columns = ["clean", *(f"Linf {eps:g}" for eps in EPS)]
    lines = [f"| detector | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | {_percent(np.mean(rows, 0), ' | ')} |" for name, rows in attacks.items()]
    radii = [f"{radius:g}" for radius in RADII]
    lines += ["", f"| sigma | smoothed AUROC | {' | '.join(f'AUC at {r}' for r in radii)} |"]
    lines += ["|---" * (len(radii) + 2) + "|"]
    means = {sigma: np.mean(rows, 0) for sigma, rows in certificates.items()}
    lines += [f"| {sigma:g} | {_percent(row[: len(radii) + 1], ' | ')} |" for sigma, row in means.items()]
    lines += [
        "",
        f"| sigma | {' | '.join(f'accuracy at {r}' for r in radii)} |",
        "|---" * (len(radii) + 1) + "|",
    ]
    lines += [f"| {sigma:g} | {_percent(row[len(radii) + 1 :], ' | ')} |" for sigma, row in means.items()]
    return HEAD.format(steps=steps, classes=classes, n0=CHOOSING, n=ESTIMATING, alpha=ALPHA) + "\n".join(
        [*lines, ""]
    )


HEAD = """# One digit against the others

Written by `python -m bench.anomaly_digits --steps {steps} --classes {classes}`: means in % over the first {classes}
digits, each the normal one once, with a denoiser of {steps} steps on it. AUROC clean and attacked (PGD-20, EOT-4, exact
gradients); then certified under Gaussian noise of deviation sigma ({n0} + {n} draws, alpha {alpha:g} per image and
statement), at L2 radii for images in [0, 1]: a lower bound of the AUC of the smoothed score (its median), and the
share of right decisions.

"""


def _percent(values: object, between: str = " ") -> str:
    return between.join(f"{100 * value:.1f}" for value in np.asarray(values).tolist())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="of each denoiser's training")
    parser.add_argument("--classes", type=int, default=3, help="how many digits are the normal one, in turn")
    given = parser.parse_args()
    text = written(given.steps, given.classes)
    TABLE.write_text(text)
    print(f"\n{text}\nwrote {TABLE}")


if __name__ == "__main__":
    main()
