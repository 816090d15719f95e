"""The certified table of an anomaly detector, with a network of two steps and few draws."""

from __future__ import annotations

import json
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from fastpure.data import load_dataset
from fastpure.presets import DataSpec
from fastpure.reproduce import Full, Images, Small, cost, reproduce
from fastpure.reproduce.advrad import ADVRAD_CERTIFIED, TRAINED, CertifiedDetector, OneClass

DRAWING = CertifiedDetector(
    "tiny", sigmas=(0.1,), radii=(0.0, 0.1), draws=(2, 30), small_draws=(2, 30), steps=2
)
TINY = replace(ADVRAD_CERTIFIED, drawings=(DRAWING,), images=Images(DataSpec("arrays", None), 18))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_small_run_killed_on_the_way_ends_with_the_same_table(tmp_path):
    reproduce(TINY, Small(), tmp_path / "whole", progress=False)
    values = json.loads((tmp_path / "whole" / "tiny.json").read_text())
    assert values["images"] == {"fitted": 128, "normal": 6, "anomalous": 12}
    (noise,) = values["noise"]
    assert noise["smoothed_auc"] >= noise["certified_auc"][0] >= noise["certified_auc"][1]
    accuracy = [one["estimate"] for one in noise["certified_accuracy"]]
    assert accuracy == sorted(accuracy, reverse=True)
    text = (tmp_path / "whole" / "table.md").read_text()
    assert f"Ours: {TRAINED}." in text
    assert text.count("| not recorded here |") == 2
    ElementTree.fromstring((tmp_path / "whole" / "tiny-curves.svg").read_text())

    said: list[str] = []

    def stop(text):
        said.append(text)
        if text.endswith("image 17 of 18"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reproduce(TINY, Small(), tmp_path / "part", progress=False, say=stop)
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "part" / "pieces").iterdir()}
    reproduce(TINY, Small(), tmp_path / "part", progress=False)
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "part" / "pieces").iterdir()}
    assert kept.items() < after.items(), "weights and scores were not computed again"
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")


def test_own_networks_and_images(tmp_path):
    digits = load_dataset("digits", "test").subset(30, 0)
    pixels = (digits.images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "own.npz", x=pixels, y=(digits.labels > 4).long().numpy())
    setting = Full(files={"normal": "digits"}, data_path=tmp_path / "own.npz")
    found = cost(TINY, setting)
    assert found.network_calls == DRAWING.calls(setting, 30)
    assert found.hours > 0
    reproduce(TINY, setting, tmp_path / "out", progress=False)
    values = json.loads((tmp_path / "out" / "tiny.json").read_text())
    normal = int((digits.labels <= 4).sum())
    assert values["images"] == {"fitted": (normal + 1) // 2, "normal": normal // 2, "anomalous": 30 - normal}
    with pytest.raises(ValueError, match="`precision` must be fp32 or tf32"):
        reproduce(TINY, replace(setting, precision="bf16"), tmp_path / "bf16", progress=False)
    with pytest.raises(
        ValueError, match=r"--network normal=FILE: a diffusion model trained on normal images"
    ):
        reproduce(TINY, Full(data_path=tmp_path / "own.npz"), tmp_path / "none", progress=False)


def test_images_are_of_both_kinds():
    digits = load_dataset("digits", "test")
    zeros = digits.select(torch.where(digits.labels == 0)[0])
    with pytest.raises(ValueError, match="`data` must be with images of class 0"):
        OneClass.of(digits, zeros, 0)
    with pytest.raises(ValueError, match="`data` must be"):
        OneClass.of(digits.select(torch.where(digits.labels > 0)[0]), digits, 0)
