"""`fastpure bench`: everybody computes the same thing, so that the times compare."""

from __future__ import annotations

import functools
import json
import time

import pytest
import torch
from typer.testing import CliRunner

import fastpure as fp
from fastpure.baselines import Comparison, Rate, Timing, compare, interleave, plain_network, processor, ratio
from fastpure.baselines.comparison import Cases, Networks
from fastpure.baselines.timing import peak_megabytes
from fastpure.cli.main import app

CLASSIFIER = fp.load_classifier("digits")
SMALL = {"network": "ddpmpp-digits", "batch": 2, "steps": 3, "repeats": 1}


@pytest.fixture(scope="module")
def guided():
    return compare(Comparison(**SMALL, classifier=CLASSIFIER))["exact gradient"].rows


def test_all_discrete_gradients_are_the_same_gradient(guided):
    rows = {row.name: row for row in guided}
    for name, row in rows.items():
        if "torchsde" not in name:
            assert row.error is not None
            assert row.error < 1e-5, name
    assert next(iter(rows)) == "fastpure, store, fp32"
    assert rows["fastpure, store, fp32"].ratio == 1.0


def test_the_continuous_adjoint_is_not_the_gradient(guided):
    pytest.importorskip("torchsde")
    rows = {row.name: row for row in guided}
    frozen, shipped = (rows[f"torchsde adjoint{kind}, fp32"] for kind in (", frozen weights", " as DiffPure"))
    assert frozen.error == pytest.approx(shipped.error, rel=1e-3)
    assert 1e-3 < frozen.error < 1.0  # same noise, same weights: another gradient, not another problem


SMALLEST = {
    "image_size": 8,
    "channels": 1,
    "nf": 16,
    "ch_mult": (1, 2),
    "n_blocks": 1,
    "attn_resolutions": (4,),
}
"""Every kind of layer once: compiling takes time by the layer."""


def cases(steps: int = 3, network: str | dict[str, object] = "ddpmpp-digits") -> Cases:
    return Cases(Networks(network, torch.device("cpu")), 2, steps)


@pytest.mark.slow
def test_a_compiled_peer_has_the_same_gradient_however_often_it_is_asked(monkeypatch):
    """Traced, cut and differentiated as for inductor, whose forty kernels take g++ two minutes; benches look too."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    found = cases(network=SMALLEST)
    truth = found.gradient(found.purifier("fp64", "recompute"), found.noise.double())
    loop = found.loop("fp32", mode="default")
    for _ in range(2):
        gradient = found.peer_gradient(loop)
        assert float((gradient - truth).norm() / truth.norm()) < 1e-5


def test_peers_are_compiled_in_every_mode_for_every_precision(monkeypatch):
    asked = []

    def compile_nothing(network, **settings):
        asked.append(settings)
        return network

    monkeypatch.setattr(torch, "compile", compile_nothing)
    tables = compare(Comparison(**SMALL, precisions=("fp32", "bf16"), torch_compile=True))
    assert {settings["mode"] for settings in asked} == set(plain_network.COMPILE_MODES)
    assert all(settings["fullgraph"] and not settings["dynamic"] for settings in asked)
    compiled = [row.name for table in tables.values() for row in table.rows if "torch.compile" in row.name]
    assert len(compiled) == len(set(compiled)) == 2 * 2 * len(plain_network.COMPILE_MODES)


class Settings(torch.nn.Module):
    """Notes torch's settings at every call of the network it stands before."""

    def __init__(self, network: torch.nn.Module, seen: list[tuple[object, ...]]) -> None:
        super().__init__()
        self.network, self.seen = network, seen

    def forward(self, *arguments: torch.Tensor) -> torch.Tensor:
        self.seen.append(settings_now())
        return self.network(*arguments)


@pytest.mark.parametrize(("precision", "tf32"), [("fp32", False), ("tf32", True), ("bf16", False)])
@pytest.mark.parametrize("outside", ["high", "highest"])
def test_peers_compute_under_the_settings_that_a_purifier_sets(precision, tf32, outside):
    found, seen = cases(), []
    loops = [found.loop(precision, recompute=recompute) for recompute in (False, True)]
    for loop in loops:
        loop.network = Settings(loop.network, seen)
    adjoint = found.adjoint(True, None)
    adjoint.sde.network = Settings(adjoint.sde.network, [])
    ours = []
    purifier = found.purifier(precision)
    (network,) = {
        id(module): module
        for module in purifier.modules()
        if type(module) is type(found.networks.denoiser.network)
    }.values()
    network.register_forward_pre_hook(lambda module, arguments: ours.append(settings_now()))
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(outside)
        found.gradient(purifier)
        for loop in loops:
            found.peer_gradient(loop)
            found.peer_purification(loop)
        found.peer_gradient(adjoint)
        assert torch.get_float32_matmul_precision() == outside
    finally:
        torch.set_float32_matmul_precision(before)
    wanted = ("high" if tf32 else "highest", tf32, False)
    assert set(ours) == set(seen) == {wanted}
    assert set(adjoint.sde.network.seen) == {("highest", False, False)}


def settings_now() -> tuple[object, ...]:
    matrix = torch.get_float32_matmul_precision()
    return matrix, torch.backends.cudnn.allow_tf32, torch.is_autocast_enabled("cpu")


def test_checkpointing_keeps_no_generator_states(monkeypatch):
    calls = []

    def checkpoint(function, *arguments, **settings):
        calls.append(settings)
        return function(*arguments)

    monkeypatch.setattr(plain_network, "checkpoint", checkpoint)
    found = cases(steps=3)
    found.peer_gradient(found.loop("fp32", recompute=True))
    assert calls == [{"use_reentrant": False, "preserve_rng_state": False}] * 3
    found.peer_purification(found.loop("fp32", recompute=True))
    assert len(calls) == 3  # nothing is kept without a gradient


