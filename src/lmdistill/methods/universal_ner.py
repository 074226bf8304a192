"""UniversalNER."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="universal_ner",
    title="UniversalNER",
    paper=Paper(
        title=("UniversalNER: Targeted Distillation from Large Language Models for Open Named Entity Recognition"),
        authors="Zhou et al.",
        year=2023,
        arxiv="2308.03279",
    ),
    summary=(
        "The teacher names the entities of varied passages; the student answers one type at a time, "
        "absent types included."
    ),
    formula="L = -sum_t log q(y_t | y_<t, x),   y = the list of the entities of one type in a passage",
    fragment={
        "generation": {"maker": "entities", "ask": {"temperature": 0.0, "max_tokens": 256}},
        "data": {"train": [{"path": "generated"}]},
        "objective": {"divergence": {"weight": 0.0}, "cross_entropy": {"weight": 1.0}},
    },
    example={
        "teacher": {"serve": "llamacpp", "model": "smollm2-135m"},
        "student": {"depth": {"keep": 16, "importance": "uniform"}},
    },
    notes=(
        (
            "Diversity comes from the passages (Pile in the paper, 45,889 of them with 13,020 types), not "
            "from the instruction."
        ),
        (
            "Negative types are drawn by how often they occur elsewhere. Entities that do not stand in the "
            "passage are dropped."
        ),
    ),
)
