"""Counter-based noise (Philox4x32-10)."""
