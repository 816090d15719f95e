"""`start=`: attacks continue what others have found, on the images it was found on and on no others."""

from __future__ import annotations

import pickle

import pytest
import torch

import fastpure as fp
from fastpure.attacks import APGDCE, APGDDLR, APGDT, PGD, Start
from fastpure.purify.description import plain
from tests.attacks.toys import SHAPE, Pixels, images, mixture_defense

IDS = torch.tensor([7, 3, 11, 5, 20])
X = images(5)
Y = Pixels()(X).argmax(1)
EPS = {"Linf": 0.05, "L2": 0.4, "L1": 2.0}
DATA = fp.data.Dataset(X, Y, IDS, tuple("abcde"), "toy", "test")


def found(norm: str = "Linf") -> fp.attacks.AttackResult:
    return PGD(norm=norm, eps=EPS[norm], n_iter=4, seed=3)(Pixels(), X, Y, sample_ids=IDS)


def still(norm: str = "Linf", **settings) -> PGD:
    """One step so small that the result shows the start."""
    return PGD(norm=norm, eps=EPS[norm], n_iter=1, step_size=1e-12, eval_draws=2, **settings)


@pytest.mark.parametrize("norm", EPS)
def test_the_search_begins_there(norm):
    first = found(norm)
    result = still(norm, start=first)(Pixels(), X, Y, sample_ids=IDS)
    assert torch.allclose(result.x_adv, first.x_adv, atol=1e-6)
    by_tensor = still(norm, start=first.x_adv)(Pixels(), X, Y, sample_ids=IDS)
    assert torch.equal(by_tensor.x_adv, result.x_adv)


@pytest.mark.parametrize("norm", EPS)
def test_apgd_asks_first_at_the_start_and_never_ends_behind_it(norm):
    asked = []

    class Recording(Pixels):
        def forward(self, u):
            if u.requires_grad:
                asked.append(u.detach().clone())
            return super().forward(u)

    first = found(norm)
    run = APGDCE(norm=norm, eps=EPS[norm], n_iter=6, start=first)
    result = run(Recording(), X, Y, sample_ids=IDS)
    assert torch.allclose(asked[0], first.x_adv, atol=1e-6)
    radius = max(float(run.budget.distance(u, X).max()) for u in asked if len(u) == len(X))
    assert radius <= EPS[norm] * (1 + 1e-4), "the larger balls of L1 are there to find a start"
    assert len(result.losses) == 6

    def loss(u):
        return torch.nn.functional.cross_entropy(Pixels()(u), Y, reduction="none")

    kept = (Pixels()(result.x_adv).argmax(1) != Y) | (loss(result.x_adv) >= loss(first.x_adv) - 1e-5)
    assert kept.all()


def test_later_restarts_begin_at_random_points():
    starts = []

    class Recording(Pixels):
        def forward(self, u):
            if u.requires_grad:
                starts.append(u.detach().clone())
            return super().forward(u)

    first = found()
    defense = mixture_defense(Recording())
    for kind, rounds in ((APGDCE, 1), (APGDT, 2)):
        more = {} if kind is APGDCE else {"n_target_classes": 2}
        with_it, without = (
            kind(eps=0.05, n_iter=2, n_restarts=2, eot_iter=1, start=start, **more) for start in (first, None)
        )
        both = []
        for run in (with_it, without):
            starts.clear()
            run(defense, X, Y, sample_ids=IDS)
            both.append([starts[3 * number] for number in range(2 * rounds)])
        for number in range(2 * rounds):
            same = torch.equal(both[0][number], both[1][number])
            assert same == (number % 2 == 1), "only the second restart of each target is as without a start"


def test_images_are_matched_by_name_in_any_batch_and_order():
    first, defense = found(), mixture_defense(Pixels())
    for run in (
        PGD(eps=0.05, n_iter=2, eot_iter=2, start=first),
        APGDCE(eps=0.05, n_iter=3, eot_iter=2, n_restarts=2, start=first),
    ):
        whole = run(defense, X, Y, sample_ids=IDS).x_adv
        order = torch.tensor([4, 1, 0])
        assert torch.equal(run(defense, X[order], Y[order], sample_ids=IDS[order]).x_adv, whole[order])


def test_a_tensor_serves_parts_of_the_images_too():
    """Restarts go on with the images that are not broken; a start by position must still be each image's own."""
    first = found().x_adv
    by_name, by_place = (
        APGDDLR(eps=0.12, n_iter=4, n_restarts=2, start=start)(Pixels(), X, Y, sample_ids=IDS)
        for start in (Start(first, IDS), first)
    )
    assert torch.equal(by_name.x_adv, by_place.x_adv)


