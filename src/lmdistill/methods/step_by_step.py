"""Distilling Step-by-Step: rationales as a second task beside the labels."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="step_by_step",
    title="Rationales as a second task",
    paper=Paper(
        title=(
            "Distilling Step-by-Step! Outperforming Larger Language Models with Less Training Data and Smaller Model "
            "Sizes"
        ),
        authors="Hsieh et al.",
        year=2023,
        arxiv="2305.02301",
    ),
    summary="The student learns the label and, as a task of its own, the rationale; at use it gives the label alone.",
    formula="L = a L_label([label] x -> y) + (1 - a) L_rationale([rationale] x -> r),   a = 0.5",
    fragment={
        "generation": {
            "maker": "multi_task",
            "rationales": {"prompting": "demonstrations", "keep": "correct", "per_seed": 1},
            "multi_task": {"first": "[label]", "second": "[rationale]", "labels": "teacher", "second_answers": False},
            "ask": {"samples": 4, "temperature": 0.7, "max_tokens": 128},
        },
        "objective": {"divergence": {"weight": 0.0}, "cross_entropy": {"weight": 1.0}},
        "data": {"train": [{"path": "generated"}], "balance": {"label": 0.5, "rationale": 0.5}},
    },
    example={
        "teacher": {"serve": "llamacpp", "model": "smollm2-135m"},
        "student": {"depth": {"keep": 16, "importance": "uniform"}},
        "generation": {"seeds": [{"path": "recipes/data/sums.jsonl", "answer": "response", "limit": 32}]},
    },
    notes=(
        "Published for T5, learning rate 5e-5, batches of 64, 10,000 steps; rationales by PaLM after few "
        "demonstrations, one of each question, greedily. data.balance holds a and 1 - a: both losses are means over "
        "the tokens of their own task in the whole data set, where the publication takes them batch by batch.",
        "generation.multi_task.labels: seeds learns the seeds' own answers (label_type gt of the code); the "
        "rationales are the teacher's in any case.",
        "Published without an answer filter, which rationales.keep: all brings back.",
    ),
    aliases=(
        "distilling_step_by_step",
        "dss",
    ),
)
