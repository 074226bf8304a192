"""Symbolic knowledge distillation: triples by a large model, kept by a critic."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="symbolic_kd",
    title="Symbolic knowledge distillation",
    paper=Paper(
        title="Symbolic Knowledge Distillation: from General Language Models to Commonsense Models",
        authors="West et al.",
        year=2021,
        arxiv="2110.07178",
    ),
    summary=(
        "The teacher completes sentences about events; a critic keeps the likely ones; the student learns event and "
        "relation to inference."
    ),
    formula=(
        "L = -log q(tail | head, relation [GEN]),   (head, relation, tail) ~ p,   critic(head, relation, tail) >= "
        "threshold"
    ),
    fragment={
        "generation": {
            "maker": "triples",
            "triples": {"threshold": 0.5},
            "ask": {"samples": 10, "temperature": 0.9, "top_p": 0.9, "max_tokens": 24},
        },
        "objective": {"divergence": {"weight": 0.0}, "cross_entropy": {"weight": 1.0}},
        "data": {"train": [{"path": "generated"}]},
    },
    example={
        "teacher": {"serve": "llamacpp", "model": "smollm2-135m"},
        "student": {"depth": {"keep": 16, "importance": "uniform"}},
        "generation": {"seeds": [{"path": "recipes/data/events.jsonl", "answer": None}]},
    },
    notes=(
        "Published: ATOMIC-10x by GPT-3 with ten examples in a prompt, nucleus 0.9, ten inferences of each event and "
        "relation, seven relations; a critic of RoBERTa on 10,000 labels; the student is COMET (GPT-2 XL).",
        "The critic here is logistic regression on vectors of a frozen all-MiniLM-L6-v2. "
        "generated/round-1/critic.json says what each threshold keeps and its precision, cross-validated by event on "
        "the labelled rows.",
        "Events are the seeds; the publication has the teacher write those too (generation.maker: self_instruct and "
        "its kin do).",
        "The teacher continues plain text, so the server must have the completions endpoint.",
    ),
    aliases=("comet",),
)