def test_runs_and_their_files_are_starts(tmp_path):
    quick = {"batch_size": 2, "progress": False}
    fresh = fp.protocols.fresh(2)
    path = tmp_path / "a.sqlite"
    fp.evaluate(Pixels(), DATA, PGD(eps=0.05, n_iter=4), fresh, path, **quick)
    with fp.Run.open(path) as run:
        stored = torch.from_numpy(run.images("adversarial"))
        attacks = [still(start=start) for start in (run, path, str(path), run.as_attack())]
    for attack in attacks:
        assert torch.equal(attack.start.found, stored)
        assert torch.equal(attack.start.sample_ids, IDS)
        assert plain(attack) == plain(attacks[0]), "the identity is that of the images"
    fp.evaluate(Pixels(), DATA, attacks[1], fresh, tmp_path / "b.sqlite", **quick)
    with fp.Run.open(tmp_path / "b.sqlite") as run:
        assert abs(run.images("adversarial") - stored.numpy()).max() < 1e-6
        kept = run.identity["attack"]["settings"]["start"]["settings"]["found"]
    assert set(kept) == {"dtype", "shape", "sha256"}
    assert "start=Start" in fp.Report.of(fp.Run.open(tmp_path / "b.sqlite")).attack
    other = still(start=Start((stored + 0.001).clamp(0, 1), IDS))
    with pytest.raises(fp.errors.RunMismatch, match="start"):
        fp.evaluate(Pixels(), DATA, other, fresh, tmp_path / "b.sqlite", **quick)


def test_a_tensor_in_an_evaluation_is_in_the_order_of_the_data_set():
    quick = {"batch_size": 2, "progress": False}
    first = found()
    a, b = (
        fp.evaluate(Pixels(), DATA, still(start=start), fp.protocols.fresh(2), **quick).digest
        for start in (first.x_adv, Start(first.x_adv, IDS))
    )
    assert a == b
    with pytest.raises(ValueError, match=r"`start` must be one for each of 5 images, got 3. Give sample_ids"):
        fp.evaluate(Pixels(), DATA, still(start=X[:3]), fp.protocols.fresh(2), **quick)


def test_its_cost_and_its_signs_of_weakness_are_those_of_the_attack(tmp_path):
    from fastpure.evaluate.weakness import effort, setting

    fresh = fp.protocols.fresh(2)
    for norm in ("Linf", "L2"):
        plain_run = APGDCE(norm=norm, eps=EPS[norm], n_iter=12)
        started = APGDCE(norm=norm, eps=EPS[norm], n_iter=12, start=found(norm))
        one, two = (fp.plan(mixture_defense(Pixels()), DATA, a, fresh) for a in (plain_run, started))
        assert (one.gradients, one.judgements) == (two.gradients, two.judgements)
    fp.evaluate(Pixels(), DATA, started, fresh, tmp_path / "a.sqlite", progress=False)
    with fp.Run.open(tmp_path / "a.sqlite") as run:
        assert effort(run.identity).steps == 12
        assert setting(run).effort == plain_run.effort(5)


def test_without_start_identity_is_as_before():
    assert "start" not in plain(PGD())["settings"]
    assert "start" not in plain(APGDCE())["settings"]


def test_others_images_are_refused():
    first = found()
    run = still(start=first)
    with pytest.raises(ValueError, match=r"among the 5 found.*\[8\].*named alike"):
        run(Pixels(), X, Y, sample_ids=torch.tensor([7, 3, 8, 5, 20]))
    with pytest.raises(ValueError, match=r"inside the ball Linf 0.05.*sample id 7, 3\. Start from"):
        run(Pixels(), X[[1, 0]], Y[[1, 0]], sample_ids=IDS[[0, 1]])
    for norm, eps in (("Linf", 0.04), ("L2", 0.1), ("L1", 0.3)):
        with pytest.raises(ValueError, match=f"inside the ball {norm}"):
            PGD(norm=norm, eps=eps, start=first)(Pixels(), X, Y, sample_ids=IDS)
    with pytest.raises(ValueError, match="images of"):
        still(start=torch.rand(5, 3, 5, 5))(Pixels(), X, Y)
    with pytest.raises(ValueError, match="one for each of 5 images, got 4"):
        still(start=X[:4])(Pixels(), X, Y)


def test_rounding_is_no_mistake():
    """Other libraries clamp to x +- eps in float32, which lands a rounding outside of the exact ball."""
    outside = torch.where(X < 0.5, torch.nextafter(X + 0.05, torch.ones(1)), X)
    assert not fp.attacks.Budget("Linf", 0.05).admits(fp.attacks.Budget().distance(outside, X)).all()
    result = still(start=outside)(Pixels(), X, Y)
    assert float(result.distance.max()) <= 0.05


@pytest.mark.parametrize(
    ("start", "error", "message"),
    [
        (
            7,
            TypeError,
            "`start` must be a tensor .*, an AttackResult, a run or the path of a run file, got int",
        ),
        (X.double(), ValueError, "start.*float32"),
        (X[0], ValueError, "start.*4 dimensions"),
        (X.index_fill(0, torch.tensor([2]), torch.nan), ValueError, "`start` must be finite.*sample id 2"),
        (X + 1.0, ValueError, r"images in \[0, 1\]"),
        ("nowhere.sqlite", FileNotFoundError, "no such run file"),
    ],
)
def test_mistakes_are_named(start, error, message):
    for kind in (PGD, APGDCE):
        with pytest.raises(error, match=message):
            kind(start=start)


def test_it_prints_short_and_travels():
    run = still(start=found())
    assert "start=Start(5 images)" in str(run)
    other = pickle.loads(pickle.dumps(run))
    assert torch.equal(other.start.found, run.start.found)
    assert still(start=X[:0])(Pixels(), X[:0], Y[:0]).x_adv.shape == (0, *SHAPE)
