"""Floor 4: unified group relative policy optimization over text and image tokens of one trajectory."""
