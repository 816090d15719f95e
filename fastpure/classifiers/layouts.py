"""Other people's classifier files: which network a state dict belongs to, told from its names and shapes.

Names and shapes give depth, width and classes. They say nothing of input normalisation and activation, where
published networks with the same names differ; what cannot be known has to be given.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from ..errors import CheckpointError, listed, mistake, one_of
from .base import ClassifierReport, keep
from .biased_wide_resnet import BIASED_WIDE_RESNETS, BiasedWideResNet, BiasedWideResNetConfig
from .cifar_resnet import CIFAR_RESNETS, CifarResNet, CifarResNetConfig
from .fitting import fit
from .normalised import MeanStd, mean_and_std
from .state_dicts import read_weights, refuse_another
from .wide_resnet import WIDE_RESNETS, WideResNet, WideResNetConfig

Config = WideResNetConfig | BiasedWideResNetConfig | CifarResNetConfig
AnyConfig = TypeVar("AnyConfig", WideResNetConfig, BiasedWideResNetConfig, CifarResNetConfig)
Tensors = dict[str, Tensor]

_NETWORKS: dict[type[Any], Any] = {
    WideResNetConfig: WideResNet,
    BiasedWideResNetConfig: BiasedWideResNet,
    CifarResNetConfig: CifarResNet,
}


class _ImpossibleSizes(Exception):
    """The shapes in a file describe no network."""


@dataclass(frozen=True)
class Wanted:
    """What the caller says about the network; None leaves it to the file."""

    architecture: str | None = None
    normalise: str | Sequence[Sequence[float]] | None = None
    activation: str | None = None
    weights: str | None = None


@dataclass(frozen=True)
class Layout:
    """A way of naming parameters: how it is recognised, renamed, and read as a configuration."""

    whose: str
    mark: str
    configs: dict[str, Any]
    translate: Callable[[Tensors], Tensors]
    configure: Callable[[Tensors, Wanted], Config]
    seen: tuple[str, ...] = ("classes",)
    """Fields that names and shapes show, whatever architecture is named."""


def read_foreign(path: Path, wanted: Wanted) -> nn.Module:
    """The network of a state dict in one of `LAYOUTS`, frozen and in evaluation mode.

    Raises:
        ValueError: something that the file cannot say was not given, or contradicts the file.
        CheckpointError: the file is missing, damaged, hostile, of no known layout, or does not fit.
    """
    content = read_weights(path, wanted.weights)
    name, layout = _recognise(content.tensors, path)
    tensors = layout.translate(content.tensors)
    told = wanted
    wanted = _with_own_normalisation(wanted, content.normalisation, path)
    try:
        config = layout.configure(tensors, wanted)
        if wanted.architecture is not None:
            known = layout.configs
            shown = {field: getattr(config, field) for field in layout.seen}
            config = replace(known[one_of("architecture", wanted.architecture, known)], **shown)
    except (KeyError, IndexError, _ImpossibleSizes) as error:
        raise CheckpointError(
            f"{path}: has the names of {layout.whose}, but not the sizes: {error}"
        ) from error
    config = _normalised(config, wanted)
    if wanted.activation is not None:
        config = _activated(config, wanted.activation)
    kind = _NETWORKS[type(config)]
    network = fit(lambda: kind(config), tensors, str(path))
    plain = "images in [0, 1] as they are" if config.mean is None else f"mean {config.mean}, std {config.std}"
    report = ClassifierReport(
        str(path),
        name,
        kind.__name__,
        f"{plain} ({_known_from(told, content.normalisation)})",
        content.said,
        content.dropped,
        (f"recognised as {layout.whose} by its names",),
        config.to_dict(),
    )
    return keep(network, report)


def _known_from(told: Wanted, own: MeanStd | None) -> str:
    if own is not None:
        return "stands in the file"
    if told.normalise is not None:
        return "as given"
    return f"that of {told.architecture}" if told.architecture is not None else "assumed: that of this family"


def _recognise(tensors: Tensors, path: Path) -> tuple[str, Layout]:
    for name, layout in LAYOUTS.items():
        if layout.mark in tensors:
            return name, layout
    if "layer1.0.conv1.weight" in tensors and "fc.weight" in tensors:
        raise CheckpointError(
            f"{path}: torchvision's layout, whose sizes the names do not give. "
            f"Use load_classifier('torchvision:NAME', weights=...), for example NAME resnet50"
        )
    known = "; ".join(f"{layout.whose} ({layout.mark})" for layout in LAYOUTS.values())
    raise CheckpointError(
        f"{path}: of no known classifier layout. Known: {known}. Found: {listed(tensors)}. "
        "Any network can be built by its own code and passed as an nn.Module"
    )


def _with_own_normalisation(wanted: Wanted, own: MeanStd | None, path: Path) -> Wanted:
    if own is None:
        return wanted
    refuse_another(wanted.normalise, own, str(path))
    return replace(wanted, normalise=own)


def _normalised(config: Config, wanted: Wanted) -> Config:
    if wanted.normalise is None:
        return config
    mean, std = mean_and_std(wanted.normalise) or (None, None)
    return replace(config, mean=mean, std=std)


def _activated(config: Config, activation: str) -> Config:
    if isinstance(config, WideResNetConfig):
        return replace(config, activation=activation)
    raise ValueError(mistake("activation", "None for these networks, which use ReLU", repr(activation)))


def _sized(kind: type[AnyConfig], **values: Any) -> AnyConfig:
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise _ImpossibleSizes(error) from error


def _blocks(tensors: Tensors, prefix: str) -> int:
    """How many consecutive ``prefix.0``, ``prefix.1``, ... there are."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d{1,6})\.")
    return 1 + max((int(found[1]) for name in tensors if (found := pattern.match(name))), default=-1)


