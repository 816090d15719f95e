"""GroupNorm + SiLU (+ 2x resampling), forward and backward in the image."""
