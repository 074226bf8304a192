"""f-distill, Jensen-Shannon: half of it on the teacher's samples, half on the student's."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="f_distill_js",
    title="f-distill, Jensen-Shannon on both samples",
    paper=Paper(
        title="f-Divergence Minimization for Sequence-Level Knowledge Distillation",
        authors="Wen et al.",
        year=2023,
        arxiv="2307.15190",
    ),
    summary="Both models answer each prompt; each half of the divergence is taken on the text it is an expectation of.",
    formula="L = 0.5 E[KL(p‖m) | y ~ p] + 0.5 E[KL(q‖m) | y ~ q],   m = 0.5 p + 0.5 q",
    fragment={
        "trajectories": {"source": "mixture", "mixture": {"paired": True, "teacher": {"start": 1.0}}},
        "objective": {
            "divergence": {"kind": "skew_forward_kl", "weight": 0.5, "parameters": {"alpha": 0.5}},
            "student_divergence": {"kind": "skew_reverse_kl", "weight": 0.5, "parameters": {"alpha": 0.5}},
            "cross_entropy": {"weight": 0.0},
        },
    },
    example={
        "student": {"depth": {"keep": 16}},
        "trajectories": {"generation": {"prompt_tokens": 32, "max_new_tokens": 48}},
    },
    notes=(
        "KL(p‖m) is the skew KL at alpha 0.5, KL(q‖m) the skew reverse KL; the gradient goes through m in both.",
        "Each expectation is a mean over the tokens of its own texts in the step, so that the longer ones of the two "
        "do not outweigh the others.",
        "The teacher writes once, before training, as in the release; the student as training goes on.",
    ),
)
