"""Self-Instruct."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="self_instruct",
    title="Self-Instruct",
    paper=Paper(
        title="Self-Instruct: Aligning Language Models with Self-Generated Instructions",
        authors="Wang et al.",
        year=2022,
        arxiv="2212.10560",
    ),
    summary=(
        "The teacher writes new tasks after the example of a few, classifies them and fills each with an instance."
    ),
    formula="L = -sum_t log q(y_t | y_<t, x),   y = the output that the teacher wrote for its own task x",
    fragment={
        "generation": {
            "maker": "self_instruct",
            "ask": {"temperature": 0.7, "endpoint": "completions"},
            "instructions": {"per_request": 8},
        },
        "data": {"train": [{"path": "generated"}]},
        "objective": {"divergence": {"weight": 0.0}, "cross_entropy": {"weight": 1.0}},
    },
    example={
        "teacher": {"serve": "llamacpp", "model": "smollm2-135m"},
        "student": {"depth": {"keep": 16, "importance": "uniform"}},
    },
    notes=(
        "Lists are continued as text (ask.endpoint: completions), as published; a chat model takes endpoint: chat.",
        (
            "175 seeds in the paper; a request shows 6 of them and 2 tasks of the model's own. New tasks "
            "need ROUGE-L below 0.7 to all others."
        ),
        (
            "Tasks that choose a label get the label first and an input for it afterwards; else all inputs "
            "would have the likeliest label."
        ),
        (
            "The wording of the requests is ours: the paper's was written for GPT-3 without instructions. "
            "Every drop is kept with its reason (generated/round-1/drops.jsonl)."
        ),
    ),
)
