"""Speed, side by side with a peer in the same run (DESIGN 5)."""

BENCHMARKS = {
    'data': 'records to the device: against datasets with DataLoader and webdataset, and what a training step waits',
    'decode': 'the interleaved decoder: against transformers, against its matrix products, with images and guidance',
    'judge': 'judging the rollouts of a GRPO iteration: against writing them, measured small and computed at 7B',
}
"""Every benchmark and what it measures."""
