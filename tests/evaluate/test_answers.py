"""A run is continued only by the defence that began it, whatever it is that has changed since."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastpure as fp
from fastpure.errors import RunMismatch
from fastpure.evaluate.identity import identity
from fastpure.evaluate.store import RunStore
from fastpure.nets.oracle import GaussianMixture
from fastpure.purify.description import kept_of, other_answers
from tests.evaluate.toys import FRESH, SHAPE, Brightness, attack, dataset


class Shifted(Brightness):
    """Its mean is a plain number, which neither weights nor printed structure hold."""

    def __init__(self, mean=0.5, temperature=1.0):
        super().__init__()
        self.mean, self.temperature = mean, temperature
        self.table = [torch.tensor([1.0, 1.0])]

    def forward(self, u):
        return super().forward(u - self.mean + 0.5) / self.temperature * self.table[0]


class Labelled(GaussianMixture):
    """Told a class by an attribute, as conditional denoisers of other people are."""

    label = 0

    def forward(self, x, sigma):
        return super().forward(x, sigma) * (1.0 + 0.3 * self.label)


def defense(classifier=None, precision="fp32"):
    means = torch.stack([torch.full((16,), -0.2), torch.full((16,), 0.2)])
    denoiser = fp.Denoiser.from_module(Labelled(means, 0.3), image_shape=SHAPE)
    method = fp.methods.diffpure(t=0.02, dt=0.01)
    return fp.Defense(fp.Purifier(denoiser, method, precision=precision), (classifier or Shifted()).eval())


def run(one, out, n=4):
    return fp.evaluate(one, dataset(n), attack(), FRESH, out, batch_size=2, progress=False)


def by_mean(one):
    one.classifier.mean = 0.6


def by_temperature(one):
    one.classifier.temperature = 3.0


def by_hidden_tensor(one):
    one.classifier.table[0].mul_(torch.tensor([1.0, 1.5]))


def by_class_label(one):
    one.purifier.denoiser.network.label = 1


CHANGES = {
    by_mean: "classifier",
    by_temperature: "classifier",
    by_hidden_tensor: "classifier",
    by_class_label: "denoiser",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_no_checksum_sees_is_seen_by_asking(tmp_path, change):
    path, one = tmp_path / "r.sqlite", defense()
    run(one, path)
    before = path.read_bytes()
    assert run(one, path).n_images == 4, "the same defence goes on"
    before = path.read_bytes()
    change(one)
    with pytest.raises(RunMismatch, match=f"the {CHANGES[change]} now answers otherwise"):
        run(one, path)
    assert path.read_bytes() == before


def test_a_guide_of_its_own_is_asked_too(tmp_path):
    guide, one = Shifted().eval(), defense()
    method = fp.methods.coup(guide, t=0.02, dt=0.01)
    one = fp.Defense(one.purifier.with_method(method), Shifted().eval())
    run(one, tmp_path / "r.sqlite")
    guide.temperature = 5.0
    with pytest.raises(RunMismatch, match="the guide now answers otherwise"):
        run(one, tmp_path / "r.sqlite")


def test_a_wrapper_counts(tmp_path):
    class Hot(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.temperature = inner, 1.0
            self.eval()

        def forward(self, x):
            return self.inner(x) / self.temperature

    one = Hot(defense())
    run(one, tmp_path / "r.sqlite")
    one.temperature = 2.0
    with pytest.raises(RunMismatch, match="the module now answers otherwise"):
        run(one, tmp_path / "r.sqlite")


def test_files_older_than_the_question_go_on(tmp_path):
    path, one = tmp_path / "r.sqlite", defense()
    RunStore(path, identity(one, dataset(4), attack(), FRESH)).close()
    assert run(one, path).n_images == 4


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_rounding_is_no_change(precision):
    one, other = (
        fp.Defense(fp.Purifier(fp.load_denoiser("digits"), fp.methods.coup(c, dt=0.03), precision=p), c)
        for c in [fp.load_classifier("digits")]
        for p in (precision, "fp32" if precision == "fp32" else "fp16")
    )
    found = [fp.purify.look_through(each).answers((1, 8, 8)) for each in (one, other)]
    assert set(found[0]) == {"classifier", "denoiser"}
    assert not other_answers(*found)


def test_answers_are_compared_by_their_size():
    one = {"a": kept_of(torch.tensor([0.0, 10.0]))}
    assert not other_answers(one, {"a": kept_of(torch.tensor([0.02, 10.0]))})
    assert other_answers(one, {"a": kept_of(torch.tensor([0.2, 10.0]))}) == ["a"]
    assert other_answers(one, {"a": kept_of(torch.tensor([0.0, 10.0, 1.0]))}) == ["a"]
    assert not other_answers(one, {"b": kept_of(torch.tensor([5.0]))})
