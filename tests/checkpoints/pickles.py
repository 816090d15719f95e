"""Pickles in the layout of EDM's published files, made without EDM's code.

There, every class is decorated so that an object pickles as a call of
``torch_utils.persistence._reconstruct_persistent_obj`` with the source text of its module and its attributes.
"""

from __future__ import annotations

import pickle
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fastpure.checkpoints.edm import _flat
from tests.golden import FOLDER, config

SOURCE = "import pathlib; pathlib.Path({marker!r}).write_text('the code in the file ran')"


class Persistent:
    """Pickles as a persistent object of class ``kind`` with these attributes."""

    def __init__(self, kind: str, state: dict[str, Any], source: str) -> None:
        self.kind, self.state, self.source = kind, state, source

    def __reduce__(self):
        meta = {
            "type": "class",
            "version": 6,
            "module_src": self.source,
            "class_name": self.kind,
            "state": self.state,
        }
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,)


def module(weights: dict[str, Tensor], kind: str, source: str, **attributes: Any) -> Persistent:
    """A tree of persistent modules whose parameters and filters have these names."""
    children: dict[str, dict[str, Tensor]] = {}
    own: dict[str, Tensor] = {}
    for name, value in weights.items():
        head, _, rest = name.partition(".")
        if rest:
            children.setdefault(head, {})[rest] = value
        else:
            own[name] = value
    state = {
        "training": False,
        "_parameters": OrderedDict((n, nn.Parameter(v)) for n, v in own.items() if n != "resample_filter"),
        "_buffers": OrderedDict((n, v) for n, v in own.items() if n == "resample_filter"),
        "_backward_hooks": OrderedDict(),
        "_modules": OrderedDict((n, _child(n, v, source)) for n, v in children.items()),
        "_init_args": (),
        "_init_kwargs": {},
        **attributes,
    }
    return Persistent(kind, state, source)


def _child(name: str, weights: dict[str, Tensor], source: str) -> Any:
    """``enc`` and ``dec`` are torch's own containers, everything else is a persistent object."""
    if name not in ("enc", "dec"):
        return module(weights, "Child", source)
    container = nn.ModuleDict()
    container._modules = module(weights, "Child", source).state["_modules"]
    return container


def write_edm_pickle(
    path: Path,
    weights: dict[str, Tensor],
    settings: dict[str, Any],
    marker: Path,
    extra: Any = None,
    arguments: bool = True,
) -> None:
    """{"ema": preconditioner(model), "loss_fn": ..., "dataset_kwargs": ...}; the code in it would write ``marker``."""
    source = SOURCE.format(marker=str(marker))
    outer = {key: settings[key] for key in ("img_resolution", "img_channels", "label_dim")}
    inner = {
        key: value
        for key, value in settings.items()
        if key not in outer and key not in ("precond", "model_type")
    }
    network = module(weights, settings["model_type"], source)
    if arguments:
        network.state["_init_kwargs"] = {**inner, "img_resolution": outer["img_resolution"], "in_channels": 3}
    whole = module({}, settings["precond"], source, **outer, use_fp16=False, sigma_data=0.5)
    whole.state["_modules"] = OrderedDict(model=network)
    whole.state["_init_kwargs"] = {**outer, **inner, "model_type": settings["model_type"]}
    content = {
        "ema": whole,
        "loss_fn": Persistent("EDMLoss", {"P_mean": -1.2, "P_std": 1.2}, source),
        "dataset_kwargs": {"path": "cifar10.zip", "size": 50_000},
        "step": torch.tensor(3.0).numpy().mean(),
    }
    if extra is not None:
        content["extra"] = extra
    stub = types.ModuleType("torch_utils.persistence")
    stub._reconstruct_persistent_obj = _stub  # type: ignore[attr-defined]
    names = {"torch_utils": types.ModuleType("torch_utils"), "torch_utils.persistence": stub}
    before = (_stub.__module__, _stub.__qualname__)
    _stub.__module__, _stub.__qualname__ = "torch_utils.persistence", "_reconstruct_persistent_obj"
    sys.modules.update(names)
    try:
        path.write_bytes(pickle.dumps(content))
    finally:
        _stub.__module__, _stub.__qualname__ = before
        for name in names:
            del sys.modules[name]


def _stub(meta: dict[str, Any]) -> None:
    raise AssertionError("only its name is pickled")


def edm_pickle(tmp_path: Path, name: str = "edm_ddpmpp_tiny", **options: Any) -> tuple[Path, Path]:
    """The golden weights as a published pickle, and the file that its code would write."""
    settings = {**_flat(config(name), "test"), "precond": "EDMPrecond", "img_channels": 3}
    for field in ("channels_per_head", "in_channels", "out_channels"):
        if settings[field] is None or "channels" in field[:3]:
            settings.pop(field)
    weights = {key.removeprefix("model."): v for key, v in load_file(FOLDER / f"{name}.safetensors").items()}
    write_edm_pickle(tmp_path / "network.pkl", weights, settings, tmp_path / "marker", **options)
    return tmp_path / "network.pkl", tmp_path / "marker"
