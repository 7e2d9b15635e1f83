"""SynJudge: four ordinal heads on a unified-model trunk that read what each score may see, and nothing else (DESIGN 8)."""
