"""A card for each published network that purification uses: where it is, whose it is, under which licence.

Nothing here was guessed: what the publishers do not say is "unknown". Checksums do not stand here, since they publish
none; the first download records them, and everything afterwards is compared with it. ADBM has no card: its repository
names no weights but those that it starts from, which are "score-sde-cifar10".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

from ..errors import one_of

UNKNOWN = "unknown"
KINDS = ("denoiser", "classifier")


@final
@dataclass(frozen=True)
class Card:
    """What is known of a published network.

    Fields:
        kind: "denoiser" or "classifier".
        source: "hf:OWNER/REPOSITORY", the address of a file, "robustbench:NAME", or a page for people (``by_hand``).
        data: what it was trained on.
        architecture: its name where it was published.
        licence: of the weights, as their publisher says.
        paper: arXiv number.
        size: in bytes; None where the publisher does not say. A download shows it.
        file: what it is called in the cache folder; "" for a repository.
        by_hand: the page cannot be read by programs: people fetch the file and put it where the message says.
        options: of `fastpure.load_denoiser` or `fastpure.load_classifier`, which the file needs.
        note: what else one has to know.
    """

    kind: str
    source: str
    data: str
    architecture: str
    licence: str
    paper: str
    size: int | None = None
    file: str = ""
    by_hand: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    def __post_init__(self) -> None:
        one_of("kind", self.kind, KINDS)

    @property
    def size_in_words(self) -> str:
        """For people."""
        return UNKNOWN if self.size is None else f"{self.size / 1e6:,.0f} MB"


CARDS: dict[str, Card] = {
    "ddpm-cifar10": Card(
        kind="denoiser",
        source="hf:google/ddpm-cifar10-32",
        data="CIFAR-10",
        architecture="UNet2DModel (DDPM)",
        licence="Apache-2.0",
        paper="2006.11239",
    ),
    "score-sde-cifar10": Card(
        kind="denoiser",
        source="https://drive.google.com/file/d/16_-Ahc6ImZV5ClUc0vM5Iivf8OJ1VSif/view",
        data="CIFAR-10",
        architecture="vp/cifar10_ddpmpp_deep_continuous",
        licence="Apache-2.0",
        paper="2011.13456",
        file="checkpoint_8.pth",
        by_hand=True,
        note="the network of DiffPure, COUP and ADBM",
    ),
    "improved-diffusion-cifar10": Card(
        kind="denoiser",
        source="https://openaipublic.blob.core.windows.net/diffusion/march-2021/cifar10_uncond_50M_500K.pt",
        data="CIFAR-10",
        architecture="UNetModel, cosine schedule in 4000 steps, learned variance",
        licence="MIT",
        paper="2102.09672",
        file="cifar10_uncond_50M_500K.pt",
    ),
    "edm-cifar10": Card(
        kind="denoiser",
        source="https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/edm-cifar10-32x32-uncond-vp.pkl",
        data="CIFAR-10",
        architecture="DDPM++ in EDM's preconditioning",
        licence="CC-BY-NC-SA-4.0",
        paper="2206.00364",
        file="edm-cifar10-32x32-uncond-vp.pkl",
    ),
    "edm-cifar10-cond": Card(
        kind="denoiser",
        source="https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/edm-cifar10-32x32-cond-vp.pkl",
        data="CIFAR-10",
        architecture="DDPM++ in EDM's preconditioning, class-conditional",
        licence="CC-BY-NC-SA-4.0",
        paper="2206.00364",
        file="edm-cifar10-32x32-cond-vp.pkl",
        note="for fp.DiffusionClassifier, or fp.Purifier with class_label",
    ),
    "edm-imagenet-64-cond": Card(
        kind="denoiser",
        source="https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/edm-imagenet-64x64-cond-adm.pkl",
        data="ImageNet, 64x64",
        architecture="ADM in EDM's preconditioning, class-conditional",
        licence="CC-BY-NC-SA-4.0",
        paper="2206.00364",
        file="edm-imagenet-64x64-cond-adm.pkl",
        note="for fp.DiffusionClassifier, or fp.Purifier with class_label",
    ),
    "guided-diffusion-imagenet-256": Card(
        kind="denoiser",
        source="https://openaipublic.blob.core.windows.net/diffusion/jul-2021/256x256_diffusion_uncond.pt",
        data="ImageNet, 256x256",
        architecture="ADM, unconditional, learned variance",
        licence="MIT",
        paper="2105.05233",
        file="256x256_diffusion_uncond.pt",
        note="the network of DiffPure and COUP on ImageNet",
    ),
    "wrn-28-10-cifar10": Card(
        kind="classifier",
        source="robustbench:Standard",
        data="CIFAR-10",
        architecture="WideResNet-28-10",
        licence=UNKNOWN,
        paper="2010.09670",
        options={"dataset": "cifar10", "threat_model": "Linf"},
        note="RobustBench's standardly trained network, the classifier of DiffPure and COUP",
    ),
    "wrn-70-16-cifar10-gowal2020": Card(
        kind="classifier",
        source="robustbench:Gowal2020Uncovering_70_16_extra",
        data="CIFAR-10",
        architecture="WideResNet-70-16",
        licence=UNKNOWN,
        paper="2010.03593",
        options={"dataset": "cifar10", "threat_model": "Linf"},
        note="adversarially trained",
    ),
}
