"""Skew KL divergence (DistiLLM): forward KL to a student mixed with a little of the teacher."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="skew_kl",
    title="Token-level distillation, skew KL",
    paper=Paper(
        title="DistiLLM: Towards Streamlined Distillation for Large Language Models",
        authors="Ko et al.",
        year=2024,
        arxiv="2402.03898",
    ),
    summary="Forward KL whose student side holds a tenth of the teacher: bounded loss, steadier gradients.",
    formula="L = KL(p ‖ alpha p + (1 - alpha) q),   alpha = 0.1",
    fragment={
        "objective": {
            "divergence": {"kind": "skew_forward_kl", "weight": 1.0, "parameters": {"alpha": 0.1}},
            "cross_entropy": {"weight": 0.0},
        }
    },
    notes=(
        "DistiLLM joins it with an adaptive mixture of data and student text from a replay buffer; this is its loss on "
        "fixed text.",
        "Published for GPT-2 with learning rate 5e-4, cosine schedule, weight decay 0.01 and 20 epochs.",
        "The loss never exceeds -log alpha (2.3 at 0.1). Its released code leaves out the teacher's entropy, so loss "
        "values there are not comparable with these; gradients are.",
    ),
    aliases=("skl", "skew_forward_kl"),
)
