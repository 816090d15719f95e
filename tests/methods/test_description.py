"""A method describes and rebuilds itself: what the decorator records, and what is made of it again."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
from torch import nn

import fastpure as fp
from fastpure.evaluate.identity import rebuild_method
from fastpure.guidance import ClassifierConfidence
from fastpure.methods import METHODS, Method, Spec, make, spec
from fastpure.methods.base import method
from fastpure.purify.description import plain
from fastpure.schedule import forward_diffusion, reverse_sde
from tests.methods.cases import auxiliary
from tests.methods.small import SMALL, toy_energy
from tests.reverse.toys import toy_classifier

CLASSIFIER, AUXILIARY, ENERGY = toy_classifier(), auxiliary(), toy_energy()

VARIED = {
    "diffpure": [{"t": 0.2, "dt": 0.05, "clip_output": True, "solver": "exponential"}],
    "diffpure_ode": [{"t": 0.2, "dt": 0.05, "clip_output": True}],
    "coup": [
        {"t": 0.2, "dt": 0.05, "scale": 2.0, "label": "input", "guidance_grad": "detached"},
        {"clip_output": False, "solver": "exponential"},
    ],
    "coup_unguided": [{"t": 0.2, "dt": 0.05, "clip_output": False, "solver": "exponential"}],
    "ddpm": [{"t": 0.2, "variance": "large", "clip_x0": False, "n_steps": 7, "clip_output": False}, {}],
    "ddim": [
        {
            "t": 0.2,
            "n_steps": 5,
            "eta": 0.3,
            "clip_x0": False,
            "spacing": "linspace",
            "clip_output": False,
        }
    ],
    "dpm_solver": [{"t": 0.2, "n_steps": 4, "stochastic": True, "clip_x0": True, "clip_output": False}],
    "gdmp": [
        {"t": 0.01, "rounds": 2, "metric": "ssim", "guide_scale": 7.0, "ptb": 4.0, "reference_batch": 50},
        {"variance": "small", "guide": "clean", "chain": 250, "begin": "level"},
        {"metric": "ssim", "guidance_grad": "no_guide_path", "clip_output": False, "data_range": 3.0},
        {"variance": "learned"},
    ],
    "agdm": [
        {"t": 0.02, "scale": 2.0, "eta": 0.5, "label": "step", "features": "noised"},
        {"variance": "small", "clip_x0": False, "guidance_grad": "detached", "clip_output": False},
        {"sampler": "sde", "dt": 0.005},
        {"sampler": "exponential", "dt": 0.005},
        {"chain": 50, "t": 0.1, "distance": "kl"},
        {"chain": 50, "t": 0.1, "variance": "learned"},
    ],
    "adbm": [
        {"t": 0.2, "n_steps": 4, "rounds": 2, "schedule": "training", "sampler": "ddpm"},
        {"clip_x0": False, "clip_output": False, "sampler": "dpm_solver"},
        {"classifier": CLASSIFIER, "scale": 0.5, "label": "input", "guidance_grad": "detached"},
    ],
    "addt": [
        {"sampler": "ddim", "n_steps": 50, "strength": 0.2, "clip_output": False},
        {"sampler": "vp", "n_steps": 50},
        {"sampler": "vp", "n_steps": 50, "corrector": False},
        {"sampler": "edm"},
        {"classifier": CLASSIFIER, "scale": 0.5, "label": "input", "guidance_grad": "detached"},
    ],
    "vp_sde": [
        {"strength": 0.2, "n_steps": 40, "snr": 0.2, "clip_output": True},
        {"n_steps": 40, "corrector": False},
    ],
    "edm": [
        {"sigma_max": 0.4, "sigma_min": 0.01, "n_steps": 5, "rho": 6.0, "churn": 2.0, "s_noise": 1.0},
        {"heun": False, "clip_output": False},
    ],
    "gradual": [{"stages": [[5, 5], [20, 2]], "eta": 0.0, "clip_x0": True, "clip_output": True}],
    "one_shot": [{"sigma": 0.5, "schedule": "cosine", "clip_x0": False, "clip_output": False}],
    "langevin": [
        {"t": 0.05, "n_steps": 10, "dt": 0.02, "rate": 0.02, "variance": 2e-3, "temperature": 4.0},
        {"guidance_grad": "detached", "clip_output": True},
    ],
    "likelihood_max": [
        {"n_iter": 3, "lr": 0.2, "sigma": [0.3, 0.5], "clip_output": False},
        {"classifier": CLASSIFIER, "confidence": 0.7, "guidance_grad": "detached"},
    ],
    "adp": [
        {"noise": 0.3, "n_iter": 3, "rate": 0.06, "probe": 2e-3, "bounds": [1e-4, 0.2], "stop": 2e-3},
        {"level": 0.2, "clip_output": False},
    ],
    "flow": [{"t": 0.4, "n_steps": 4, "solver": "heun", "clip_output": False}],
    "flowpure": [{"sigma": 0.3, "start": 0.2, "n_steps": 4, "clip_output": False}],
    "consistency": [
        {"sigma": 0.8, "n_steps": 3, "sigma_min": 0.01, "rho": 5.0, "clip_x0": False, "clip_output": False}
    ],
    "lorid": [
        {"t": 0.02, "rounds": 2, "ranks": [1, 3, 5], "variance": "large", "clip_x0": False},
        {"n_steps": 3, "clip_output": False},
    ],
    "mimic": [
        {"n_steps": 50, "scale": 2000.0, "window": [10, 80], "pooled": 2, "reduction": "sum", "eta": 0.5},
        {"clip_x0": False, "width": 0.2, "guidance_grad": "smoothed", "clip_output": False},
    ],
    "ebm_langevin": [
        {"n_steps": 20, "tau": 0.05, "guidance_grad": "detached", "clip_output": True},
    ],
    "heterogeneous": [
        {"t": 0.3, "t_rest": 0.2, "n_steps": 6, "repeats": 3, "blocks": "conv", "threshold": 0.4},
        {"mask": "soft", "sharpness": 9.0, "eta": 0.5, "clip_x0": False},
        {"guidance_grad": "mask_constant", "clip_output": False},
    ],
    "freqpure": [
        {"t": 0.2, "n_steps": 5, "amplitude_radius": 2.0, "phase_radius": 3.0, "delta": 0.3, "guide_t": 0.1},
        {"noise": "implied", "eta": 0.0, "clip_x0": True, "guidance_grad": "detached", "clip_output": False},
    ],
    "dps": [
        {"t": 0.2, "n_steps": 5, "scale": 0.5, "norm": "squared", "eta": 0.0, "clip_x0": True},
        {"guidance_grad": "no_guide_path", "clip_output": False},
    ],
}
"""Settings other than the defaults, every setting once."""

FORMER = {
    "gdmp": [{"metric": "ssim", "data_range": 2.0}],
    "agdm": [{"latent": "penultimate"}],
    "adbm": [{"sampler": "ddpm", "variance": "small"}],
    "adp": [{"rest": "after"}],
}
"""What these methods did before a default changed: it is recorded by leaving the setting out."""

MADE = [(name, settings) for name, varied in VARIED.items() for settings in varied]


def network_of(name: str) -> dict[str, nn.Module]:
    """The network a method cannot do without, by the name of its argument."""
    return {
        "coup": {"classifier": CLASSIFIER},
        "agdm": {"auxiliary": AUXILIARY},
        "ebm_langevin": {"energy": ENERGY},
        "heterogeneous": {"classifier": CLASSIFIER},
    }.get(name, {})


def made(name: str, settings: dict) -> Method:
    return METHODS[name](**{**network_of(name), **settings})


def test_every_setting_of_every_method_is_varied_here():
    assert set(VARIED) == set(METHODS)
    for name, varied in VARIED.items():
        changed = {key for settings in (*varied, *FORMER.get(name, ())) for key in settings}
        assert changed | set(network_of(name)) == set(spec(name).arguments), name


@pytest.mark.parametrize(("name", "settings"), MADE)
def test_a_method_is_made_again_from_what_it_says_of_itself(name, settings):
    first = made(name, settings)
    assert first.name == name
    assert first.rebuilt() == first
    network = {} if first.network is None else {spec(name).network: first.network}
    again = make(name, **dict(first.settings), **network)
    assert again == first
    assert again.settings == first.settings
    assert again.steps.digest == first.steps.digest
    assert (again.schedule, again.clip_output, again.note) == (first.schedule, first.clip_output, first.note)


@pytest.mark.parametrize("name", FORMER)
def test_a_record_from_before_a_default_changed_means_what_it_meant(name):
    (settings,) = FORMER[name]
    *_, changed = settings
    before, now = made(name, settings), made(name, {k: v for k, v in settings.items() if k != changed})
    assert before != now
    assert changed not in dict(before.settings)
    assert changed in dict(now.settings)
    assert before.rebuilt() == before
    assert now.rebuilt() == now
    recorded = METHODS[name].remembered(dict(before.settings))
    assert recorded[changed] == settings[changed]
    assert METHODS[name](**{**network_of(name), **recorded}) == before
    described = plain(before)
    again = rebuild_method(described, next(iter(network_of(name).values()), CLASSIFIER))
    assert plain(again) == described


def test_a_setting_that_was_of_no_use_comes_back_as_the_default():
    """A record of GDMP with its squared error says nothing of SSIM's constants."""
    assert fp.methods.gdmp().rebuilt(metric="ssim", guide_scale=7e4) == fp.methods.gdmp(metric="ssim")
    assert fp.methods.adbm().rebuilt(sampler="ddpm") == fp.methods.adbm(sampler="ddpm")