def _trades(tensors: Tensors) -> Tensors:
    """Without the second first stage that some files carry and no forward pass uses."""
    unused = [name for name in tensors if name.startswith("sub_block1.")]
    if unused:
        warnings.warn(f"{len(unused)} tensors of the unused sub_block1 were dropped", stacklevel=4)
    return {name: value for name, value in tensors.items() if name not in unused}


def _wide_config(tensors: Tensors, wanted: Wanted) -> WideResNetConfig:
    if wanted.architecture is None and wanted.normalise is None:
        remedy = (
            "TRADES' network and RobustBench's 'Standard' see images in [0, 1]: normalise='none'; many others of "
            "RobustBench normalise in its code: load_classifier('robustbench:NAME'). DiffPure's WRN-70-16 is "
            "architecture='wrn-70-16-dropout'. `fastpure doctor --classifier FILE --data ...` tries the usual ones"
        )
        raise ValueError(mistake("normalise", "given for wide ResNets in this layout", "None", remedy))
    return _sized(
        WideResNetConfig,
        depth=6 * max(_blocks(tensors, "block1.layer"), 1) + 4,
        widen=max(tensors["block1.layer.0.conv1.weight"].shape[0] // 16, 1),
        classes=tensors["fc.weight"].shape[0],
        image_shape=(tensors["conv1.weight"].shape[1], 32, 32),
    )


_RENAMED = (
    (re.compile(r"^init_conv\."), "conv1."),
    (re.compile(r"^batchnorm\."), "bn1."),
    (re.compile(r"^logits\."), "fc."),
    (
        re.compile(r"^layer\.(\d+)\.block\.(\d{1,6})\."),
        lambda found: f"block{int(found[1]) + 1}.layer.{found[2]}.",
    ),
    (re.compile(r"(layer\.\d+\.)batchnorm_0\."), r"\1bn1."),
    (re.compile(r"(layer\.\d+\.)batchnorm_1\."), r"\1bn2."),
    (re.compile(r"(layer\.\d+\.)conv_0\."), r"\1conv1."),
    (re.compile(r"(layer\.\d+\.)conv_1\."), r"\1conv2."),
    (re.compile(r"(layer\.\d+\.)shortcut\."), r"\1convShortcut."),
)


def _deepmind(tensors: Tensors) -> Tensors:
    renamed = {}
    for name, value in tensors.items():
        for pattern, replacement in _RENAMED:
            name = pattern.sub(replacement, name)
        renamed[name] = value
    return renamed


def _deepmind_config(tensors: Tensors, wanted: Wanted) -> WideResNetConfig:
    if wanted.activation is None and wanted.architecture is None:
        remedy = "Gowal 2020, 2021, Rebuffi 2021, Wang 2023 and DiffPure's WRN-70-16 use 'silu'"
        raise ValueError(mistake("activation", "given for DeepMind's layout", "None", remedy))
    plain = _wide_config(tensors, replace(wanted, normalise="none"))
    if plain.image_shape[0] != 3:
        # Their network for MNIST frames its images, for which no tensor stands in the file.
        raise _ImpossibleSizes(
            f"images of {plain.image_shape[0]} channels, which are padded first; expected 3"
        )
    # Ten classes are CIFAR-10's or SVHN's, which the same code trains.
    if wanted.normalise is None and (wanted.architecture is None or plain.classes != 10):
        remedy = (
            "Networks of CIFAR-10 and CIFAR-100 see 'cifar10' and 'cifar100', of SVHN ((0.5, 0.5, 0.5), "
            "(0.5, 0.5, 0.5)); the names dm-wrn-... are CIFAR-10's"
        )
        expected = f"given for DeepMind's layout with {plain.classes} classes"
        raise ValueError(mistake("normalise", expected, "None", remedy))
    return replace(plain, same_padding=True)


def _biased_config(tensors: Tensors, wanted: Wanted) -> BiasedWideResNetConfig:
    if wanted.normalise is None:
        remedy = (
            "Hill et al. 2021 show it [-1, 1], ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)); ADP CIFAR-10's mean and deviations "
            "of its own, ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.201))"
        )
        raise ValueError(mistake("normalise", "given for wide ResNets with biases", "None", remedy))
    return _sized(
        BiasedWideResNetConfig,
        depth=6 * max(_blocks(tensors, "layer1"), 1) + 4,
        widen=max(tensors["layer1.0.conv1.weight"].shape[0] // 16, 1),
        classes=tensors["linear.weight"].shape[0],
        image_shape=(tensors["conv1.weight"].shape[1], 32, 32),
    )


def _cifar_config(tensors: Tensors, wanted: Wanted) -> CifarResNetConfig:
    if wanted.normalise is None:
        remedy = "'none' feeds images in [0, 1]; the training code says which"
        raise ValueError(mistake("normalise", "given for CIFAR ResNets", "None", remedy))
    bottleneck, preact = "layer1.0.conv3.weight" in tensors, "bn1.weight" not in tensors
    if preact and wanted.architecture is None:
        remedy = "It says what the projection of a block sees; RobustBench's use 'preact-resnet-18'"
        known = [name for name in CIFAR_RESNETS if "preact" in name]
        raise ValueError(
            mistake("architecture", f"given for pre-activation: {' or '.join(known)}", "None", remedy)
        )
    blocks = tuple(_blocks(tensors, f"layer{stage}") for stage in (1, 2, 3, 4))
    if 0 in blocks:
        raise _ImpossibleSizes(f"{blocks} blocks in layer1 to layer4; networks of three stages are others'")
    return _sized(
        CifarResNetConfig,
        block="bottleneck" if bottleneck else "preact" if preact else "basic",
        blocks=blocks,
        width=tensors["conv1.weight"].shape[0],
        classes=tensors["linear.weight"].shape[0],
        image_shape=(tensors["conv1.weight"].shape[1], 32, 32),
        final_norm="bn.weight" in tensors,
    )


#: Name -> layout, recognised by the presence of its mark.
LAYOUTS: dict[str, Layout] = {
    "wide_resnet": Layout(
        "RobustBench's and DiffPure's wide ResNets",
        "block1.layer.0.conv1.weight",
        {name: config for name, config in WIDE_RESNETS.items() if not config.same_padding},
        _trades,
        _wide_config,
    ),
    "deepmind": Layout(
        "DeepMind's wide ResNets",
        "layer.0.block.0.conv_0.weight",
        {name: config for name, config in WIDE_RESNETS.items() if config.same_padding},
        _deepmind,
        _deepmind_config,
    ),
    # Before "cifar_resnet", which has a layer called linear too.
    "biased_wide_resnet": Layout(
        "wide ResNets with biases, as of Hill et al. 2021 and ADP",
        "layer1.0.conv1.bias",
        BIASED_WIDE_RESNETS,
        dict,
        _biased_config,
    ),
    "cifar_resnet": Layout(
        "CIFAR ResNets of RobustBench and DiffPure",
        "linear.weight",
        CIFAR_RESNETS,
        dict,
        _cifar_config,
        ("classes", "final_norm"),
    ),
}
