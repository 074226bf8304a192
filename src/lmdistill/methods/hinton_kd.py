"""Hinton's distillation: softened teacher probabilities mixed with the hard labels."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="hinton_kd",
    title="Soft targets with hard labels",
    paper=Paper(
        title="Distilling the Knowledge in a Neural Network",
        authors="Hinton et al.",
        year=2015,
        arxiv="1503.02531",
    ),
    summary="Forward KL to the teacher at a raised temperature, mixed with cross-entropy on the text.",
    formula="L = tau² KL(p_tau ‖ q_tau) + 0.5 CE(y, q),   p_tau = softmax(z / tau), tau = 2",
    fragment={
        "objective": {
            "divergence": {"kind": "forward_kl", "weight": 1.0, "temperature": 2.0, "temperature_squared": True},
            "cross_entropy": {"weight": 0.5},
        }
    },
    notes=(
        "Softening divides the gradient by about tau²; the factor tau² restores it, so that the balance with the hard "
        "labels stays when tau changes. It applies to the soft term only.",
        "Published for classifiers: the speech models used tau = 2 (best of 1, 2, 5 and 10) with a relative weight of "
        "0.5 on the hard labels. A language model's vocabulary is far larger than their label sets, and its tail "
        "gains weight with tau; compare with forward_kl, which is this at tau = 1.",
    ),
    aliases=("kd",),
)
