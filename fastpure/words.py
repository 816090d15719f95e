"""What was meant by a name that is not known: the nearest of those there are, and other projects' words for ours."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

ELSEWHERE: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    # Settings of attacks.
    "alpha": (("step_size", "torchattacks"),),
    "abs_stepsize": (("step_size", "foolbox"),),
    "eps_step": (("step_size", "ART"),),
    "eps_iter": (("step_size", "CleverHans"),),
    "stepsize": (("step_size", "foolbox"),),
    "lr": (("step_size", "torchattacks"), ("rate", "PyTorch")),
    "steps": (
        ("n_iter", "torchattacks and foolbox"),
        ("n_steps", "torchattacks and foolbox"),
        ("dt", "other methods"),
    ),
    "max_iter": (("n_iter", "ART"),),
    "nb_iter": (("n_iter", "CleverHans"),),
    "num_steps": (("n_iter", "TRADES"), ("n_steps", "TRADES"), ("steps", "TRADES")),
    "epsilon": (("eps", "TRADES and papers"),),
    "epsilons": (("eps", "foolbox"),),
    "adv_eps": (("eps", "DiffPure"),),
    "lp_norm": (("norm", "DiffPure"),),
    "ord": (("norm", "CleverHans"),),
    "threat_model": (("norm", "RobustBench"),),
    "eot_iters": (("eot_iter", "DiffBreak"),),
    "num_random_init": (("n_restarts", "ART"),),
    "nb_random_init": (("n_restarts", "ART"),),
    "rand_init": (("random_start", "CleverHans"),),
    "loss_fn": (("loss", "CleverHans"),),
    "loss_type": (("loss", "ART"),),
    "attacks_to_run": (("attacks", "AutoAttack"),),
    "attack_version": (("version", "DiffPure"),),
    "spsa_samples": (("n_directions", "CleverHans"),),
    "nb_sample": (("n_directions", "torchattacks"),),
    "query_limit": (("n_queries", "RayS"),),
    "grad_mode": (("gradient", "DiffBreak"),),
    # Settings of methods.
    "t_star": (("t", "DiffPure's paper"),),
    "strength": (("t", "diffusers"),),
    "timestep": (("t", "diffusers"),),
    "timesteps": (("n_steps", "diffusers"), ("steps", "diffusers")),
    "num_inference_steps": (("n_steps", "diffusers"), ("steps", "diffusers"), ("dt", "diffusers")),
    "diffusion_steps": (("n_steps", "DiffBreak"), ("steps", "DiffBreak"), ("t", "DiffBreak")),
    "n_steps": (("dt", "other methods"),),
    "sample_step": (("rounds", "DiffPure"),),
    "purify_step": (("t", "GDMP"),),
    "guidance_scale": (("scale", "diffusers and DiffBreak"), ("guide_scale", "diffusers and DiffBreak")),
    "guide_mode": (("metric", "GDMP"), ("guide", "GDMP")),
    "scheduler": (("solver", "diffusers"), ("sampler", "diffusers"), ("method", "diffusers")),
    # Options of commands, and arguments.
    "n_examples": (("n", "RobustBench"),),
    "n_ex": (("n", "AutoAttack"),),
    "total_samples": (("n", "DiffBreak"),),
    "num_sub": (("n", "DiffPure"),),
    "adv_batch_size": (("batch_size", "DiffPure"),),
    "bs": (("batch_size", "AutoAttack"),),
    "dataset": (("data", "RobustBench"),),
    "domain": (("data", "DiffPure"),),
    "data_dir": (("data_path", "RobustBench"), ("path", "RobustBench")),
    "classifier_name": (("classifier", "DiffPure"),),
    "model_name": (("classifier", "RobustBench"),),
    "model": (("classifier", "torchattacks"),),
    "unet": (("denoiser", "diffusers"),),
    "dm_class": (("denoiser", "DiffBreak"),),
    "diffusion_type": (("method", "DiffPure and DiffBreak"),),
    "attack_name": (("attack", "DiffBreak"),),
    "out_dir": (("out", "DiffBreak"),),
    "dtype": (("precision", "diffusers"),),
    "torch_dtype": (("precision", "diffusers"),),
    "eval_mode": (("protocol", "DiffBreak"),),
    "generator": (("seed", "diffusers"),),
    # Names of attacks.
    "eotpgd": (("pgd", "torchattacks"),),
    "linfpgd": (("pgd", "foolbox"),),
    "l2pgd": (("pgd", "foolbox"),),
    "pgdl2": (("pgd", "torchattacks"),),
    "projectedgradientdescent": (("pgd", "ART"),),
    "fgsm": (("pgd", "torchattacks and foolbox"),),
    "aa": (("autoattack", "RobustBench"),),
    "autopgd": (("apgd-ce", "papers"),),
    "apgd": (("apgd-ce", "torchattacks and DiffBreak"),),
    "apgdt": (("apgd-t", "torchattacks"),),
    "autoprojectedgradientdescent": (("apgd-ce", "ART"),),
    "squareattack": (("square", "ART"),),
    "lf": (("low-frequency", "DiffBreak"),),
    "diffattack_apgd": (("diffattack", "DiffBreak"),),
    "dw_box": (("dw-pgd", "ADDT"),),
    # Precisions.
    "float16": (("fp16", "PyTorch"),),
    "half": (("fp16", "PyTorch"),),
    "bfloat16": (("bf16", "PyTorch"),),
    "float32": (("fp32", "PyTorch"),),
    "float64": (("fp64", "PyTorch"),),
    # Functions.
    "load_model": (("load_classifier", "RobustBench"),),
    # Gradients and losses.
    "full": (("exact", "DiffBreak"),),
    "cross_entropy": (("ce", "PyTorch"),),
    "marginloss": (("margin", "DiffBreak"),),
    "cw": (("margin", "torchattacks"),),
    "difference_logits_ratio": (("dlr", "ART"),),
    # Names of methods.
    "vpsde": (("diffpure", "DiffBreak"),),
    "sde": (("diffpure", "DiffPure"),),
    "ode": (("diffpure_ode", "DiffPure"),),
    "vpode": (("diffpure_ode", "DiffBreak"),),
    "ddpmscheduler": (("ddpm", "diffusers"),),
    "ddimscheduler": (("ddim", "diffusers"),),
    "dpmsolvermultistepscheduler": (("dpm_solver", "diffusers"),),
    "likelihood_maximization": (("likelihood_max", "RDC"),),
}
"""Another project's word -> what it may be called here, each with the project. Those that exist in a place are told."""

