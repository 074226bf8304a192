"""KARD: rationales behind retrieved passages, and a reranker for when there is no rationale."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="kard",
    title="KARD: rationales behind passages",
    paper=Paper(
        title="Knowledge-Augmented Reasoning Distillation for Small Language Models in Knowledge-Intensive Tasks",
        authors="Kang et al.",
        year=2023,
        arxiv="2305.18395",
    ),
    summary=(
        "The student learns rationales behind the passages that they were found with; a reranker learns to find them "
        "from the question."
    ),
    formula="L = -log q(r, y | x, passages(r));   reranker: KL(softmax(BM25(r) / tau1) ‖ softmax(sim(x) / tau2))",
    fragment={
        "generation": {
            "maker": "retrieved",
            "rationales": {"prompting": "demonstrations", "keep": "correct"},
            "retrieved": {"passages": 2, "candidates": 8},
            "ask": {"samples": 4, "temperature": 0.7, "max_tokens": 128},
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
        "The reranker is kept in generated/round-1/reranker; lmdistill.generation.retrieved.Retriever makes prompts "
        "with it for questions without a rationale.",
        "Published: tau1 1, tau2 100 (annealed) for similarities of a BERT without normalisation, passages of "
        "Wikipedia, learning rate 1e-4, 3 epochs. Here the reranker starts from all-MiniLM-L6-v2, whose similarities "
        "are smaller: tau2 1.",
        "One encoder makes the vectors of question and passage.",
    ),
)
