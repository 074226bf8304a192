"""DistiLLM-2: the teacher's answers pulled up, the student's own pushed down, each by its own skew divergence."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="distillm2",
    title="Contrastive skew divergences (DistiLLM-2)",
    paper=Paper(
        title="DistiLLM-2: A Contrastive Approach Boosts the Distillation of LLMs",
        authors="Ko et al.",
        year=2025,
        arxiv="2503.07067",
    ),
    summary="Of each prompt's two answers, skew KL takes the teacher's and skew reverse KL the student's.",
    formula=(
        "L = (2 - b) KL(p ‖ a p + (1 - a) q) on the teacher's answer + b KL(q ‖ a q + (1 - a) p) on the student's,   "
        "b from 1 to 1.5, a = clip(1 - 0.9 m / gap, 0.01, 0.1)"
    ),
    fragment={
        "trajectories": {
            "source": "mixture",
            "mixture": {"paired": True, "teacher": {"start": 1.0}},
            "generation": {"temperature": 0.8},
        },
        "objective": {
            "divergence": {"kind": "skew_forward_kl", "weight": 1.0, "parameters": {"alpha": 0.1}},
            "student_divergence": {"kind": "skew_reverse_kl_detached", "weight": 1.0, "parameters": {"alpha": 0.1}},
            "contrastive": {"published": True, "alpha": 0.1, "beta_end": 1.5},
            "cross_entropy": {"weight": 0.0},
        },
    },
    example={
        "student": {"depth": {"keep": 16}},
        "trajectories": {"generation": {"prompt_tokens": 32, "max_new_tokens": 48}},
    },
    notes=(
        "contrastive.published: false is what the code does as released: a = 0.1 and b = 1 throughout. Its switches "
        "for both are off, and the one for a fails silently when it is set.",
        "gap is how much likelier a text is under the teacher (under the student, for the student's texts), in "
        "probability a token; m is its mean over the step, so that the step may be cut into micro-batches as one "
        "likes. Published as the mean of a mini-batch; it costs one forward pass of the student more.",
        "The mixture of the second term is held fixed in the gradient, as released. A text counts by the mean over its "
        "tokens, and the loss is a mean over pairs.",
        "The release writes both answers before training, at temperature 0.8; here the student writes its own as "
        "training goes on. Published with learning rate 5e-5, cosine schedule and LoRA of rank 16 from a student that "
        "was fine-tuned first.",
    ),
)
