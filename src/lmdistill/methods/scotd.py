"""SCoTD: many sampled chains of thought of each question."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="scotd",
    title="Many chains of thought a question",
    paper=Paper(
        title="Symbolic Chain-of-Thought Distillation: Small Models Can Also 'Think' Step-by-Step",
        authors="Li et al.",
        year=2023,
        arxiv="2306.14050",
    ),
    summary=(
        "The teacher, shown demonstrations, writes about thirty chains of thought of each question; the student "
        "learns all."
    ),
    formula=(
        "L = -sum_t log q(y_t | y_<t, x),   y = r So the answer is a,   (r, a)_1 .. (r, a)_30 ~ p(. | demonstrations, "
        "x)"
    ),
    fragment={
        "generation": {
            "maker": "rationales",
            "rationales": {"prompting": "demonstrations", "keep": "all", "form": "sentence", "wave": 5},
            "ask": {"samples": 30, "temperature": 0.7, "max_tokens": 128},
            "pass_rate": {"most_samples": 30},
            "filters": {"verdict": "any"},
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
        "Published with 30 samples of each question; many of them matter more than anything else that was varied, a "
        "filter by the answer included (rationales.keep: correct).",
        "Sampling stops before 30 where the pass-rate curve of the questions is flat (generation.pass_rate); "
        "smallest_gain: 0 draws all of them.",
    ),
)