CLOSE = 0.6
"""Names that have less in common than this are not suggested."""


def did_you_mean(name: object, allowed: Iterable[Any]) -> str:
    """ "Did you mean step_size (alpha in torchattacks)?", or "" where nothing is near.

    Args:
        name: what was given: a name, or an option with its dashes.
        allowed: what there is, spelt as it should be told.
    """
    import difflib

    if not isinstance(name, str) or not name:
        return ""
    known: dict[str, str] = {}
    for one in allowed:
        if isinstance(one, str):
            known.setdefault(_plain(one), one)
    asked = _plain(name)
    # A name in which an earlier version is written differently, or in other case, is that name.
    if asked in known:
        return f"Did you mean {known[asked]}?"
    for word in (asked, asked.replace("_", "")):
        for ours, where in ELSEWHERE.get(word, ()):
            # Classes of attacks are written without dashes.
            for spelt in (ours.replace("-", "_"), ours.replace("-", "")):
                if spelt in known:
                    return f"Did you mean {known[spelt]} ({name.lstrip('-')} in {where})?"
    near = difflib.get_close_matches(asked, known, 3, CLOSE)
    if not near and len(asked) >= 3:
        near = [word for word in known if word.startswith(asked)][:3]
    return f"Did you mean {' or '.join(known[word] for word in near)}?" if near else ""


def no_attribute(module: str, name: str, there: Iterable[str]) -> AttributeError:
    """The error for an attribute that ``module`` has not, as Python's own, and what was meant among ``there``."""
    hint = "" if name.startswith("_") else did_you_mean(name, there)
    return AttributeError(f"module {module!r} has no attribute {name!r}" + (f". {hint}" if hint else ""))


def _plain(name: str) -> str:
    return name.strip().lstrip("-").lower().replace("-", "_").replace(" ", "_")