@pytest.mark.parametrize(("name", "settings"), MADE)
def test_what_was_given_is_recorded(name, settings):
    recorded = dict(made(name, settings).settings)
    as_tuples = {key: tuple(map(tuple, v)) if key == "stages" else v for key, v in settings.items()}
    for key, value in as_tuples.items():
        if key != "classifier":
            assert recorded[key] == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize("name", METHODS)
def test_a_spec_is_the_signature(name):
    found = inspect.signature(METHODS[name])
    takes = spec(name)
    settings = {key: p.default for key, p in found.parameters.items() if key != takes.network}
    assert takes == Spec(name, tuple(settings.items()), takes.network, takes.required, takes.steps)
    assert hash(takes) == hash(spec(name))
    assert found.return_annotation == "Method"
    assert takes.steps is None or takes.steps in settings
    typed = {key for key, p in found.parameters.items() if "nn.Module" in p.annotation}
    assert typed == ({takes.network} if takes.network else set())
    assert takes.required == (name in ("coup", "agdm", "ebm_langevin", "heterogeneous"))
    assert make(name, **dict(takes.settings), **network_of(name)) == made(name, {})


def test_an_unknown_method_has_no_spec():
    with pytest.raises(ValueError, match=r"`method` must be one of 'diffpure', .* got 'coupe'"):
        spec("coupe")


