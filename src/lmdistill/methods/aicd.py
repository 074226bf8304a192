"""AICD: several chains of thought in one context, all of them learnt."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="aicd",
    title="Chains of thought learnt in context",
    paper=Paper(
        title="Survey on Knowledge Distillation for Large Language Models: Methods, Evaluation, and Application",
        authors="Yang et al. (on AICD, Liu 2024)",
        year=2024,
        arxiv="2407.01885",
    ),
    summary="The student reads several questions with rationales in one context and learns each behind the others.",
    formula="L = -sum_i log q(r_i, a_i | x_1, r_1, a_1, ..., x_i),   (r, a) ~ p(. | x), a right",
    fragment={
        "generation": {
            "maker": "chains",
            "demonstrations": {"count": 3, "form": "turns"},
            "rationales": {"prompting": "zero_shot", "keep": "correct", "form": "sentence"},
            "ask": {"samples": 2, "temperature": 0.7, "max_tokens": 128},
            "filters": {"near_duplicate": None},
        },
        "objective": {"divergence": {"weight": 0.0}, "cross_entropy": {"weight": 1.0}},
        "data": {"train": [{"path": "generated"}]},
    },
    example={
        "teacher": {"serve": "llamacpp", "model": "smollm2-135m"},
        "student": {"depth": {"keep": 16, "importance": "uniform"}},
        "generation": {"seeds": [{"path": "recipes/data/sums.jsonl", "answer": "response", "limit": 32}]},
    },
    notes=(
        "We have the survey's account alone: meta-teacher-forcing on chains of thought in context, the likelihood "
        "of all of them maximised together. Lengths, shares and schedules of the publication are not known to us.",
        "Rationales are made as for fine_tune_cot; each that is kept ends one row, behind those of "
        "demonstrations.count - 1 other questions, drawn by the seed or the nearest (demonstrations.choose).",
        "form: turns is a conversation, with each answer's end marker learnt; form: text is one text, of which the "
        "questions are read and the rationales learnt.",
    ),
    aliases=("in_context_cot",),
)
