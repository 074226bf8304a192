"""ShortOPD: on-policy recovery of a pruned model, whose texts grow as it learns to end them."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="shortopd",
    title="On-policy, effective lengths (ShortOPD)",
    paper=Paper(
        title="ShortOPD: Recovering Pruned LLMs with Short-to-Long On-Policy Distillation",
        authors="Zhang et al.",
        year=2026,
        arxiv="2607.13124",
    ),
    summary="A pruned student writes no longer than it has something to say; the model before pruning corrects it.",
    formula="L = E[JSD(p, q) | y ~ q, length <= budget],   beta = 0.5",
    fragment={
        "trajectories": {"source": "student", "length": {"effective": True}},
        "objective": {
            "divergence": {"kind": "jsd", "weight": 1.0, "parameters": {"teacher_weight": 0.5}},
            "cross_entropy": {"weight": 0.0},
        },
    },
    example={
        "student": {"depth": {"keep": 22}},
        "trajectories": {"generation": {"prompt_tokens": 32, "max_new_tokens": 128}},
    },
    notes=(
        "A text counts up to where its end begins to repeat itself; the next texts may be a quarter longer than nine "
        "tenths of the last 256 were by that count, at least trajectories.length.shortest.",
        "How repetition is found is ours: copies of a piece of up to 8 tokens at the end of a text. The publication "
        "has the teacher confirm it, and raises the budget by a schedule of its own.",
        "Published for a Qwen3-4B of which a quarter was pruned: 9 times its score before, in a quarter of the time "
        "that full lengths take. The mean is over the tokens of the step.",
    ),
)
