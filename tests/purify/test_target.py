"""Whatever is attacked is taken for what it is: wrapped defences keep their noise, noise of one's own is found."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fastpure as fp
from fastpure.data import Dataset
from fastpure.errors import NonFiniteError
from fastpure.kernels import Domain
from fastpure.purify import door, look_through
from tests.attacks.toys import SHAPE, Pixels, images, mixture_defense

IDS = torch.tensor([5, 2, 900])
ATTACK = fp.attacks.PGD(eps=0.1, n_iter=3, eot_iter=4, eval_draws=5, batch_size=7)


class Temperature(nn.Module):
    """A user's wrapper: knows nothing of ids and draws."""

    def __init__(self, defense: nn.Module, temperature: float = 1.0) -> None:
        super().__init__()
        self.defense, self.temperature = defense, temperature
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.defense(x) / self.temperature


class Hidden(nn.Module):
    """Keeps the defence where no module looks for it."""

    def __init__(self, defense: nn.Module) -> None:
        super().__init__()
        self.parts = [defense]
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.parts[0](x)


class Votes(nn.Module):
    """Averages three answers of its defence, which must be three different ones."""

    def __init__(self, defense: nn.Module) -> None:
        super().__init__()
        self.defense = defense
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.defense(x) for _ in range(3)]).mean(0)


class Noisy(nn.Module):
    """Draws noise of its own, one for the whole batch as many published defences do."""

    def __init__(self, network: nn.Module, strength: float = 0.1, whole_batch: bool = False) -> None:
        super().__init__()
        self.network, self.strength, self.whole_batch = network, strength, whole_batch
        self.calls: list[int] = []
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        noise = torch.randn_like(x[:1] if self.whole_batch else x)
        return self.network(x + self.strength * noise)


