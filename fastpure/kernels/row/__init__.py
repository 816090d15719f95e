"""One row of a sampler table: the state update and its transpose."""
