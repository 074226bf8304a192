"""Topic-guided instructions."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="lamini",
    title="Topic-guided instructions",
    paper=Paper(
        title="LaMini-LM: A Diverse Herd of Distilled Models from Large-Scale Instructions",
        authors="Wu et al.",
        year=2023,
        arxiv="2304.14402",
    ),
    summary="The teacher writes instructions about given topics and answers them.",
    formula="L = -sum_t log q(y_t | y_<t, x),   y = the teacher's answer to its own instruction x",
    fragment={
        "generation": {"maker": "topics", "ask": {"temperature": 1.0}},
        "data": {"train": [{"path": "generated"}]},
        "objective": {"divergence": {"weight": 0.0}, "cross_entropy": {"weight": 1.0}},
    },
    example={
        "teacher": {"serve": "llamacpp", "model": "smollm2-135m"},
        "student": {"depth": {"keep": 16, "importance": "uniform"}},
    },
    notes=(
        (
            "Published with topics from the categories of Wikipedia, beside example-guided instructions, "
            "2.58 million pairs in all."
        ),
        "Instructions are written first and answered one by one.",
    ),
)
