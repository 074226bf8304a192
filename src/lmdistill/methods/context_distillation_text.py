"""Context distillation from text alone: what an API answers behind instructions and demonstrations, learnt without."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="context_distillation_text",
    title="What an API says behind a context",
    paper=Paper(
        title="Learning by Distilling Context",
        authors="Snell et al.",
        year=2022,
        arxiv="2209.15189",
    ),
    summary="The teacher reads instructions and demonstrations before each question; the student reads the question.",
    formula="L = -sum_t log q(y_t | y_<t, x),   y ~ p(. | instructions, C_k, x)",
    fragment={
        "generation": {
            "maker": "context",
            "demonstrations": {"count": 4, "choose": "bm25", "form": "turns"},
            "ask": {"temperature": 0.7, "max_tokens": 128},
        },
        "objective": {"divergence": {"weight": 0.0}, "cross_entropy": {"weight": 1.0}},
        "data": {"train": [{"path": "generated"}]},
    },
    example={
        "teacher": {"serve": "llamacpp", "model": "smollm2-135m"},
        "student": {"depth": {"keep": 16, "importance": "uniform"}},
        "generation": {
            "ask": {"system": "Answer in one short sentence."},
            "seeds": [{"path": "recipes/data/sums.jsonl", "answer": "response", "limit": 32}],
        },
    },
    notes=(
        "Instructions are generation.ask.system and ask.template; demonstrations are chosen for each question from the "
        "seeds that have an answer (generation.demonstrations).",
        "context_distillation is the form for a teacher in this process: the same, with its whole distribution.",
        "The publication also lets the teacher think in a scratchpad that the student does not learn; here the whole "
        "answer is learnt. generation.verify leaves wrong ones out.",
    ),
    aliases=("black_box_context_distillation",),
)
