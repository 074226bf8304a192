"""Blockwise local distillation (Puzzle): each block learns from the teacher's own input and output, all at once."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="bld",
    title="Block by block, side by side",
    paper=Paper(
        title="Puzzle: Distillation-Based NAS for Inference-Optimized LLMs",
        authors="Bercovich et al.",
        year=2024,
        arxiv="2411.19146",
    ),
    summary="Each block reads the teacher's state and learns the teacher's next one; then the whole learns logits.",
    formula="L = 1/n sum over n blocks ||b(h_p) - h'_p||² / ||h'_p||²,   then L = KL(p ‖ q)",
    fragment={
        "stages": [
            {
                "name": "blocks",
                "objective": {
                    "divergence": {"kind": "forward_kl", "weight": 0.0},
                    "cross_entropy": {"weight": 0.0},
                    "block_inputs": "teacher",
                    "hints": [
                        {
                            "kind": "hidden_residual_mse",
                            "positions": "all",
                            "weight": 1.0,
                            "parameters": {"reduction": "sum"},
                        }
                    ],
                },
            },
            {
                "name": "whole",
                "objective": {"divergence": {"kind": "forward_kl", "weight": 1.0}, "cross_entropy": {"weight": 0.0}},
            },
        ]
    },
    example={"student": {"width": {"intermediate": 768}}},
    notes=(
        "Blocks are trained in one pass, each by itself: no gradient goes from one to another, so that none waits "
        "for the ones below. The student must keep the teacher's width; pruned neurons, heads and layers are what it "
        "is for.",
        "The publication divides by the squared length of the whole output, here of each position's; it trains "
        "blocks of a search space, here those of one student.",
        "The first block reads the student's own embeddings, which the student will read afterwards.",
        "The publication's last stage adds hidden cosine to the divergence: objective.hidden_cosine.",
    ),
)