@pytest.mark.parametrize(
    ("method", "text"),
    [
        (
            fp.methods.coup(CLASSIFIER),
            "t=0.1, dt=0.001, scale=1.0, label='step', guidance_grad='exact', clip_output",
        ),
        (
            fp.methods.diffpure(solver="exponential"),
            "t=0.1, dt=0.001, clip_output=False, solver='exponential')",
        ),
        (
            fp.methods.agdm(AUXILIARY),
            "sampler='ddpm', variance='large', clip_x0=True, label='input', features",
        ),
        (
            fp.methods.agdm(AUXILIARY, sampler="sde"),
            "eta=1.0, sampler='sde', dt=0.001, label='input', features",
        ),
        (
            fp.methods.gdmp(begin="level"),
            "guide='noised', chain=1000, begin='level', guidance_grad='exact', clip",
        ),
        (
            fp.methods.gdmp(),
            "guide_scale=60000.0, ptb=8.0, reference_batch=100, variance='large', guide='noised'",
        ),
        (
            fp.methods.adbm(classifier=CLASSIFIER),
            "clip_output=True, scale=1.0, label='step', guidance_grad='exact')",
        ),
        (fp.methods.adbm(), "clip_x0=True, clip_output=True): 5 network calls"),
        (fp.methods.addt("edm"), "addt(sampler='edm', n_steps=50, clip_output=True)"),
        (fp.methods.likelihood_max(), "n_iter=5, lr=0.1, sigma=(0.4, 0.6), clip_output=True)"),
    ],
)
def test_settings_are_printed_as_they_always_were(method, text):
    assert text in str(method)


