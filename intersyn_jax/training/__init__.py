"""Training: optimizer, checkpoints, the supervised loop, metric writers."""
