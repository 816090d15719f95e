"""How many threads are taken: what bounds them, what suits the work, and that the caller's number comes back."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from torch import nn

import fastpure as fp
from fastpure import threads
from fastpure.nets import runs_in_one_call
from fastpure.openmp import gnu_runtime
from fastpure.threads import (
    WORK_PER_THREAD,
    available,
    computing,
    layer_work,
    limits,
    share,
    share_of_hosts,
    suited,
    told,
)


@pytest.fixture(autouse=True)
def four_cores(monkeypatch):
    """Torch was told to use four threads, and nothing else bounds them."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(threads, "_lasting", lambda: 1 << 30)
    yield
    torch.set_num_threads(before)


def put(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


UNIFIED = {"proc/self/cgroup": "0::/a/b\n"}
OLDER = {"proc/self/cgroup": "5:memory:/d\n4:cpu,cpuacct:/d\n"}
FOLDER = "sys/fs/cgroup/cpu,cpuacct"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({**UNIFIED, "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, None),
        ({**UNIFIED, "sys/fs/cgroup/a/b/cpu.max": "200000 100000\n"}, 2),
        ({**UNIFIED, "sys/fs/cgroup/a/b/cpu.max": "150000 100000\n"}, 2),
        (
            {**UNIFIED, "sys/fs/cgroup/a/b/cpu.max": "max 100000", "sys/fs/cgroup/a/cpu.max": "50000 100000"},
            1,
        ),
        # In a container the path may be that of the host, and the files lie at the root of what is mounted.
        ({**UNIFIED, "sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3),
        ({**UNIFIED, "sys/fs/cgroup/a/b/cpu.max": "nonsense\n"}, None),
        ({**OLDER, f"{FOLDER}/d/cpu.cfs_quota_us": "-1", f"{FOLDER}/d/cpu.cfs_period_us": "100000"}, None),
        ({**OLDER, f"{FOLDER}/d/cpu.cfs_quota_us": "250000", f"{FOLDER}/d/cpu.cfs_period_us": "100000"}, 3),
        (
            {
                **OLDER,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            1,
        ),
        ({"proc/self/cgroup": "no colons here\n"}, None),
    ],
)
def test_the_quota_of_a_container(tmp_path, files, expected):
    assert limits({}, put(tmp_path, files)).get("the container's quota") == expected


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, {}),
        ({"OMP_NUM_THREADS": "3"}, {"OMP_NUM_THREADS": 3}),
        ({"OMP_NUM_THREADS": "3,2", "OMP_THREAD_LIMIT": "2"}, {"OMP_NUM_THREADS": 3, "OMP_THREAD_LIMIT": 2}),
        ({"OMP_NUM_THREADS": "many", "OMP_THREAD_LIMIT": "0"}, {}),
    ],
)
def test_the_environment_and_the_affinity(tmp_path, environ, expected):
    found = limits(environ, tmp_path)
    assert found == {"torch.get_num_threads()": 4, "cores it may run on": 8, **expected}


def test_available_is_the_smallest(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_THREAD_LIMIT", raising=False)
    monkeypatch.setattr(threads, "_quota", lambda root: 2.5)
    assert (available(), told()) == (3, None)
    monkeypatch.setattr(threads, "_quota", lambda root: None)
    assert (available(), told()) == (4, 4)
    torch.set_num_threads(8)
    assert (available(), told()) == (8, None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert available() == 1


@pytest.mark.parametrize(("workers", "cores", "each"), [(1, 8, 8), (3, 8, 2), (8, 8, 1), (20, 8, 1)])
def test_a_share(workers, cores, each):
    assert share(workers, cores) == each


def test_a_share_of_what_is_available():
    assert share(2) == available() // 2 or available() == 1


@pytest.mark.parametrize(
    ("workers", "hosts", "each"),
    [
        (2, [8], 4),
        (3, [8, 8], 4),
        (3, [8, 2], 2),
        (2, [2, 2, 2], 2),
        (4, [2], 1),
        (1, [], 1),
        (2, [0.5, 3.0], 1),
    ],
)
def test_a_share_that_finds_room_on_the_hosts(workers, hosts, each):
    assert share_of_hosts(workers, hosts) == each


@pytest.mark.parametrize("call", [lambda: share(0), lambda: share(2, 0), lambda: share_of_hosts(0, [4])])
def test_nobody_shares_nothing(call):
    with pytest.raises(ValueError, match=r"`(workers|cores)` must be an integer >= 1, got 0"):
        call()


def test_the_work_of_networks():
    convolution = nn.Conv2d(4, 8, 3, bias=False)
    assert layer_work([convolution], 64) == 2 * 64 * 4 * 8 * 9
    pair = nn.Sequential(convolution, nn.Conv2d(8, 8, 1), nn.Linear(1000, 1000))
    assert layer_work([pair], 64) == 2 * 64 * (4 * 8 * 9 + 8 * 8) / 2
    assert layer_work([pair], 64, lambda network: network is pair) == 2 * 64 * (4 * 8 * 9 + 8 * 8)
    assert layer_work([nn.Linear(10, 20)], 64) == 2 * 16 * 200
    assert layer_work([nn.Linear(10, 20), pair], 64) == layer_work([pair], 64)
    assert layer_work([nn.ReLU()], 64) == layer_work([], 64) == 0


def test_small_work_gets_one_thread_and_large_work_all():
    assert suited(0.0, 8) == suited(1.9 * WORK_PER_THREAD, 8) == 1
    assert suited(2.1 * WORK_PER_THREAD, 8) == 2
    assert suited(100 * WORK_PER_THREAD, 8) == 8
    assert suited(100 * WORK_PER_THREAD, 1) == 1


def test_the_bundled_networks_on_two_cores():
    """The sizes whose times are written beside the threshold."""
    expected = {"digits": {1: 1, 16: 1, 64: 2}, "cifar10-small": {1: 2, 16: 2}}
    for name, batches in expected.items():
        denoiser = fp.load_denoiser(name)
        _, height, width = denoiser.image_shape
        work = layer_work([denoiser], height * width)
        assert {batch: suited(work * batch, 2) for batch in batches} == batches


def test_a_guide_of_small_layers_decides_for_the_whole_purifier():
    denoiser, classifier = fp.load_denoiser("digits"), fp.load_classifier("digits")
    alone = fp.Purifier(denoiser, fp.methods.coup_unguided(t=0.1, dt=0.05))
    guided = fp.Purifier(denoiser, fp.methods.coup(classifier, t=0.1, dt=0.05))
    whole, layer = (one._engines["fp32"].work for one in (alone, guided))
    assert suited(32 * layer, 2) == 1
    if runs_in_one_call(denoiser.network, torch.float32):
        assert suited(2 * whole, 2) == 2
    assert layer == layer_work([classifier], 64)


@pytest.mark.parametrize("work", [None, 0.0, 2.5 * WORK_PER_THREAD, 1e12])
def test_the_callers_number_comes_back(work):
    inside = {None: 4, 0.0: 1, 2.5 * WORK_PER_THREAD: 2, 1e12: 4}[work]
    with computing(work):
        assert torch.get_num_threads() == inside
    assert torch.get_num_threads() == 4
    with pytest.raises(KeyError), computing(work):
        raise KeyError
    assert torch.get_num_threads() == 4


def test_blocks_in_blocks():
    with computing(2.5 * WORK_PER_THREAD):
        with computing(0.0):
            assert torch.get_num_threads() == 1
            with computing(1e12):
                assert torch.get_num_threads() == 1
        with computing(1e12):
            assert torch.get_num_threads() == 2, "the outer block's is the most"
    assert torch.get_num_threads() == 4


def test_never_more_than_the_container_allows(monkeypatch):
    monkeypatch.setattr(threads, "_lasting", lambda: 3)
    with computing(None):
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == 4


def test_one_thread_stays_one_and_nobody_watches(monkeypatch):
    monkeypatch.setattr(threads, "watched", lambda: pytest.fail("watched"))
    torch.set_num_threads(1)
    with computing(1e12):
        assert torch.get_num_threads() == 1


@pytest.mark.skipif(gnu_runtime() is None, reason="torch does not use GNU's OpenMP runtime here")
def test_other_threads_keep_theirs():
    """Also one that uses torch for the first time meanwhile."""
    seen = []
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    with computing(0.0):
        thread.start()
        thread.join()
    assert seen == [4]


class Counting(nn.Module):
    """Notes with how many threads it is called and differentiated."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 1, 3, padding=1)
        self.seen: list[tuple[str, int]] = []

    def forward(self, x, labels):
        self.seen.append(("forward", torch.get_num_threads()))
        y = self.convolution(x)
        if y.requires_grad:
            y.register_hook(lambda v: self.seen.append(("backward", torch.get_num_threads())))
        return y


@pytest.mark.parametrize("memory", ["store", "recompute"])
def test_a_purification_and_its_gradient_take_what_suits_them(memory):
    denoiser = fp.Denoiser.from_module(Counting(), image_shape=(1, 8, 8)).eval()
    purifier = fp.Purifier(denoiser, fp.methods.coup_unguided(t=0.1, dt=0.05), memory=memory)
    x = torch.full((2, 1, 8, 8), 0.5, requires_grad=True)
    torch.autograd.grad(purifier(x).sum(), x)
    seen = set(purifier.denoiser.network.seen)
    assert seen == {("forward", 1), ("backward", 1)}
    assert torch.get_num_threads() == 4


def test_own_kernels_and_the_digits_give_the_same_bits_with_any_number():
    """Where torch's kernels do too: networks this small are cut along images and channels only."""
    purifier = fp.Purifier(fp.load_denoiser("digits"), fp.methods.coup_unguided(t=0.02, dt=0.01))
    x = torch.linspace(0, 1, 64 * 64).view(64, 1, 8, 8)
    found = []
    for number in (1, 2, 4):
        torch.set_num_threads(number)
        leaf = x.clone().requires_grad_(True)
        found.append(torch.autograd.grad(purifier(leaf).square().sum(), leaf)[0])
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[2], found[0], rtol=1e-5, atol=1e-6)
