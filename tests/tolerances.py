"""How close a kernel must come to its definition: the only place with such numbers.

``u`` is the unit roundoff of the dtype, 2**-24 for float32 and 2**-53 for float64; ``terms`` is the sum of
the magnitudes of the terms that are added, |a x| + |b e| + |c g| + |p h| + |d z| for a row. With each number
stands the largest value measured when it was set.
"""

from __future__ import annotations

import torch

from tests.kernels.closeness import Distance

UNIT_ROUNDOFF = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}

NORMAL = {torch.float32: 2e-6, torch.float64: 1e-14}
"""Normals against the float64 formula, absolute. Extension: at most 9.5e-7 and 2.3e-15, over all 2**23 radii and
angles (csrc/tests/host_check.cpp); reference: 9.0e-7 and 3.1e-15 over 2**20 draws."""

ROW = 5.0
"""Row and transposed row against float64 arithmetic on the same numbers, in u * terms. Measured: 2.8 in float32,
3.7 in float64 (where the comparison rounds as well)."""

ROW_CLIPPED = 8.0
"""The same in rows that clip: replacing the network output takes three more roundings. Measured: 2.8, 3.9."""

CLIP_BORDER = 1e-5
"""Predicted images this close to -1 or 1 may fall on either side of the clip when the arithmetic differs."""

NORM_FORWARD = (2.0, 1e-7)
"""GroupNorm+SiLU against float64, largest error: at most this times that of torch's operations in the same dtype,
plus this. Results of few elements may besides be rounded once: torch is lucky there now and then. Measured in
the interpreter, on 1000 elements and more: 1.7 times torch's in float32, 0.95 in float16, 2.2 in bfloat16 (the
interpreter truncates to bfloat16, for which the test allows)."""

NORM_STATISTICS = 1e-6
"""Mean and 1/std against float64, relative where above 0.1, absolute below. Measured: 5.6e-7."""

NORM_BACKWARD = {
    torch.float32: Distance(1e-6, 1e-10, 1e-6),
    torch.bfloat16: Distance(1e-2, 1e-4, 1e-3),
    torch.float16: Distance(1e-3, 1e-6, 1e-4),
}
"""Gradient of GroupNorm+SiLU against float64. Measured in the interpreter: 1.8e-7, 1.4e-14, 1.6e-8; 4.6e-3, 3e-6,
2.6e-4; 2.7e-4, 3.6e-8, 3.5e-5 (bias on 500 elements and more; fewer are allowed what chance leaves)."""

ROUNDING = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
"""Rounding of a result, relative to its largest element (half a unit in the last place)."""
