"""Skew reverse KL divergence (DistiLLM): reverse KL to a teacher mixed with a little of the student."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="skew_reverse_kl",
    title="Token-level distillation, skew reverse KL",
    paper=Paper(
        title="DistiLLM: Towards Streamlined Distillation for Large Language Models",
        authors="Ko et al.",
        year=2024,
        arxiv="2402.03898",
    ),
    summary="Reverse KL whose teacher side holds a tenth of the student: finite where the teacher has no probability.",
    formula="L = KL(q ‖ (1 - alpha) p + alpha q),   alpha = 0.1",
    fragment={
        "objective": {
            "divergence": {"kind": "skew_reverse_kl", "weight": 1.0, "parameters": {"alpha": 0.1}},
            "cross_entropy": {"weight": 0.0},
        }
    },
    example={"student": {"depth": {"keep": 20}}},
    notes=(
        "The student inside the mixture takes part in the gradient, as in DistiLLM; DistiLLM-2 (2503.07067) holds it "
        "fixed.",
        "Like every reverse divergence it wants a student that already speaks; see reverse_kl.",
    ),
    aliases=("srkl",),
)
