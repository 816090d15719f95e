"""Operations that go over activations once: resampling by two, the end of a residual block."""
