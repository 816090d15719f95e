"""What a scheduler_config.json of diffusers says of a network: what it predicts, and at which levels it was trained.

Most of a scheduler is a sampler, which is ours to choose. What stays is the meaning of the network's input and answer:

* Chains (DDPM and its relatives): told the index; ``prediction_type`` and the rates are honoured.
* Flow matching: the state is (1 - s) x0 + s noise, the network is told num_train_timesteps s and answers dx/ds. Each
  scheduler computes the label from the level that it visits, shifted or not: ``shift`` and its relatives choose levels
  and change no meaning. ``invert_sigmas`` turns time round: the label grows with 1 - s and the answer is dx/d(1 - s).
* Consistency models: ``sigma_data`` and ``sigma_min`` stand in the scalings of input and output, whose boundary
  condition is that of Song et al. 2023, appendix C; the label is 250 ln(sigma).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from ..errors import CheckpointError, positive, whole
from .fields import Fields, names, require_fields, shown
from .weights import read_json

_WHOSE = "diffusers"
_PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
#: Schedulers of networks that are told the index of a variance-preserving chain. They differ in how they sample.
_SCHEDULERS = tuple(
    f"{name}Scheduler"
    for name in [
        "DDPM",
        "DDIM",
        "DDPMParallel",
        "DDIMParallel",
        "DDIMInverse",
        "PNDM",
        "DPMSolverMultistep",
        "DPMSolverSinglestep",
        "DPMSolverMultistepInverse",
        "DPMSolverSDE",
        "DEISMultistep",
        "UniPCMultistep",
        "SASolver",
        "EulerDiscrete",
        "EulerAncestralDiscrete",
        "HeunDiscrete",
        "LMSDiscrete",
        "KDPM2Discrete",
        "KDPM2AncestralDiscrete",
    ]
)
#: The fields of the schedulers of a chain: what the network was trained with, and how samples are drawn, which is ours.
_CHAIN = Fields(
    _WHOSE,
    honoured=names("prediction_type beta_schedule"),
    required={
        "_class_name": _SCHEDULERS,
        "num_train_timesteps": (1000,),
        "beta_start": (1e-4,),
        "beta_end": (0.02,),
        "trained_betas": (None,),
        "timestep_values": (None,),
        "rescale_betas_zero_snr": (False,),
        "timestep_type": ("discrete",),
        "use_flow_sigmas": (False, None),
        "variance_type": (
            "fixed_small",
            "fixed_small_log",
            "fixed_large",
            "fixed_large_log",
            "learned_range",
            None,
        ),
    },
    harmless=names(
        """_diffusers_version clip_sample clip_sample_range dynamic_thresholding_ratio sample_max_value
        steps_offset thresholding timestep_spacing set_alpha_to_one skip_prk_steps
        algorithm_type solver_order solver_type lower_order_final euler_at_final use_karras_sigmas
        use_exponential_sigmas use_beta_sigmas use_lu_lambdas final_sigmas_type lambda_min_clipped
        predict_x0 disable_corrector solver_p interpolation_type sigma_min sigma_max noise_sampler_seed
        predictor_order corrector_order tau_func tensor_format"""
    ),
    defaults={
        "prediction_type": "epsilon",
        "trained_betas": None,
        "timestep_values": None,
        "rescale_betas_zero_snr": False,
        "timestep_type": "discrete",
        "use_flow_sigmas": False,
        "variance_type": "fixed_small",
    },
    reasons={
        "variance_type": "only a learned range is read from a network's further channels",
        "_class_name": "EDM and VE schedulers belong to networks that are told something else",
        "rescale_betas_zero_snr": "its last steps hold no image at all",
    },
)
#: diffusers' name of a schedule of rates -> ours.
_SCHEDULES = {"linear": "linear", "squaredcos_cap_v2": "cosine"}
STEPS = 1000
"""Of the chains of these schedulers."""

#: Flow matching. Everything but the time's scale and direction says which levels a sampler visits.
_FLOW = Fields(
    _WHOSE,
    honoured=names("num_train_timesteps"),
    required={
        "_class_name": ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"),
        "invert_sigmas": (False, True),
    },
    harmless=names(
        """_diffusers_version shift use_dynamic_shifting base_shift max_shift base_image_seq_len
        max_image_seq_len shift_terminal use_karras_sigmas use_exponential_sigmas use_beta_sigmas
        time_shift_type stochastic_sampling"""
    ),
    defaults={"num_train_timesteps": 1000, "invert_sigmas": False},
)
#: Consistency models. num_train_timesteps is the length of the sampler's grid of levels.
_CONSISTENCY = Fields(
    _WHOSE,
    honoured=names("sigma_min sigma_data"),
    required={"_class_name": ("CMStochasticIterativeScheduler",)},
    harmless=names("_diffusers_version num_train_timesteps sigma_max s_noise rho clip_denoised"),
    defaults={"sigma_min": 0.002, "sigma_data": 0.5},
)


@final
@dataclass(frozen=True)
class Scheduler:
    """What a network is, as far as its scheduler says it.

    Attributes:
        prediction: as for `fastpure.Denoiser`.
        schedule: "linear", "cosine", "flow" or "consistency".
        note: where that is known from, and what was assumed.
        data_at, time_scale: as for `fastpure.Denoiser`, of flow networks.
        sigma_data, sigma_min: as for `fastpure.nets.EDMConfig`, of consistency functions.
    """

    prediction: str
    schedule: str
    note: str
    data_at: int = 0
    time_scale: float = 1000.0
    sigma_data: float = 0.5
    sigma_min: float = 0.002


def read_scheduler(folder: Path) -> Scheduler:
    """The scheduler of the network in ``folder``, which lies beside it or in the pipeline's own folder.

    Raises:
        CheckpointError: it describes a network that we do not have, or a pipeline has none.
    """
    for file in (folder / "scheduler_config.json", folder.parent / "scheduler" / "scheduler_config.json"):
        if file.is_file():
            return scheduler_of(read_json(file), file)
    if (folder.parent / "model_index.json").is_file():
        raise CheckpointError(
            f"{folder.parent}: expected scheduler/scheduler_config.json, found none in this pipeline"
        )
    note = "assumed: predicts noise, linear schedule in 1000 steps (no scheduler_config.json)"
    return Scheduler("eps", "linear", note)


def scheduler_of(content: Any, file: Path) -> Scheduler:
    """What the fields of a scheduler_config.json say; ``file`` is what messages call it.

    Raises:
        CheckpointError: as `read_scheduler`.
    """
    values = require_fields(content, str(file))
    name = values.get("_class_name")
    if name in _FLOW.required["_class_name"]:
        return _flow(values, file)
    if name in _CONSISTENCY.required["_class_name"]:
        return _consistency(values, file)
    return _chain(values, file)


def _chain(values: Mapping[str, Any], file: Path) -> Scheduler:
    content, assumed = _CHAIN.read(values, str(file))
    for field, known in (("prediction_type", _PREDICTIONS), ("beta_schedule", _SCHEDULES)):
        found = content.get(field)
        if not isinstance(found, str) or found not in known:
            expected = " or ".join(repr(choice) for choice in known)
            raise CheckpointError(f"{file}: {field} must be {expected}, found {shown(found)}")
    prediction, schedule = content["prediction_type"], content["beta_schedule"]
    if schedule != "linear" and prediction == "v_prediction":
        raise CheckpointError(
            f"{file}: prediction_type must be 'epsilon' or 'sample' with {schedule}, found {prediction!r}"
        )
    note = f"from {file.name}: {content['_class_name']}, {prediction}, {schedule}{_words(assumed)}"
    return Scheduler(_PREDICTIONS[prediction], _SCHEDULES[schedule], note)


def _flow(values: Mapping[str, Any], file: Path) -> Scheduler:
    content, assumed = _FLOW.read(values, str(file))
    try:
        steps = whole("num_train_timesteps", content["num_train_timesteps"], 1)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: {error}") from error
    data_at = int(bool(content["invert_sigmas"]))
    told = f"told {steps} t, the image at t = {data_at}"
    note = f"from {file.name}: {content['_class_name']}, velocity, {told}{_words(assumed)}"
    return Scheduler("flow", "flow", note, data_at=data_at, time_scale=float(steps))


def _consistency(values: Mapping[str, Any], file: Path) -> Scheduler:
    content, assumed = _CONSISTENCY.read(values, str(file))
    try:
        data, least = (positive(name, content[name]) for name in ("sigma_data", "sigma_min"))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: {error}") from error
    said = f"sigma_data {data:g}, sigma_min {least:g}"
    note = f"from {file.name}: {content['_class_name']}, consistency function, {said}{_words(assumed)}"
    return Scheduler("consistency", "consistency", note, sigma_data=data, sigma_min=least)


def _words(assumed: tuple[str, ...]) -> str:
    return f", assumed as {_WHOSE} does: {', '.join(assumed)}" if assumed else ""
