"""RobustBench's model zoo by name, bridging what its published package gets wrong about its dependencies.

The package robustbench 1.1.1 depends on ``pyautoattack`` but imports a module called ``autoattack``, which only
the GitHub version of AutoAttack provides. While robustbench is being imported, ``autoattack`` stands for
``pyautoattack``; afterwards the name is as free as before. No installed file is touched.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import CheckpointError, mistake, one_of
from ..norms import norm_called

DATASETS = ("cifar10", "cifar100", "imagenet")
THREAT_MODELS = ("Linf", "L2", "corruptions")
_INSTALL = "pip install 'fastpure[robustbench]'"


def load_robustbench(
    name: str, dataset: str = "cifar10", threat_model: str = "Linf", model_dir: str | Path = "models"
) -> nn.Module:
    """RobustBench's model ``name``, frozen and in evaluation mode; images in [0, 1] to logits.

    Args:
        model_dir: where RobustBench keeps files: ``model_dir/dataset/threat_model/name.pt`` is used if it is
            there and downloaded by RobustBench if not.

    Raises:
        ValueError: an unknown data set, threat model or name; close names are given.
        CheckpointError: robustbench is missing or cannot be imported, or the weights cannot be downloaded or
            do not fit.
    """
    one_of("dataset", dataset, DATASETS)
    threat_model = norm_called("threat_model", threat_model, THREAT_MODELS)
    package = import_robustbench()
    known = _names(dataset, threat_model)
    if name not in known:
        from ..words import did_you_mean

        expected = f"a RobustBench model for {dataset} {threat_model} ({len(known)} known)"
        raise ValueError(mistake("source", expected, repr(name), did_you_mean(name, known)))
    try:
        model = package.load_model(name, model_dir=model_dir, dataset=dataset, threat_model=threat_model)
    except Exception as error:  # gdown, requests, pickle and torch raise what they like here
        file = Path(model_dir) / dataset / threat_model / f"{name}.pt"
        state = "is damaged or does not fit" if file.exists() else "is not there and was not downloaded"
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"robustbench:{name}: {file} {state}: {reason}") from error
    return model.eval().requires_grad_(False)


def import_robustbench() -> Any:
    """The package, imported with ``autoattack`` standing for ``pyautoattack`` if only that is installed.

    Raises:
        CheckpointError: it, or something it needs, is missing; the message says what to install.
    """
    if "robustbench" in sys.modules:
        return sys.modules["robustbench"]
    if importlib.util.find_spec("robustbench") is None:
        raise CheckpointError(f"robustbench is not installed: {_INSTALL}")
    if importlib.util.find_spec("pkg_resources") is None:
        raise CheckpointError(f"robustbench needs pkg_resources: pip install 'setuptools<81', or {_INSTALL}")
    with _autoattack_alias():
        try:
            return importlib.import_module("robustbench")
        except Exception as error:
            # A half-imported package would look whole to the next caller.
            for module in [key for key in sys.modules if key.split(".")[0] == "robustbench"]:
                del sys.modules[module]
            raise CheckpointError(f"robustbench cannot be imported: {error}. {_INSTALL}") from error


@contextmanager
def _autoattack_alias() -> Iterator[None]:
    """``autoattack`` and ``autoattack.state`` from pyautoattack, unless the real ones are installed."""
    aliases: dict[str, Any] = {}
    if "autoattack" not in sys.modules and importlib.util.find_spec("autoattack") is None:
        if importlib.util.find_spec("pyautoattack") is None:
            raise CheckpointError(f"robustbench needs AutoAttack: pip install pyautoattack, or {_INSTALL}")
        aliases["autoattack"] = importlib.import_module("pyautoattack")
        aliases["autoattack.state"] = importlib.import_module("pyautoattack.state")
    sys.modules.update(aliases)
    try:
        yield
    finally:
        for name in aliases:
            sys.modules.pop(name, None)


def _names(dataset: str, threat_model: str) -> list[str]:
    zoo = importlib.import_module("robustbench.model_zoo")
    enums = importlib.import_module("robustbench.model_zoo.enums")
    return list(zoo.model_dicts[enums.BenchmarkDataset(dataset)][enums.ThreatModel(threat_model)])
