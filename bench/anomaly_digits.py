"""One digit against the others: AUROC of AnomalyDetector and of PCA reconstruction, clean and attacked.

    python -m bench.anomaly_digits [STEPS] [CLASSES]

For each of the first CLASSES digits a small denoiser is trained for STEPS steps on that digit's training images only;
the detector's mean error map comes from the same images. PCA keeps 90 % of their variance, its score is the squared
reconstruction error. The test images of the digit are normal, twice as many others are anomalous. The attack is
PGD with exact gradients (and EOT for the detector), Linf; it raises the scores of normal images and lowers those of
anomalous ones. Scores are means over fresh draws.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

import fastpure as fp
from fastpure.anomaly import AnomalyAttack
from fastpure.data import load_dataset
from fastpure.kernels import Domain
from fastpure.train import DENOISER_RECIPES, DenoiserLoss, Trainer

EPS = (0.03, 0.1)


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


def one_class(digit: int, steps: int) -> dict[str, list[float]]:
    """AUROC by detector: clean, then attacked with each of EPS."""
    train, test = load_dataset("digits", "train"), load_dataset("digits", "test")
    rows = train.labels == digit
    normal, ids = train.images[rows], train.sample_ids[rows]
    detectors = {
        "AnomalyDetector": fp.AnomalyDetector(train_denoiser(digit, steps)).fit(normal, ids),
        "PCA reconstruction": PcaScore.fit(normal),
    }
    own = torch.where(test.labels == digit)[0]
    others = torch.where(test.labels != digit)[0]
    picked = others[torch.from_numpy(np.random.RandomState(0).permutation(len(others))[: 2 * len(own)])]
    chosen = torch.cat([own, picked])
    x, anomalous = test.images[chosen], test.labels[chosen] != digit
    table: dict[str, list[float]] = {}
    for name, detector in detectors.items():
        random = name == "AnomalyDetector"
        values = []
        for eps in EPS:
            attack = AnomalyAttack(
                eps=eps, n_iter=20, eot_iter=4 if random else 1, eval_draws=10 if random else 1
            )
            result = attack(detector, x, anomalous, sample_ids=test.sample_ids[chosen])
            values = values or [auroc(anomalous, result.clean_score)]
            values.append(auroc(anomalous, result.attacked_score))
        table[name] = values
    return table


def main(steps: int = 400, classes: int = 3) -> None:
    columns = ["clean", *(f"Linf {eps:g}" for eps in EPS)]
    print(f"AUROC in %, PGD-20, EOT-4, exact gradients; denoisers of {steps} steps on one digit each")
    print(f"{'normal digit':<14}{'detector':<22}" + "".join(f"{column:>12}" for column in columns))
    rows: dict[str, list[list[float]]] = {}
    for digit in range(classes):
        for name, values in one_class(digit, steps).items():
            rows.setdefault(name, []).append(values)
            print(f"{digit:<14}{name:<22}" + "".join(f"{100 * v:12.1f}" for v in values), flush=True)
    for name, values in rows.items():
        print(f"{'mean':<14}{name:<22}" + "".join(f"{100 * v:12.1f}" for v in np.mean(values, 0)))


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))
