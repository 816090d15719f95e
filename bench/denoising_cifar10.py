"""Is the bundled CIFAR-10 denoiser a good one? PSNR beside BM3D and non-local means on the same noisy images.

    pip install bm3d scikit-image
    python -m bench.denoising_cifar10 --data-path cifar-10-python.tar.gz       writes bench/results/denoising_cifar10.md

The noisy image is that of the diffusion at time t, scaled back to the range of the image: the clean one plus Gaussian
noise of deviation sigma(t) / alpha(t), in [-1, 1] units. The network is told t, the two others the true deviation.
None of the images were trained on. Where a competitor has a choice, it is given the one that suits it best on average.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import fastpure as fp
from fastpure.kernels import Domain, NoiseKeys, Stream, philox_normal
from fastpure.schedule import VP

from .robustness import Row
from .robustness_cifar10 import FRESH, images

TIMES = (0.05, 0.1, 0.2)
NLM_STRENGTHS = (0.6, 0.8, 1.0)
TABLE = Path(__file__).parent / "results" / "denoising_cifar10.md"
Denoise = Callable[[np.ndarray, float], np.ndarray]


def competitors() -> dict[str, list[Denoise]]:
    """Name -> its variants: (noisy image [H, W, 3] in [0, 1] units, deviation) -> estimate."""
    try:
        import bm3d
        from skimage.restoration import denoise_nl_means
    except ImportError as error:
        raise SystemExit(f"{error}: pip install bm3d scikit-image") from error

    def means(strength: float) -> Denoise:
        return lambda z, sigma: denoise_nl_means(
            z,
            patch_size=3,
            patch_distance=10,
            h=strength * sigma,
            sigma=sigma,
            fast_mode=False,
            channel_axis=-1,
        )

    return {
        "BM3D": [bm3d.bm3d_rgb],
        "non-local means": [means(strength) for strength in NLM_STRENGTHS],
    }


def psnr(estimate: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """[B] in dB, peak 1; estimates are clamped to the image range."""
    error = (estimate.clip(0, 1) - clean) ** 2
    return -10 * np.log10(error.reshape(len(clean), -1).mean(1))


def noisy(clean: torch.Tensor, ids: torch.Tensor, index: int, t: float) -> torch.Tensor:
    """The diffused images at time ``t``, in the network's [-1, 1] scale."""
    keys = NoiseKeys.make(0, ids, 0, Domain.EVALUATION)
    noise = philox_normal(keys, index, Stream.FORWARD, tuple(clean.shape[1:]))
    return VP().alpha(t) * (2 * clean - 1) + VP().sigma(t) * noise


@torch.no_grad()
def measure(name: str, clean: torch.Tensor, ids: torch.Tensor) -> list[dict[str, np.ndarray]]:
    """Per time: method -> PSNR per image."""
    denoiser, others, found = fp.load_denoiser(name), competitors(), []
    plain = clean.permute(0, 2, 3, 1).double().numpy()
    for index, t in enumerate(TIMES):
        alpha, sigma = VP().alpha(t), VP().sigma(t)
        x = noisy(clean, ids, index, t)
        predicted = denoiser(x, torch.full((len(x),), 999 * t))
        estimate = ((x - sigma * predicted) / alpha + 1) / 2
        scaled = ((x / alpha + 1) / 2).permute(0, 2, 3, 1).double().numpy()
        row = {
            "noisy": psnr(scaled, plain),
            "fastpure": psnr(estimate.permute(0, 2, 3, 1).double().numpy(), plain),
        }
        for other, variants in others.items():
            tried = [psnr(np.stack([f(z, sigma / alpha / 2) for z in scaled]), plain) for f in variants]
            row[other] = max(tried, key=lambda values: float(values.mean()))
        found.append(row)
        print(
            f"t = {t:g}: " + ", ".join(f"{key} {values.mean():.2f} dB" for key, values in row.items()),
            flush=True,
        )
    return found


def write(name: str, n: int, found: list[dict[str, np.ndarray]]) -> None:
    lines = []
    for t, row in zip(TIMES, found, strict=True):
        gain = row["fastpure"] - row["BM3D"]
        half = 1.96 * gain.std(ddof=1) / len(gain) ** 0.5
        lines.append(
            f"| {t:g} | {VP().sigma(t) / VP().alpha(t) / 2:.3f} | "
            + " | ".join(f"{row[key].mean():.2f}" for key in ("noisy", "non-local means", "BM3D", "fastpure"))
            + f" | {gain.mean():+.2f} [{gain.mean() - half:+.2f}, {gain.mean() + half:+.2f}] |"
        )
    text = f"""# Denoising CIFAR-10

Written by `python -m bench.denoising_cifar10 --data-path PATH`: mean PSNR in dB over {n} test images, one noise draw
each, of the bundled denoiser `{name}` and of BM3D and non-local means, which are told the true noise level.
Non-local means: the best of h = {", ".join(map(str, NLM_STRENGTHS))} sigma, patches of 3 pixels; BM3D: package bm3d,
`bm3d_rgb`. Noise: standard deviation for images in [0, 1]. Last column: paired difference with its 95 % interval.

| t | noise | noisy image | non-local means | BM3D | {name} | more than BM3D |
|---|---|---|---|---|---|---|
{chr(10).join(lines)}
"""
    TABLE.write_text(text, encoding="utf-8")
    print(f"wrote {TABLE}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--data-path", type=Path, required=True, help="CIFAR-10: official archive or JPEG packs"
    )
    parser.add_argument("--denoiser", default="cifar10-small")
    parser.add_argument("--n", type=int, default=32)
    options = parser.parse_args()
    data = images(options.data_path)(Row("", "", FRESH, options.n))
    write(options.denoiser, len(data), measure(options.denoiser, data.images, data.sample_ids))


if __name__ == "__main__":
    main()
