"""Speed, side by side with a peer in the same run (DESIGN 5)."""

BENCHMARKS = {
    'data': 'records to the device: against datasets with DataLoader and webdataset, and what a training step waits',
    'decode': 'the interleaved decoder: against transformers, against its matrix products, with images and guidance',
    'grpo': 'an iteration of GRPO: against TRL and tunix with text alone, and with images',
    'judge': 'judging the rollouts of a GRPO iteration: against writing them, measured small and computed at 7B',
    'seir': 'conversations a second and how full batches are, on 1 to 8 devices, by the writer of a finished run',
    'train': 'a step of supervised training: against PyTorch, eager and compiled',
}
"""Every benchmark and what it measures."""
