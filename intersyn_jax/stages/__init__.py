"""The stages: one short file each, with `run(run: Run) -> dict` giving the flat metrics of its summary."""

STAGES = {
    'data': 'builds or imports ArrayRecord shards',
    'tokenizer': 'trains the image tokenizer and the text tokenizer',
    'warmup': 'supervised training on the hybrid mix (interleaved, understanding, text-to-image)',
    'judge': 'trains and evaluates SynJudge',
    'synthesize': 'SEIR: topics and templates in, conversations out',
    'finetune': 'supervised training on the synthesised conversations',
    'grpo': 'unified GRPO from the policy that grpo.init names',
    'evaluate': 'scores the policies on held-out prompts',
    'report': 'one self-contained HTML page',
    'run': 'all of the above in order; what is complete is not done again',
    'sample': 'one question in, an interleaved answer out',
    'suite': 'answers of a policy, or of another model, scored on a public benchmark',
    'convert': 'a downloaded checkpoint of a public family becomes the policy convert',
    'export': 'a policy becomes a folder like the one that was downloaded; with --data, conversations a data set',
    'compile': 'the programs of the stages compiled for a TPU pod that is not here: memory, collectives, estimated time',
    'doctor': 'what this machine has, what is missing, what will be used',
}
"""Every stage of the command line and what it does."""

PIPELINE = tuple(STAGES)[:9]
"""What `run` does, in order."""
