"""Names that are not known: what is told instead, and norms however they are written."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import numpy as np
import pytest

import fastpure as fp
from fastpure.anomaly.attack import AnomalyAttack
from fastpure.attacks import ATTACKS, Budget, from_settings
from fastpure.attacks.gradient_modes import MODES
from fastpure.attacks.losses import LOSSES
from fastpure.data import DATASETS, load_dataset
from fastpure.errors import one_of
from fastpure.evaluate import CONTROLS
from fastpure.evaluate.protocol import PROTOCOLS
from fastpure.methods import METHODS, spec
from fastpure.norms import norm_called
from fastpure.purify.description import plain
from fastpure.purify.precision import PRECISIONS
from fastpure.signatures import arguments
from fastpure.train import TradesLoss
from fastpure.words import ELSEWHERE, did_you_mean


@pytest.mark.parametrize(
    ("kind", "name", "meant"),
    [
        (fp.attacks.PGD, "alpha", "step_size (alpha in torchattacks)"),
        (fp.attacks.PGD, "steps", "n_iter (steps in torchattacks"),
        (fp.attacks.PGD, "epsilon", "eps (epsilon in"),
        (fp.attacks.PGD, "max_iter", "n_iter (max_iter in ART)"),
        (fp.attacks.PGD, "epsilons", "eps (epsilons in foolbox)"),
        (fp.attacks.PGD, "eot_iters", "eot_iter (eot_iters in DiffBreak)"),
        (fp.attacks.APGDCE, "restarts", "n_restarts or start?"),
        (fp.attacks.Square, "n_querys", "n_queries?"),
        (fp.attacks.DWPGD, "STEP_SIZE", "step_size?"),
    ],
)
def test_attacks_say_what_was_meant(kind, name, meant):
    with pytest.raises(
        TypeError, match=f"got an unexpected keyword argument '{name}'. Did you mean "
    ) as stop:
        kind(**{name: 1})
    assert f"Did you mean {meant}" in str(stop.value)


CALLED = (
    fp.Purifier,
    fp.Defense,
    fp.evaluate,
    fp.load_classifier,
    fp.load_denoiser,
    load_dataset,
    fp.purify_files,
)


@pytest.mark.parametrize(
    ("function", "name", "meant"),
    [
        (fp.Purifier, "unet", "denoiser (unet in diffusers)"),
        (fp.Purifier, "torch_dtype", "precision (torch_dtype in diffusers)"),
        (fp.Defense, "model", "classifier (model in torchattacks)"),
        (fp.evaluate, "bs", "batch_size (bs in AutoAttack)"),
        (fp.evaluate, "out_dir", "out (out_dir in DiffBreak)"),
        (fp.load_classifier, "model_dirs", "model_dir?"),
        (fp.load_denoiser, "weight", "weights?"),
        (load_dataset, "data_dir", "path (data_dir in RobustBench)"),
        (fp.purify_files, "batchsize", "batch_size?"),
    ],
)
def test_what_one_calls_first_says_what_was_meant(function, name, meant):
    with pytest.raises(TypeError, match="got an unexpected keyword argument") as stop:
        function(**{name: 1})
    assert str(stop.value).startswith(f"{function.__name__}() got")
    assert f"Did you mean {meant}" in str(stop.value)


def test_other_wrong_calls_keep_pythons_own_error():
    with pytest.raises(TypeError, match="missing 2 required positional arguments: 'denoiser' and 'method'"):
        fp.Purifier()
    with pytest.raises(TypeError, match="multiple values for argument 'name'"):
        load_dataset("digits", name="digits")


def test_attacks_are_made_copied_and_inherited_as_before():
    attack = fp.attacks.PGD(eps=0.1, n_iter=3)
    assert pickle.loads(pickle.dumps(attack)) == copy.deepcopy(attack) == attack
    assert dataclasses.replace(attack, n_iter=4).n_iter == 4
    with pytest.raises(TypeError, match="It has norm, eps"):
        fp.attacks.PGD(quite_else=1)

    class Own(fp.attacks.PGD):
        def __init__(self, grey_levels: int) -> None:
            super().__init__(eps=grey_levels / 255)

    assert Own(grey_levels=8).eps == 8 / 255
    with pytest.raises(TypeError, match="Did you mean grey_levels"):
        Own(grey_level=8)

    class Open(fp.attacks.PGD):
        def __init__(self, grey_levels: int, **anything: object) -> None:
            super().__init__(eps=grey_levels / 255)

    assert Open(grey_levels=8, label="mine").eps == 8 / 255


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fp.methods.diffpure(strength=0.1), r"diffpure\(\) got .* 'strength'. Did you mean t \("),
        (lambda: fp.methods.ddim(num_inference_steps=5), r"Did you mean n_steps \(num_inference_steps in diffusers"),
        (lambda: fp.methods.ddpm(varience="large"), "Did you mean variance"),
        (lambda: fp.methods.make("diff-pure"), "Did you mean diffpure"),
        (lambda: fp.methods.make("vpsde"), r"Did you mean diffpure \(vpsde in DiffBreak\)"),
        (lambda: fp.methods.make("diffpure-ode"), "Did you mean diffpure_ode"),
        (lambda: from_settings("apgd"), r"Did you mean apgd-ce \(apgd in"),
        (lambda: from_settings("PGD"), "Did you mean pgd"),
        (lambda: from_settings("pgd", alpha=1), "Did you mean step_size"),
        (lambda: fp.attacks.PGD(loss="CE"), "Did you mean ce"),
        (lambda: fp.attacks.PGD(gradient="full"), r"Did you mean exact \(full in DiffBreak\)"),
        (lambda: fp.load_denoiser("digit"), "digits"),
        (lambda: fp.presets["coup-cifar-linf"], "coup-cifar10-linf"),
        (lambda: fp.data.load_dataset("cifar-10"), "Did you mean cifar10"),
        (lambda: fp.protocols.make("any-of-n"), "Did you mean any_of_n"),
    ],
)  # fmt: skip
def test_names_everywhere_say_what_was_meant(call, message):
    with pytest.raises((ValueError, TypeError, KeyError), match=message):
        call()


def test_nothing_is_suggested_where_nothing_is_near():
    assert did_you_mean("zzz", ["pgd", "square"]) == ""
    assert did_you_mean(3, ["pgd", 4]) == ""
    assert did_you_mean("--epsilon", ["--eps", "--n"]) == "Did you mean --eps (epsilon in TRADES and papers)?"
    with pytest.raises(ValueError, match=r"must be one of 'a', 'b', got 'zzz'$"):
        one_of("x", "zzz", ["a", "b"])


def test_every_word_of_another_project_has_one_here():
    """A translation into a name that exists nowhere would never be told."""
    from typer.main import get_command

    from fastpure.cli.main import app

    names = {
        name.replace("-", "_")
        for name in (*ATTACKS, *CONTROLS, *METHODS, *LOSSES, *MODES, *DATASETS, *PROTOCOLS)
    }
    for kind in ATTACKS.values():
        names |= {field.name for field in dataclasses.fields(kind)}
    for name in METHODS:
        names |= set(spec(name).arguments)
    for command in get_command(app).commands.values():
        names |= {param.name for param in command.params}
    for function in CALLED:
        names |= set(arguments(function))
    names |= {*PRECISIONS, *fp.__all__}
    for word, meanings in ELSEWHERE.items():
        assert word == word.lower().replace("-", "_")
        for ours, source in meanings:
            assert ours.replace("-", "_") in names, f"{word} -> {ours}"
            assert source
        assert word not in {ours for ours, _ in meanings}


LINF = ("Linf", "linf", "LINF", "inf", "INF", "L-inf", "l_inf", "L inf", float("inf"), np.inf, "infinity")


@pytest.mark.parametrize("written", LINF)
def test_norms_may_be_written_in_many_ways_and_are_kept_in_one(written):
    assert norm_called("norm", written, ("Linf", "L2")) == "Linf"
    assert Budget(written, 0.1) == Budget("Linf", 0.1)
    assert plain(fp.attacks.PGD(norm=written)) == plain(fp.attacks.PGD())
    assert plain(fp.attacks.AutoAttack(norm=written)) == plain(fp.attacks.AutoAttack())
    assert AnomalyAttack(norm=written) == AnomalyAttack()
    assert TradesLoss(norm=written) == TradesLoss()


@pytest.mark.parametrize(
    ("written", "kept"), [("l2", "L2"), (2, "L2"), (2.0, "L2"), ("L_2", "L2"), (1, "L1"), ("1", "L1")]
)
def test_other_norms(written, kept):
    assert fp.attacks.PGD(norm=written, eps=1.0).norm == kept
    assert fp.attacks.PGD(norm=written, eps=1.0).budget == Budget(kept, 1.0)


def test_a_methods_norm_is_kept_in_one_way():
    assert fp.methods.dps(norm="L2").settings == fp.methods.dps().settings
    assert dict(fp.methods.dps(norm="L1").settings)["norm"] == "l1"


@pytest.mark.parametrize("written", ["L3", 3, True, None, "", float("nan"), "linfty2"])
def test_no_norms(written):
    with pytest.raises(ValueError, match="`norm` must be one of 'Linf', 'L2', 'L1'"):
        Budget(written, 0.1)


@pytest.mark.parametrize("written", [-2, "-2", float("-inf"), "-inf", "-1", "l--2", "- 2", "l-"])
def test_a_sign_is_no_dash(written):
    with pytest.raises(ValueError, match="`norm` must be one of"):
        norm_called("norm", written, ("Linf", "L2", "L1"))
