"""Floor 4: what held-out prompts say of the policies.

`answers` writes and keeps completions, `truth` scores them by the known world, `statistics` makes intervals and paired
differences, `skills` looks at what else a policy can do (or has lost).
"""
