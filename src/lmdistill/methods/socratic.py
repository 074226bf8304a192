"""Socratic chain of thought: sub-questions and their answers."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="socratic",
    title="Socratic chain of thought",
    paper=Paper(
        title="Distilling Reasoning Capabilities into Smaller Language Models",
        authors="Shridhar et al.",
        year=2022,
        arxiv="2212.00193",
    ),
    summary=(
        "The teacher takes each question apart into sub-questions with answers; one student learns both, or two one "
        "each."
    ),
    formula=(
        "L = L_QG(x -> q_1..q_n) + L_QA(x, q_1, a_1, .., q_j -> a_j),   or unified: -log q(q_1, a_1, .., q_n, a_n | x)"
    ),
    fragment={
        "generation": {
            "maker": "socratic",
            "rationales": {"keep": "correct"},
            "socratic": {"form": "unified"},
            "ask": {"samples": 2, "temperature": 0.7, "max_tokens": 256},
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
        "Two models are two runs: recipes/socratic_decomposer.yaml learns generated:question, "
        "recipes/socratic_solver.yaml generated:solution. With one ledger (api.ledger) the second pays for nothing.",
        "Published with GPT-2 students and the sub-questions of GSM8K or of GPT-3; the decomposer may be guided by "
        "the equations of the solution, which is not done here.",
        "The teacher answers by a JSON schema, so the server must know response_format.",
    ),
    aliases=("socratic_cot",),
)
