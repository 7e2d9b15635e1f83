"""Floor 0: conversations, the token layout and the answer grammar."""
