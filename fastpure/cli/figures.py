"""Pictures the commands write."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import finite
from ..files import replacing
from ..report.plotting import perturbation, pyplot

if TYPE_CHECKING:
    from ..data import Dataset
    from ..purify import Defense

N_SHOWN = 8
LONG_NAME = 6  # characters that fit above an image at the usual size


def demo(path: Path, data: Dataset, defenses: dict[str, nn.Module], attacked: dict[str, Tensor]) -> None:
    """Images clean, adversarial, perturbation, purified; and the classifier's confidence along the way.

    Shown are images that fool the bare classifier, purified by guided COUP. Written atomically to ``path``.
    """
    plt = pyplot()
    figure = plt.figure(figsize=(11.5, 5.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.45, 1))
    _grid(left, data, defenses, attacked["no defence"])
    _confidence(right, data, defenses, attacked["COUP"])
    try:
        with replacing(path) as file:
            figure.savefig(file, format="png", dpi=150)
    finally:
        plt.close(figure)


def _grid(panel: Any, data: Dataset, defenses: dict[str, nn.Module], x_adv: Tensor) -> None:
    coup: Any = defenses["COUP"]
    x, y, ids = data.images[:N_SHOWN], data.labels[:N_SHOWN], data.sample_ids[:N_SHOWN]
    x_adv = x_adv[:N_SHOWN]
    purified = coup.purifier(x_adv, ids)
    noise, said = perturbation((x_adv - x).numpy())
    rows = [
        ("clean", x, coup.classifier(x)),
        ("adversarial", x_adv, coup.classifier(x_adv)),
        ("perturbation", torch.from_numpy(noise), None),
        ("purified\n(COUP)", purified, coup.classifier(purified)),
    ]
    size = 9 if max(map(len, data.classes)) <= LONG_NAME else 8
    axes = panel.subplots(len(rows), len(x), squeeze=False)
    told = "attack on the bare classifier; its verdict above each image (red: wrong)"
    panel.suptitle(f"{told}\nperturbation {said}", fontsize=9)
    for axis_row, (name, images, logits) in zip(axes, rows, strict=True):
        axis_row[0].set_ylabel(name, fontsize=9)
        for i, axis in enumerate(axis_row):
            _show(axis, images[i].clamp(0, 1))
            axis.set(xticks=[], yticks=[])
            if logits is not None:
                guess = int(finite(logits, ids, "the classifier")[i].argmax())
                colour = "black" if guess == int(y[i]) else "tab:red"
                axis.set_title(data.classes[guess], fontsize=size, color=colour, pad=2)


def _show(axis: Any, image: Tensor) -> None:
    """Draw ``image`` [C, H, W] in [0, 1], in colour if it has three channels, else its first one."""
    if len(image) == 3:
        axis.imshow(image.permute(1, 2, 0).numpy())
    else:
        axis.imshow(image[0].numpy(), cmap="gray", vmin=0, vmax=1)


def _confidence(panel: Any, data: Dataset, defenses: dict[str, nn.Module], x_adv: Tensor) -> None:
    axis = panel.subplots()
    for name, style in (("COUP", "-"), ("COUP without guidance", "--")):
        defense: Any = defenses[name]
        table = defense.purifier.method.table()
        times = torch.tensor([*(row.t for row in table.rows), 0.0])
        label = "with guidance" if name == "COUP" else "without guidance"
        axis.plot(times, confidence_along(defense, x_adv, data.sample_ids), style, label=label)
    axis.invert_xaxis()
    axis.set_xlabel("diffusion time t (the purification runs to the right)")
    axis.set_ylabel("mean confidence in the most probable class")
    axis.set_title("classifier along the reverse process,\nimages attacked through COUP", fontsize=9)
    axis.legend(frameon=False)


def confidence_along(defense: Defense, x: Tensor, ids: Tensor) -> Tensor:
    """Mean confidence in the most probable class at every state of the purification, [K + 1]."""
    states = defense.purifier.trajectory(x, ids)
    with torch.no_grad():
        logits = [defense.classifier(state) for state in states]
    return torch.stack([row.softmax(1).amax(1).mean() for row in logits])
