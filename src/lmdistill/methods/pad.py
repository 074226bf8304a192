"""PaD: programs in place of rationales, checked by an interpreter."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="pad",
    title="PaD: programs in place of rationales",
    paper=Paper(
        title=(
            "PaD: Program-aided Distillation Can Teach Small Models Reasoning Better than Chain-of-thought Fine-tuning"
        ),
        authors="Zhu et al.",
        year=2023,
        arxiv="2305.13888",
    ),
    summary=(
        "The teacher writes programs; those that run and come to the right answer are what the student learns to write."
    ),
    formula="L = -sum_t log q(c_t | c_<t, x),   c a program with run(c) = y",
    fragment={
        "generation": {
            "maker": "programs",
            "ask": {"samples": 4, "temperature": 0.7, "max_tokens": 160},
            "verify": {"answer": "program", "kind": "number"},
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
        "Programs run in pydantic-monty, an interpreter of a part of Python without files, network or clock, with "
        "limits on time, memory and depth; what it lacks makes a program unverifiable, not wrong.",
        "The student is judged by running what it writes (generation.verify.answer: program).",
        "Published for CodeT5 with self-refinement from error messages and step-wise beam search at use, which are "
        "not done here.",
    ),
)