def test_a_changed_setting_keeps_the_rest_and_the_network():
    first = fp.methods.coup(CLASSIFIER, t=0.1, dt=0.02, scale=3.0)
    second = first.rebuilt(scale=4.0, solver="exponential")
    assert second == fp.methods.coup(CLASSIFIER, t=0.1, dt=0.02, scale=4.0, solver="exponential")
    assert second.network is CLASSIFIER
    assert second.rebuilt(scale=3.0, solver="euler") == first
    with pytest.raises(
        ValueError, match=r"`settings of coup` must be one of 't', 'dt', 'scale', .* got 'strength'"
    ):
        first.rebuilt(strength=2.0)
    with pytest.raises(ValueError, match="`t` must be"):
        first.rebuilt(t=2.0)


def test_the_network_is_kept_and_no_part_of_the_value():
    guided, plain = fp.methods.adbm(classifier=CLASSIFIER), fp.methods.adbm()
    assert (guided.network, plain.network) == (CLASSIFIER, None)
    assert "ToyClassifier" not in repr(guided)
    assert dict(guided.settings).keys().isdisjoint({"classifier"})
    assert fp.methods.coup(CLASSIFIER) == fp.methods.coup(CLASSIFIER)
    assert fp.methods.coup(CLASSIFIER) != fp.methods.coup(toy_classifier())


