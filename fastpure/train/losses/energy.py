"""Maximum likelihood of an energy by persistent chains: energy of images down, energy of the model's own samples up."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, cast, final

import torch
from torch import Tensor, nn

from ...classifiers import call_frozen
from ...errors import mistake, positive, whole
from ...nets import EnergyNet
from ..batches import Batch, Purpose, StepRandom
from .base import Augment

STRIDE = 997
"""By how much the window of chains moves from one step to the next: it shares no divisor with a power of two."""


@final
class EnergyWithChains(nn.Module):
    """An energy and the states of its Markov chains, which a run saves and resumes with the weights.

    Args:
        network: images in [-1, 1] to energies [B].
        n_chains: how many states are held, a power of two.
        seed: of the states, uniform noise at first.
    """

    chains: Tensor

    def __init__(self, network: EnergyNet, n_chains: int, seed: int = 0) -> None:
        super().__init__()
        if whole("n_chains", n_chains, 1) & (n_chains - 1):
            raise ValueError(mistake("n_chains", "a power of two", n_chains))
        self.network = network
        noise = torch.rand(
            n_chains, *network.config.image_shape, generator=torch.Generator().manual_seed(seed)
        )
        self.register_buffer("chains", 2.0 * noise - 1.0)

    def forward(self, x: Tensor) -> Tensor:
        """The energies [B]."""
        return cast(Tensor, self.network(x))


@final
@dataclass(frozen=True)
class EnergyLoss:
    """U(image) - U(sample) + ``decay`` (U(image)^2 + U(sample)^2), for an ``EnergyWithChains``.

    Its gradient is that of the log-likelihood where samples come from the model (Tieleman 2008, persistent contrastive
    divergence). A sample is a chain's state after ``n_iter`` more Langevin steps x - (tau^2 / 2) gradient of U + tau z;
    with probability ``restart`` the chain begins anew, at the batch's image with noise of size ``restart_noise``.
    Images get noise of size ``smooth``, so that there is a density. All in [-1, 1] units.

    ``score`` adds so much of denoising score matching (Vincent 2011) at that noise: mean (smooth gradient of U - n)^2,
    n being the noise of an image. Both ask for the energy of the same density; chains alone need far more steps.
    """

    n_iter: int = 20
    tau: float = 0.02
    restart: float = 0.05
    restart_noise: float = 0.5
    smooth: float = 0.05
    decay: float = 1e-3
    score: float = 0.0
    augment: Augment = field(default_factory=Augment)

    def __post_init__(self) -> None:
        whole("n_iter", self.n_iter, 1, 250)
        positive("tau", self.tau)
        for name in ("restart", "restart_noise", "smooth", "decay", "score"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 100:
                raise ValueError(mistake(name, "a number >= 0", repr(value)))

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """See ``Loss``; in training mode the chains go on, in evaluation mode they stay."""
        if not isinstance(model, EnergyWithChains):
            raise TypeError(mistake("model", "an EnergyWithChains", type(model).__name__))
        shape = _shape_of(batch.images)
        images = 2.0 * self.augment(batch.images, batch.random) - 1.0
        noise = batch.random.normal(Purpose.NOISE, shape)
        images = images + self.smooth * noise
        chosen = self._chosen(model, batch.random)
        samples = self._continued(model, model.chains[chosen], images, batch.random)
        if model.training:
            model.chains[chosen] = samples
        if self.score:
            images.requires_grad_(True)
        low, high = model(images), model(samples)
        loss = low - high + self.decay * (low.square() + high.square())
        if not self.score:
            return loss
        with torch.enable_grad():
            (g,) = torch.autograd.grad(low.sum(), images, create_graph=True)
        return loss + self.score * (self.smooth * g - noise).square().flatten(1).mean(1)

    def to_dict(self) -> dict[str, Any]:
        """See ``Loss``."""
        return {"name": "energy", **asdict(self)}

    def _chosen(self, model: EnergyWithChains, random: StepRandom) -> Tensor:
        """Distinct chains for the rows of a batch, others in the next step."""
        count = len(model.chains)
        if random.stop > count:
            raise ValueError(mistake("batch_size", f"at most the number of chains, {count}", random.stop))
        rows = torch.arange(random.start, random.stop, device=model.chains.device)
        return (rows + STRIDE * random.step) % count

    def _continued(
        self, model: EnergyWithChains, states: Tensor, images: Tensor, random: StepRandom
    ) -> Tensor:
        shape = _shape_of(states)
        fresh = images + self.restart_noise * random.normal(Purpose.START, shape)
        anew = (random.uniform(Purpose.TIME) < self.restart).view(-1, 1, 1, 1)
        x = torch.where(anew, fresh, states).detach()
        for i in range(self.n_iter):
            leaf = x.requires_grad_(True)
            (g,) = torch.autograd.grad(call_frozen(model.network, leaf).float().sum(), leaf)
            noise = random.normal(Purpose.INNER_NOISE, shape, repeat=i)
            x = (x - 0.5 * self.tau**2 * g + self.tau * noise).detach()
        return x


def _shape_of(images: Tensor) -> tuple[int, int, int]:
    channels, height, width = images.shape[1:]
    return channels, height, width
