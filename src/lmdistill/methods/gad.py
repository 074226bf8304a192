"""GAD: the student against a discriminator that learns to tell its answers from the teacher's."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="gad",
    title="Black-box, adversarial (GAD)",
    paper=Paper(
        title="Black-Box On-Policy Distillation of Large Language Models",
        authors="Ye et al.",
        year=2025,
        arxiv="2511.10643",
    ),
    summary="The score of a discriminator, trained on the same fresh answers, is the reward of the student's answers.",
    formula=(
        "L = E[max(-A rho, -A clip(rho, 0.8, 1.2)) | y ~ q],   A = (D(y) - mean) / std over 8 answers; "
        "D learns -log sigma(D(y_teacher) - D(y))"
    ),
    fragment={
        "trajectories": {"source": "mixture", "mixture": {"paired": True, "teacher": {"start": 1.0}}},
        "objective": {
            "divergence": {"kind": "reverse_kl", "weight": 0.0},
            "policy": {
                "kind": "discriminator",
                "weight": 1.0,
                "clip": 0.2,
                "samples_per_prompt": 8,
                "discriminator_learning_rate": 1e-6,
            },
            "cross_entropy": {"weight": 0.0},
        },
    },
    example={
        "student": {"depth": {"keep": 16}},
        "trajectories": {"generation": {"prompt_tokens": 32, "max_new_tokens": 48}},
    },
    notes=(
        "Only the teacher's words are used: it may be a model behind an API, whose answers stand in the data "
        "(mixture.teacher.start: 0).",
        "Published with one epoch of fine-tuning on the teacher's answers first, in which the discriminator learns "
        "too; start from such a student (seqkd). objective.policy.discriminator_warmup is the number of steps in which "
        "the discriminator learns alone.",
        "The publication adds 0.001 of KL(q‖student at the start), which is left out here. The discriminator is a copy "
        "of the student with a scalar head: it doubles the weights in memory.",
        "The mean is over the tokens of the student's answers in the step. The authors find that ROUGE-L does not "
        "follow quality here; judge answers otherwise too.",
    ),
)
