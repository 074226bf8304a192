"""MixKD: the teacher is asked about mixtures of rows too."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="mixkd",
    title="Mixtures of rows",
    paper=Paper(
        title="MixKD: Towards Efficient Distillation of Large-scale Language Models",
        authors="Liang et al.",
        year=2020,
        arxiv="2011.00593",
    ),
    summary=(
        "Word embeddings of two rows are mixed; the student learns the mixed labels and what the teacher says of them."
    ),
    formula=(
        "L = CE(y, q) + ||z_p - z_q||² / C + a1 CE(mixed y, q(x')) + a2 ||z_p(x') - z_q(x')||² / C, "
        "x' = l e(x_i) + (1 - l) e(x_j), l ~ Beta(0.4, 0.4),   a1 = a2 = 1"
    ),
    fragment={
        "task": {
            "kind": "sequence_classification",
            "logits": {"kind": "logits_mse", "over_classes": True},
            "mix": {"alpha": 0.4, "student_weight": 1.0, "teacher_weight": 1.0},
        },
        "student": {"start": "teacher", "depth": {"importance": "first"}},
        "objective": {
            "divergence": {"kind": "forward_kl", "weight": 1.0},
            "cross_entropy": {"weight": 1.0},
        },
    },
    example={"student": {"depth": {"keep": 3}}},
    notes=(
        "The paper names the distance of the teacher's term d and allows mean squared error or KL (task.logits.kind: "
        "divergence).",
        "lambda is drawn once for a batch, and the other row is one of the same batch; each model mixes its own word "
        "embeddings.",
        "The paper's back-translated rows are left out.",
    ),
)
