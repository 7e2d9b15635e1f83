"""Floor 4: SEIR, which writes conversations, criticises and refines them."""
