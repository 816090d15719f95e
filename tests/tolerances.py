"""How close a kernel must come to its definition: the only place with such numbers.

``u`` is the unit roundoff of the dtype, 2**-24 for float32 and 2**-53 for float64; ``terms`` is the sum of
the magnitudes of the terms that are added, |a x| + |b e| + |c g| + |p h| + |d z| for a row. With each number
stands the largest value measured when it was set.
"""

from __future__ import annotations

import torch

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