class Flips(nn.Module):
    """A coin flip decides between the image and its mirror image."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.flip(-1) if bool(torch.rand(()) < 0.5) else x
        return Pixels()(x)


def wrappers() -> dict[str, Callable[[nn.Module], nn.Module]]:
    return {
        "DataParallel": nn.DataParallel,
        "Sequential": lambda defense: nn.Sequential(defense).eval(),
        "Sequential with more": lambda defense: nn.Sequential(nn.Identity(), defense, nn.Identity()).eval(),
        "nested": lambda defense: nn.DataParallel(nn.Sequential(nn.DataParallel(defense))).eval(),
        "compiled": lambda defense: torch.compile(defense, backend="eager"),
        "a user's": Temperature,
        "hidden": Hidden,
    }


def same(a: fp.attacks.AttackResult, b: fp.attacks.AttackResult) -> bool:
    parts = ("x_adv", "robust_correct", "clean_correct", "losses")
    return all(torch.equal(getattr(a, part), getattr(b, part)) for part in parts)


@pytest.mark.parametrize("name", wrappers())
def test_a_wrapped_defence_is_attacked_as_the_defence_itself(name):
    defense, x = mixture_defense(Pixels()), images(3)
    y = Pixels()(x).argmax(1)
    expected = ATTACK(defense, x, y, sample_ids=IDS)
    assert expected.robust_correct.shape == (3, 5)
    assert same(ATTACK(wrappers()[name](defense), x, y, sample_ids=IDS), expected)


@pytest.mark.parametrize("name", wrappers())
def test_a_wrapped_defence_is_evaluated_as_the_defence_itself(name):
    data = Dataset(
        images(6), torch.tensor([0, 1, 2, 3, 4, 0]), torch.arange(6) * 7, tuple("abcde"), "toy", "test"
    )
    run = {"attack": ATTACK, "protocol": fp.protocols.fresh(3), "progress": False}
    expected = fp.evaluate(mixture_defense(Pixels()), data, **run)
    found = fp.evaluate(wrappers()[name](mixture_defense(Pixels())), data, **run)
    assert (found.clean, found.robust) == (expected.clean, expected.robust)
    known = {**run, "protocol": fp.protocols.dw_box()}
    expected = fp.evaluate(mixture_defense(Pixels()), data, **known)
    found = fp.evaluate(wrappers()[name](mixture_defense(Pixels())), data, **known)
    assert (found.clean, found.robust) == (expected.clean, expected.robust)


def test_a_purifier_before_a_classifier_is_the_defence_of_both():
    """Not a ``Defense`` but ``Sequential(purifier, classifier)``: each call by itself would see draw 0 throughout."""
    defense, x = mixture_defense(Pixels()), images(3)
    y = Pixels()(x).argmax(1)
    chain = nn.Sequential(defense.purifier, defense.classifier).eval()
    target = door(chain, x, IDS)
    assert target.is_random
    assert target.network_calls == look_through(defense).network_calls
    assert same(ATTACK(chain, x, y, sample_ids=IDS), ATTACK(defense, x, y, sample_ids=IDS))
    assert torch.equal(defense.purifier(x), defense.purifier(x)), "called alone it still takes draw 0"


def test_what_a_wrapper_adds_counts():
    defense, x = mixture_defense(Pixels()), images(3)
    hot, ids = door(Temperature(defense, 4.0), x, IDS), torch.tensor([5, 2, 900])
    draws = torch.tensor([0, 1, 7])
    expected = defense(x, ids, draws, domain=Domain.EVALUATION) / 4.0
    assert torch.equal(hot.logits(x, ids, draws, Domain.EVALUATION), expected)
    with pytest.raises(TypeError, match=r"gradient='bpda'.*Attack its 'defense', the Defense inside"):
        fp.attacks.PGD(gradient="bpda")(hot, x, torch.tensor([0, 1, 2]))


def test_calls_inside_one_answer_see_different_noise_and_repeat():
    defense, x = mixture_defense(Pixels()), images(3)
    target, draws = door(Votes(defense), x, IDS), torch.tensor([3, 3, 3])
    first = target.logits(x, IDS, draws, Domain.EVALUATION)
    assert torch.equal(first, target.logits(x, IDS, draws, Domain.EVALUATION))
    once = defense(x, IDS, draws, domain=Domain.EVALUATION)
    assert not torch.allclose(first, once), "three equal answers would average to one of them"
    assert target.network_calls == 3 * look_through(defense).network_calls
    single = [target.logits(x[i : i + 1], IDS[i : i + 1], draws[:1], Domain.EVALUATION) for i in range(3)]
    assert torch.equal(torch.cat(single), first), "independent of the batch"


def test_a_wrapper_that_changes_the_number_of_images_is_told_what_to_do():
    class Twice(nn.Module):
        def __init__(self, defense):
            super().__init__()
            self.defense = defense
            self.eval()

        def forward(self, x):
            return self.defense(torch.cat([x, x.flip(-1)])).view(2, len(x), -1).mean(0)

    with pytest.raises(ValueError, match="Pass `sample_ids` and `draw` on"):
        ATTACK(Twice(mixture_defense(Pixels())), images(3), torch.tensor([0, 1, 2]))


@pytest.mark.parametrize("whole_batch", [False, True])
def test_noise_of_ones_own_is_averaged_over_as_many_calls_as_asked(whole_batch):
    noisy, x, y = Noisy(Pixels(), whole_batch=whole_batch), images(2), torch.tensor([0, 1])
    attack = fp.attacks.PGD(n_iter=1, eot_iter=6, eval_draws=9, random_start=False)
    result = attack(noisy, x, y)
    assert result.robust_correct.shape == (2, 9)
    # Two calls tell that it is random; six gradients, nine judgements of the originals, nine of the attacked.
    assert noisy.calls == [1, 1] + [2] * (6 + 9 + 9)
    state = torch.random.get_rng_state()
    door(noisy, x, torch.arange(2))
    assert torch.equal(torch.random.get_rng_state(), state), "asking at the door moves no generator"


def test_more_draws_per_gradient_see_more_of_foreign_noise():
    torch.manual_seed(0)
    x, y = images(16), torch.arange(16) % 5
    target = door(Noisy(Pixels(), 0.5, whole_batch=True), x, torch.arange(16))

    def spread(n: int) -> float:
        loss = fp.attacks.gradient.objective(
            fp.attacks.gradient.attack_logits(target), nn.CrossEntropyLoss(reduction="none")
        )
        found = [fp.attacks.gradient.query(loss, x, y, y, range(n), 999).gradient for _ in range(6)]
        return float(torch.stack(found).std(0).mean())

    assert spread(16) < 0.5 * spread(1)


def test_rare_randomness_is_found():
    torch.manual_seed(1)
    assert all(door(Flips().eval(), images(1), torch.tensor([0])).own_noise for _ in range(10))


@pytest.mark.parametrize("part", ["classifier", "denoiser"])
def test_a_defence_with_a_part_that_draws_noise_of_its_own_is_found(part, tmp_path):
    inner = mixture_defense(Noisy(Pixels()) if part == "classifier" else Pixels())
    if part == "denoiser":
        network = Noisy(nn.Identity(), 0.5).eval()
        method = fp.methods.coup_unguided(t=0.1, dt=0.05)
        network.forward = lambda x, label: 0.1 * x + 0.1 * torch.randn_like(x)
        denoiser = fp.Denoiser.from_module(network, image_shape=SHAPE)
        inner = fp.Defense(fp.Purifier(denoiser, method), Pixels())
    x, ids = images(2), torch.arange(2)
    target = door(inner, x, ids)
    assert target.own_noise == f"the {part}"
    with inner.fixed():
        assert target.is_random, "holding the numbered noise does not make it deterministic"
    data = Dataset(x, ids, ids.clone(), tuple("abcde"), "toy", "test")
    run = {"protocol": fp.protocols.fresh(4), "progress": False}
    with pytest.raises(ValueError, match=f"`out` must be None .*the {part} .* draws noise of its own"):
        fp.evaluate(inner, data, out=tmp_path / "r.sqlite", **run)
    assert not list(tmp_path.iterdir())
    assert fp.evaluate(inner, data, **run).n_images == 2
    with pytest.raises(ValueError, match=r"`defense` must be one whose noise .* can hold"):
        fp.evaluate(inner, data, **{**run, "protocol": fp.protocols.dw_box()})


def test_deterministic_modules_and_defences_are_asked_once_per_image():
    target = door(Pixels(), images(2), torch.arange(2))
    assert not target.is_random
    assert not target.own_noise
    defense = mixture_defense(Pixels())
    with defense.fixed(draw=3):
        assert not door(defense, images(2), torch.arange(2)).is_random
        assert not door(Temperature(defense), images(2), torch.arange(2)).is_random
    assert door(defense, images(2), torch.arange(2)).is_random


class Answers(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.answer = answer
        self.eval()

    def forward(self, x):
        return self.answer(x)


def poisoned(x: Tensor) -> Tensor:
    logits = Pixels()(x)
    return torch.where((x.flatten(1)[:, :1] > 0.99), torch.nan, logits)


@pytest.mark.parametrize(
    ("answer", "error", "match"),
    [
        (lambda x: (Pixels()(x), 1), ValueError, "logits .*, got tuple"),
        (lambda x: {"logits": Pixels()(x)}, ValueError, "logits .*, got dict"),
        (lambda x: Pixels()(x)[0], ValueError, r"logits \[1, classes\], got shape \[5\]"),
        (
            lambda x: Pixels()(x) * torch.nan,
            NonFiniteError,
            "classifier Answers answered NaN or Inf for sample id 5",
        ),
        (lambda x: Pixels()(x)[:, :2], ValueError, "`y` must be labels in 0..1"),
    ],
)
def test_an_answer_that_is_none_is_a_sentence(answer, error, match):
    with pytest.raises(error, match=match):
        ATTACK(Answers(answer), images(3), torch.tensor([0, 1, 2]), sample_ids=IDS)


def test_nan_later_on_is_seen_too():
    x = images(3).clamp(0, 0.9)
    x[1, 0, 0, 0] = 1.0
    with pytest.raises(NonFiniteError, match="classifier Answers answered NaN or Inf for sample id 2"):
        ATTACK(Answers(poisoned), x, torch.tensor([0, 1, 2]), sample_ids=IDS)
    broken = mixture_defense(Answers(lambda x: Pixels()(x) * torch.nan))
    with pytest.raises(NonFiniteError, match="classifier Answers"):
        ATTACK(broken, x, torch.tensor([0, 1, 2]))


def test_too_few_classes_for_the_labels_of_a_data_set():
    data = Dataset(images(4), torch.tensor([0, 1, 6, 2]), torch.arange(4), tuple("abcdefg"), "toy", "test")
    with pytest.raises(ValueError, match=r"at least 7 classes.*, got 5 classes"):
        fp.evaluate(Pixels(), data, progress=False)


def test_what_is_held_in_one_thread_is_random_in_another():
    defense, x, seen = mixture_defense(Pixels()), images(2), []

    def other() -> None:
        seen.append((defense.fixed_draw, torch.equal(defense(x), defense(x))))

    with defense.fixed(draw=1):
        assert torch.equal(defense(x), defense(x))
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert seen == [(None, False)]


def test_targets_travel_to_other_processes():
    target = door(Temperature(mixture_defense(Pixels())), images(2), IDS[:2])
    for again in (pickle.loads(pickle.dumps(target)), copy.deepcopy(target)):
        draws = torch.tensor([1, 2])
        expected = target.logits(images(2), IDS[:2], draws, Domain.ATTACK)
        assert torch.equal(again.logits(images(2), IDS[:2], draws, Domain.ATTACK), expected)
        assert again.describe() == target.describe()


def test_a_module_around_a_defence_is_described_with_it():
    one = look_through(Temperature(mixture_defense(Pixels()))).describe()
    other = look_through(
        Temperature(mixture_defense(Pixels(), fp.methods.diffpure(t=0.1, dt=0.02)))
    ).describe()
    assert one["kind"] == "module"
    assert one["inside"] != other["inside"]
    assert look_through(nn.DataParallel(mixture_defense(Pixels()))).describe()["kind"] == "defense"
