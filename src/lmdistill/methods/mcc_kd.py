"""MCC-KD: two rationales of one question make the student sure alike."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="mcc_kd",
    title="MCC-KD: agreement between rationales",
    paper=Paper(
        title="MCC-KD: Multi-CoT Consistent Knowledge Distillation",
        authors="Chen et al.",
        year=2023,
        arxiv="2310.14747",
    ),
    summary=(
        "Two different rationales of one question; what the student predicts at the answer is to be the same behind "
        "both."
    ),
    formula="L = 1/2 (CE_a + CE_b) + alpha 1/2 [KL(p_a ‖ p_b) + KL(p_b ‖ p_a)] at the tokens of the answer",
    fragment={
        "generation": {
            "maker": "rationale_pairs",
            "rationales": {"prompting": "demonstrations", "keep": "correct", "likeness": 0.8},
            "ask": {"samples": 5, "temperature": 0.7, "max_tokens": 128},
        },
        "objective": {
            "divergence": {"weight": 0.0},
            "cross_entropy": {"weight": 1.0},
            "consistency": {"weight": 0.1, "epsilon": 7e-5, "temperature": 1.0},
        },
        "data": {"train": [{"path": "generated"}], "balance": {"first": 0.5, "second": 0.5}},
    },
    example={
        "teacher": {"serve": "llamacpp", "model": "smollm2-135m"},
        "student": {"depth": {"keep": 16, "importance": "uniform"}},
        "generation": {"seeds": [{"path": "recipes/data/sums.jsonl", "answer": "response", "limit": 32}]},
    },
    notes=(
        "Published: alpha 0.1, temperature 1, learning rate 1e-5, 10 epochs, LoRA of rank 128, batches of 6; "
        "rationales whose words are alike to 0.8 (Jaccard) are left out.",
        "Each distribution is smoothed by 7e-5 as in the code, then normalised; with a large vocabulary that is much: "
        "epsilon: 0 takes it as it is.",
        "A pair is one sequence of two rows, so it may be twice as long as data.max_length. CE_a and CE_b are means "
        "over all tokens of their side in the data set.",
    ),
)
