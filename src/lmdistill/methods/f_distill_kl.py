"""f-distill, KL: forward KL step by step, on text that the teacher samples."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="f_distill_kl",
    title="f-distill, KL on the teacher's samples",
    paper=Paper(
        title="f-Divergence Minimization for Sequence-Level Knowledge Distillation",
        authors="Wen et al.",
        year=2023,
        arxiv="2307.15190",
    ),
    summary="Forward KL of every step, on text that the teacher samples from the data set's prompts.",
    formula="L = E[KL(p‖q) | y ~ p]",
    fragment={
        "trajectories": {"source": "teacher", "generation": {"num_beams": 1, "temperature": 1.0}},
        "objective": {"divergence": {"kind": "forward_kl", "weight": 1.0}, "cross_entropy": {"weight": 0.0}},
    },
    example={
        "student": {"depth": {"keep": 16}},
        "trajectories": {"max_prompts": 200, "generation": {"prompt_tokens": 32, "max_new_tokens": 48}},
    },
    notes=(
        "One of four: f_distill_kl takes the teacher's samples, f_distill_rkl the student's, f_distill_js and "
        "f_distill_tvd both. The publication finds the symmetric two best.",
        "Steps of sequence-level distillation (seqkd) know the teacher's token; these know its whole distribution.",
        "The teacher writes once, before training, as in the release's faster variant. The mean is over the tokens of "
        "the step.",
    ),
)
