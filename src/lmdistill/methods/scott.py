"""SCOTT: rationales by contrastive decoding, and answers that follow from wrong ones."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="scott",
    title="SCOTT: self-consistent chain of thought",
    paper=Paper(
        title="SCOTT: Self-Consistent Chain-of-Thought Distillation",
        authors="Wang et al.",
        year=2023,
        arxiv="2305.01879",
    ),
    summary=(
        "Rationales that fit the right answer more than a wrong one; from one for the wrong answer, the wrong answer "
        "has to follow."
    ),
    formula=(
        "L = (1 - b) CE(x -> r, y) + b CE([counterfactual] x, r' -> y'),   b = 0.5,   "
        "r_t = argmax log p(r_t | x, y, r_<t) - 0.5 log p(r_t | x, y', r_<t)"
    ),
    fragment={
        "generation": {
            "maker": "contrastive",
            "filters": {"verdict": "any"},
            "contrastive": {"weight": 0.5, "max_tokens": 128, "prefix": "[counterfactual]"},
        },
        "objective": {"divergence": {"weight": 0.0}, "cross_entropy": {"weight": 1.0}},
        "data": {"train": [{"path": "generated"}], "balance": {"factual": 0.5, "counterfactual": 0.5}},
    },
    example={
        "teacher": {"serve": "llamacpp", "model": "smollm2-135m"},
        "student": {"depth": {"keep": 16, "importance": "uniform"}},
        "generation": {"seeds": [{"path": "recipes/data/sums.jsonl", "answer": "response", "limit": 32}]},
    },
    notes=(
        "Decoding needs the teacher's weights in this process (teacher); the API gives the wrong answers alone, where "
        "the seeds have no column choices.",
        "The publication subtracts log-probabilities of a wrong answer, or of none; greedy, at most 128 tokens; "
        "learning rate 3e-5, batches of 16, 10 epochs, GPT-NeoX-20B to T5-3B.",
        "A text ends where the teacher, behind the right answer alone, would end it: the difference would seldom.",
        "The loss of counterfactual rows is on the answer alone; r' is read in the student's own turn.",
    ),
)
