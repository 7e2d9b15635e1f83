"""Floor 3: the interleaved decoder (DESIGN 6)."""
