"""Sequence-level distillation: the teacher writes, the student learns its text."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="seqkd",
    title="Sequence-level distillation",
    paper=Paper(
        title="Sequence-Level Knowledge Distillation",
        authors="Kim & Rush",
        year=2016,
        arxiv="1606.07947",
    ),
    summary="Cross-entropy on text that the teacher writes by beam search from the data set's prompts.",
    formula="L = -sum_t log q(y_t | y_<t, x),   y = the teacher's most likely sequence (5 beams)",
    fragment={
        "trajectories": {"source": "teacher", "generation": {"num_beams": 5}},
        "objective": {"divergence": {"weight": 0.0}, "cross_entropy": {"weight": 1.0}},
    },
    example={
        "student": {"depth": {"keep": 16}},
        "trajectories": {"max_prompts": 200, "generation": {"prompt_tokens": 32, "max_new_tokens": 48}},
    },
    notes=(
        "Published for translation with a beam of 5. For open-ended text beams repeat themselves; "
        "trajectories.generation.num_beams: 1 samples from the teacher instead, at generation.temperature.",
        "Plain text has no prompts: the teacher continues the first generation.prompt_tokens tokens of each row.",
        "Only the teacher's words are used, so it also shows what a teacher behind an API could give.",
    ),
)
