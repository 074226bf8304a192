"""Fine-tune-CoT: rationales of a large model that end in the right answer, several of each question."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="fine_tune_cot",
    title="Right rationales, several a question",
    paper=Paper(
        title="Large Language Models Are Reasoning Teachers",
        authors="Ho et al.",
        year=2022,
        arxiv="2212.10071",
    ),
    summary="The teacher thinks step by step several times; the student learns the ways that end in the right answer.",
    formula="L = -sum_t log q(y_t | y_<t, x ###),   y = r --> a END,   (r, a) ~ p(. | x),   a right",
    fragment={
        "generation": {
            "maker": "rationales",
            "rationales": {"prompting": "zero_shot", "keep": "correct", "form": "arrow"},
            "ask": {"samples": 8, "temperature": 0.7, "max_tokens": 128},
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
        "Published: D = 1 to 64 rationales of each question at temperature 0.7, at most 128 tokens, learning rate "
        "3e-4, batches of 8, 20 epochs; most of the gain is there at D = 8.",
        "Published with text completions (generation.rationales.completions: true) of text-davinci-002; by default the "
        "two questions are turns of a chat, which is what today's servers are for.",
        "A right answer is no proof of a right rationale: the publication finds wrong steps in a quarter of them.",
        "Asking stops before D where further rationales solve no further questions: see generation.pass_rate.",
    ),
    aliases=("diverse_reasoning", "reasoning_teacher"),
)
