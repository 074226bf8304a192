"""Token-level distillation with the forward KL: the plain method that others are measured against."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="forward_kl",
    title="Token-level distillation, forward KL",
    paper=Paper(
        title="Sequence-Level Knowledge Distillation",
        authors="Kim & Rush",
        year=2016,
        arxiv="1606.07947",
    ),
    summary="At every token of the data set the student matches the teacher's whole distribution.",
    formula="L = KL(p ‖ q) = sum_v p_v (log p_v - log q_v)",
    fragment={"objective": {"divergence": {"kind": "forward_kl", "weight": 1.0}, "cross_entropy": {"weight": 0.0}}},
    notes=(
        "The paper calls it word-level knowledge distillation, the baseline beside its sequence-level method (seqkd).",
        "Forward KL covers all of the teacher's modes: a student that is too small for them spreads its probability.",
        "Mixing in cross-entropy (objective.cross_entropy.weight, for example 0.5) often helps where the text is "
        "better than the teacher.",
    ),
    aliases=("token_kd", "word_kd"),
)