def test_methods_are_copied_and_pickled_with_their_network():
    first = SMALL["coup"]()
    for other in (copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        assert other.network is other.guidance.classifier
        assert other.rebuilt() == other
        assert other.steps == first.steps


@pytest.mark.parametrize(
    ("name", "steps", "changes"),
    [
        ("diffpure", None, {"dt": 0.1}),
        ("coup", 2, {"dt": 0.05}),
        ("ddpm", None, {"n_steps": 1}),
        ("ddim", 3, {"n_steps": 3}),
        ("likelihood_max", 1, {"n_iter": 1}),
        ("langevin", 2, {"n_steps": 2, "dt": 0.02}),
        ("edm", None, {"n_steps": 1}),
    ],
)
def test_coarser_methods_take_fewer_steps_over_the_same_way(name, steps, changes):
    method = SMALL[name]()
    assert method.coarser(steps) == method.rebuilt(**changes)
    assert method.coarser(steps).steps.n_network_calls < method.steps.n_network_calls


def test_coarser_by_length():
    method = fp.methods.diffpure(t=0.1, dt=0.02)
    assert method.coarser(dt=0.05) == fp.methods.diffpure(t=0.1, dt=0.05)
    assert method.step_setting == "dt"
    with pytest.raises(ValueError, match=r"`dt` must be None where steps are given, got 0.05"):
        method.coarser(2, 0.05)
    with pytest.raises(
        ValueError, match=r"`dt` must be None for ddim, .*Give `steps`, which becomes n_steps"
    ):
        fp.methods.ddim().coarser(dt=0.05)
    with pytest.raises(ValueError, match="`steps` must be an integer >= 1, got 0"):
        method.coarser(0)


@pytest.mark.parametrize("name", ["gdmp", "gradual", "one_shot", "agdm"])
def test_methods_without_a_number_of_steps_cannot_be_coarser(name):
    method = SMALL[name]()
    assert method.step_setting is None
    with pytest.raises(ValueError, match=f"one whose settings say how many steps it takes, got {name}"):
        method.coarser()
    assert fp.methods.agdm(AUXILIARY, sampler="sde").step_setting == "dt"


@pytest.mark.parametrize("name", ["coup", "gdmp", "agdm", "langevin", "likelihood_max"])
def test_detached_changes_the_guidance_s_derivative_alone(name):
    method = SMALL[name]()
    cut = method.detached()
    assert cut.guidance.grad == "detached"
    assert cut.steps == method.steps
    assert cut.rebuilt(guidance_grad="exact") == method


@pytest.mark.parametrize("method", [fp.methods.ddim(), fp.methods.adbm()])
def test_methods_without_guidance_have_nothing_to_detach(method):
    with pytest.raises(ValueError, match="`method` must be one with the setting guidance_grad"):
        method.detached()


def test_a_method_put_together_by_hand_is_a_value_that_cannot_be_rebuilt():
    def by_hand() -> Method:
        return Method("mine", (("dt", 0.01),), reverse_sde(0.1, 0.01), None, True)

    assert by_hand() == by_hand()
    assert str(by_hand()) == "mine(dt=0.01): 10 network calls"
    assert by_hand().network is by_hand().factory is by_hand().step_setting is None
    with pytest.raises(
        ValueError, match=r"`method` must be one that fastpure.methods made, got mine, made by hand"
    ):
        by_hand().rebuilt(dt=0.02)
    with pytest.raises(ValueError, match="got mine"):
        by_hand().coarser()


@method(
    network="classifier",
    steps="n_steps",
    since={"late": 0},
    only={"scale": lambda given: given["classifier"] is not None},
    order=("n_steps",),
)
def example(
    t: float = 0.1,
    n_steps: int | None = None,
    classifier: nn.Module | None = None,
    scale: float = 1.0,
    late: int = 0,
) -> Method:
    """A method as a user would add it."""
    n = n_steps or 4
    table = forward_diffusion(0.9) + reverse_sde(t, t / n)
    guidance = None if classifier is None else ClassifierConfidence(classifier)
    return Method.of(table, guidance, note="an example", resolved={"n_steps": n})


def test_the_decorator_records_what_the_arguments_became():
    assert example().settings == (("n_steps", 4), ("t", 0.1))
    assert example(0.2, 5, CLASSIFIER, 2.0, 1).settings == (
        ("n_steps", 5),
        ("t", 0.2),
        ("scale", 2.0),
        ("late", 1),
    )
    assert example(scale=3.0).settings == example().settings, "nothing reads it"
    assert example(classifier=CLASSIFIER).network is CLASSIFIER
    assert (example().name, example().note) == ("example", "an example")
    settings = (("t", 0.1), ("n_steps", None), ("scale", 1.0), ("late", 0))
    assert example.spec == Spec("example", settings, "classifier", required=False, steps="n_steps")
    assert example.spec.arguments == ("classifier", "t", "n_steps", "scale", "late")
    assert example().coarser().settings == (("n_steps", 1), ("t", 0.1))


def test_a_decorated_function_is_still_that_function():
    assert (example.__name__, example.__module__) == ("example", __name__)
    assert example.__doc__ == "A method as a user would add it."
    assert str(inspect.signature(fp.methods.diffpure_ode)) == (
        "(t: 'float' = 0.1, dt: 'float' = 0.001, clip_output: 'bool' = False) -> 'Method'"
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fp.methods.coup(), r"coup\(\) missing 1 required positional argument: 'classifier'"),
        (lambda: fp.methods.ddim(steps=3), r"ddim\(\) got an unexpected keyword argument 'steps'"),
        (lambda: make("ddim", steps=3), r"ddim\(\) got an unexpected keyword argument 'steps'"),
        (lambda: fp.methods.ddpm(0.1, t=0.2), r"ddpm\(\) got multiple values for argument 't'"),
        (
            lambda: fp.methods.diffpure_ode(1, 2, 3, 4),
            r"diffpure_ode\(\) takes from 0 to 3 positional arguments",
        ),
    ],
)
def test_wrong_calls_name_the_function(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_a_setting_left_out_must_come_back_as_it_was():
    with pytest.raises(TypeError, match="`since` must be the defaults of late"):

        @method(since={"solver": "euler"})
        def late(solver: str = "exponential") -> Method:
            return Method.of(reverse_sde(0.1, 0.1))

    with pytest.raises(TypeError, match="`former` must be other values than the defaults of later"):

        @method(former={"solver": "exponential"})
        def later(solver: str = "exponential") -> Method:
            return Method.of(reverse_sde(0.1, 0.1))
