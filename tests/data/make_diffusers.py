"""Make the golden folders diffusers_*_tiny: tiny random UNet2DModels, run by diffusers itself.

python tests/data/make_diffusers.py tests/data/golden        (needs `pip install diffusers`; made with 0.42.1)
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

COMMON = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 1,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
}
#: The layout of google/ddpm-cifar10-32, and that of newer models.
VARIANTS = {
    "diffusers_ddpm_tiny": {
        "norm_eps": 1e-6,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "downsample_padding": 0,
        "attention_head_dim": None,
    },
    "diffusers_modern_tiny": {
        "attn_norm_num_groups": 4,
        "attention_head_dim": 4,
        "resnet_time_scale_shift": "scale_shift",
        "num_class_embeds": 3,
    },
}
CLASS = 2


def main(folder: Path) -> None:
    from diffusers import DDPMScheduler, UNet2DModel

    for name, fields in VARIANTS.items():
        torch.manual_seed(0)
        model = UNet2DModel(**COMMON, **fields).eval()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(folder / name)
        if "ddpm" in name:
            DDPMScheduler(num_train_timesteps=1000).save_pretrained(folder / name)
        x, v = (torch.randn(2, 3, 8, 8, generator=generator).half().float() for _ in range(2))
        labels = torch.tensor([7, 321])
        arrays = {"x": x, "v": v, "t": labels}
        classes = torch.tensor([CLASS, CLASS]) if "num_class_embeds" in fields else None
        for dtype, suffix in ((torch.float32, ""), (torch.float64, "_f64")):
            leaf = x.clone().to(dtype).requires_grad_()
            output = model.to(dtype)(leaf, labels, class_labels=classes).sample
            arrays[f"out{suffix}"] = output.detach()
            arrays[f"vjp{suffix}"] = torch.autograd.grad(output, leaf, v.to(dtype))[0]
        np.savez_compressed(folder / name / "io.npz", **{key: value.numpy() for key, value in arrays.items()})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
