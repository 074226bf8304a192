"""MT-CoT: answering and explaining, learnt together."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="mt_cot",
    title="Answering and explaining together",
    paper=Paper(
        title="Explanations from Large Language Models Make Small Reasoners Better",
        authors="Li et al.",
        year=2022,
        arxiv="2210.06726",
    ),
    summary="One task answers at once, another explains and then answers; the student learns both.",
    formula="L = 1/2 L([answer] x -> y) + 1/2 L([explain] x -> r So the answer is y)",
    fragment={
        "generation": {
            "maker": "multi_task",
            "rationales": {"prompting": "demonstrations", "keep": "correct", "per_seed": 1},
            "multi_task": {"first": "[answer]", "second": "[explain]", "labels": "seeds", "second_answers": True},
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
        "The publication compares three second tasks: the explanation alone (MT-Re, which step_by_step is), behind "
        "the answer (MT-Ra), and before it (MT-CoT, this one).",
        "Published for T5 with explanations of GPT-3 by three ways of prompting; what does not lead to the right "
        "answer is asked again with the answer shown (rationalisation), which is not done here: it is a drop.",
    ),
)