@pytest.mark.parametrize("channels_last", [True, False])
def test_peers_run_in_the_layout_they_are_called_by(channels_last):
    found, formats = cases(), []
    loop = found.loop("fp32", channels_last=channels_last)
    convolution = loop.network.network.all_modules[2]
    convolution.register_forward_hook(lambda module, arguments, out: formats.append(out))
    found.peer_gradient(loop)
    assert all(out.is_contiguous(memory_format=torch.channels_last) == channels_last for out in formats)
    assert len(formats) == 3


def test_cases_share_the_weights_and_change_none_of_them():
    found = cases()
    before = {name: value.clone() for name, value in found.networks.denoiser.state_dict().items()}
    for precision in ("bf16", "fp32"):
        found.peer_gradient(found.loop(precision))
    found.peer_gradient(found.adjoint(False, found.noise))
    after = found.networks.denoiser.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(value.dtype == torch.float32 for value in after.values())


def test_purifications_have_no_gradient_error():
    tables = compare(Comparison(**SMALL))
    assert [row.name for row in tables["purification"].rows] == ["fastpure, fp32", "plain loop, fp32"]
    assert all(row.error is None for row in tables["purification"].rows)


def test_a_case_is_timed_once_per_turn_after_the_warm_up():
    calls: list[str] = []
    timings = interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=2)
    assert calls == ["a", "b"] * 3
    assert [len(timing.seconds) for timing in timings] == [2, 2]
    assert [len(timing.cpu_seconds) for timing in timings] == [2, 2]
    assert ratio(timings, "a", "a") == 1.0


def test_ratios_are_taken_turn_by_turn_by_either_clock():
    timings = [Timing("a", (1.0, 8.0, 3.0), (1.0, 1.0, 1.0)), Timing("b", (1.0, 2.0, 1.0), (2.0, 4.0, 8.0))]
    assert ratio(timings, "a", "b") == 3.0
    assert ratio(timings, "a", "b", "cpu") == 0.25


def test_processor_time_is_not_the_clock_s():
    (asleep,) = interleave({"asleep": lambda: time.sleep(0.05)}, repeats=1)
    assert asleep.cpu_median < asleep.median
    assert asleep.median >= 0.05


def test_the_work_is_two_passes_a_step_and_what_the_counter_finds_in_them():
    found, guided = cases(steps=3), Cases(Networks("ddpmpp-digits", torch.device("cpu")), 2, 3, CLASSIFIER)
    purification, gradient = found.flops()
    assert gradient == 2 * purification
    assert purification == Cases(found.networks, 1, 1).flops()[0] * 2 * 3
    # The digits classifier has about 1.1 MFLOP (tests/bench/test_roofline.py): two of its passes guide a step.
    assert (guided.flops()[0] - purification) / 6 == pytest.approx(2 * 1.1e6, rel=0.15)


def test_the_better_product_is_the_rate_and_shares_are_paired():
    slow = Rate("matrix product", "fp32", 100, Timing("", (2.0, 4.0), (2.0, 4.0)))
    fast = Rate("3x3 convolution", "fp32", 300, Timing("", (2.0, 6.0), (1.0, 1.0)))
    case = Timing("ours", (4.0, 12.0), (4.0, 4.0))
    assert processor.fastest([slow, fast], "fp32") is fast
    assert processor.share(case, 300, [slow, fast], "fp32") == 0.5
    assert processor.share(case, 300, [slow, fast], "fp32", "cpu") == 0.25
    assert processor.share(case, 300, [slow, fast], "bf16") is None


def test_both_products_are_measured_with_the_cases():
    table = compare(Comparison(**SMALL))["purification"]
    assert [(rate.name, rate.precision) for rate in table.rates] == [
        ("matrix product", "fp32"),
        ("3x3 convolution", "fp32"),
    ]
    assert all(len(rate.timing.seconds) == 1 for rate in table.rates)
    best = processor.fastest(table.rates, "fp32")
    for row in table.rows:
        assert row.share == pytest.approx(table.flops / row.timing.median / best.per_second())


def test_a_product_that_this_processor_only_emulates_is_left_out(monkeypatch):
    monkeypatch.setattr(processor, "_computes", lambda precision, device: False)
    assert processor.probes("fp16", torch.device("cpu")) == ()


def test_the_processor_is_named():
    here = processor.Processor.here()
    assert here.name
    assert here.cores >= 1
    assert set(here.flags) <= set(processor.FLAGS)


def test_peak_memory_sees_what_a_call_needs():
    peak = peak_megabytes(lambda: torch.ones(50_000_000).sum(), torch.device("cpu"))
    if peak is None:
        pytest.skip("this system does not tell the peak memory of a process")
    assert 190 < peak < 300


def test_the_command_prints_and_writes_the_same_figures(tmp_path):
    arguments = ["bench", "--network", "ddpmpp-digits", "--batch-size", "2", "--steps", "2", "--repeats", "1"]
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "b.json")])
    assert done.exit_code == 0, done.output
    assert "fastpure, recompute, fp32" in done.output
    written = json.loads((tmp_path / "b.json").read_text())
    assert set(written["figures"]) == set(written["rates"]) == {"purification", "exact gradient"}
    assert written["processor"]["name"]
    again = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "b.json")])
    assert isinstance(again.exception, ValueError)
    assert "exists" in str(again.exception)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"network": "resnet"}, "`network` must be one of"),
        ({"precisions": ("fp64",)}, "`precisions` must be one of"),
        ({"precisions": ()}, "`precisions` must be at least one"),
        ({"batch": 0}, "`batch` must be an integer >= 1"),
    ],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        Comparison(**fields)
