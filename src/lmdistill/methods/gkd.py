"""GKD: any divergence, on a mixture of the data set's text and the student's own."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="gkd",
    title="On-policy mixture, generalised JSD (GKD)",
    paper=Paper(
        title="On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes",
        authors="Agarwal et al.",
        year=2023,
        arxiv="2306.13649",
    ),
    summary="The student answers half of the prompts itself; the teacher corrects every token of either text.",
    formula="L = (1 - lambda) E[JSD(p, q) | y ~ data] + lambda E[JSD(p, q) | y ~ q],   lambda = 0.5, beta = 0.5",
    fragment={
        "trajectories": {"source": "mixture", "mixture": {"student": {"start": 0.5}}},
        "objective": {
            "divergence": {"kind": "jsd", "weight": 1.0, "parameters": {"teacher_weight": 0.5}},
            "cross_entropy": {"weight": 0.0},
        },
    },
    example={
        "student": {"depth": {"keep": 16}},
        "trajectories": {"generation": {"prompt_tokens": 32, "max_new_tokens": 48}},
    },
    notes=(
        "lambda is trajectories.mixture.student.start (published: 0, 0.5 and 1), beta the divergence's teacher_weight "
        "(0.1, 0.5, 0.9); any other divergence takes its place.",
        "The publication draws lambda once a batch and averages over the tokens of a text, then over texts. Here it is "
        "drawn for each sample, and the mean is over the tokens of the step, so that a long text counts more.",
        "The published reward term is objective.policy: {weight: ..., kind: reward}. Terms on the student's text and "
        "on the rest are then means of their own, so set divergence.weight to 0.5 to keep lambda at 0.5. Its gradient "
        "is that of the reward times the mean log-probability of a token, where the publication takes the sum.",
        "No gradient goes through the sampling, as published.",
    ),
)
