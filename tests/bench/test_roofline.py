"""The model of a step counts what the program does."""

from __future__ import annotations

import pytest
import torch

from bench.devices import DEVICES
from bench.roofline import PLANS, fake_tensors, predict, rand_autoattack_hours, trace
from bench.workloads import workload
from fastpure.nets import products


@pytest.fixture(scope="module")
def official():
    with fake_tensors():
        load = workload("ddpmpp-cifar10", None, 2, torch.bfloat16, "bf16")
        return {plan.name: predict(load, plan, DEVICES["h200"])[0] for plan in PLANS}


def test_arithmetic_of_the_official_network(official):
    # 37.1 GFLOP per image and pass; the adjoint is two passes, recomputation a third.
    assert official["store"].gflop == pytest.approx(2 * 2 * 37.1, rel=0.01)
    assert official["recompute"].gflop == pytest.approx(3 * 2 * 37.1, rel=0.01)


def test_what_a_step_keeps_is_what_the_engine_keeps(official):
    # Half of the 42.8 MB that float32 keeps per image and step.
    assert official["store"].kept_gb_per_step * 1e3 / 2 == pytest.approx(21.4, rel=0.02)


def test_times_are_bounds(official):
    row = official["store"]
    assert row.matrix_ms < row.graph_ms <= row.eager_ms
    assert row.launches > 500


def test_counts_grow_with_the_batch_and_launches_do_not():
    with fake_tensors():
        one, two = (
            trace(workload("ddpmpp-digits", None, batch, torch.float32, "fp32").forward) for batch in (1, 2)
        )
    assert two.launches == one.launches
    assert two.flops == pytest.approx(2 * one.flops)


def test_guidance_adds_the_classifier_twice_over():
    with fake_tensors():
        plain = trace(workload("ddpmpp-digits", None, 1, torch.float32, "fp32").adjoint)
        guided = trace(workload("ddpmpp-digits", "resnet-digits", 1, torch.float32, "fp32").adjoint)
    # Forward, gradient, and both again for the Hessian's product: four passes of 1.1 MFLOP.
    assert guided.flops - plain.flops == pytest.approx(4 * 1.1e6, rel=0.15)


@pytest.mark.parametrize("name", ["wrn-28-10", "preact-resnet-18", "dm-wrn-28-10"])
def test_any_named_classifier_guides(name):
    with fake_tensors():
        plain = trace(workload("ddpmpp-cifar10-small", None, 1, torch.float32, "fp32").forward)
        guided = trace(workload("ddpmpp-cifar10-small", name, 1, torch.float32, "fp32").forward)
    assert guided.flops > plain.flops


def test_an_unknown_classifier_is_named():
    with fake_tensors(), pytest.raises(ValueError, match=r"`guidance` must be one of .*'wrn-28-10'"):
        workload("ddpmpp-digits", "resnet", 1, torch.float32, "fp32")


def test_hours_of_the_rand_mode():
    assert rand_autoattack_hours(rate=512 * 2 * 100 * 20 * 100 / 3600) == pytest.approx(1.0)


@pytest.mark.parametrize("host", [True, False])
def test_a_gpu_multiplies_in_16_bits_whatever_this_processor_does(monkeypatch, host):
    monkeypatch.setattr(products, "computes", lambda dtype: host)
    with fake_tensors():
        bf16 = trace(workload("ddpmpp-digits", None, 1, torch.bfloat16, "bf16").adjoint)
        fp32 = trace(workload("ddpmpp-digits", None, 1, torch.float32, "fp32").adjoint)
    assert bf16.launches <= 1.1 * fp32.launches
