"""Floor 5: experiments of the papers on Storyworld, over settings and seeds (DESIGN 5)."""

STUDIES = {
    'main_job': 'the whole pipeline in several seeds, with its controls and what may be claimed from it',
    'seir_rounds': 'what each round of refinement is worth, its controls, and how right critics and revisers are',
    'data_scaling': 'fine-tuning on 25, 50, 100 and 200 % of an amount of SEIR data, with its controls',
    'grpo_ablation': 'GRPO with each of its parts left out or replaced, beside the same time of supervised training',
    'judge_baselines': 'SynJudge beside its baselines in several seeds, and how well it ranks answers of real policies',
}
"""Every study of the command line and what it does."""
