"""Floor 2: trunk, image heads, image tokenizer and the unified model."""
