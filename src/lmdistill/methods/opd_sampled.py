"""On-policy distillation by sampled tokens: log p - log q of the student's own tokens as their advantage."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="opd_sampled",
    title="On-policy, advantage of sampled tokens",
    paper=Paper(
        title="On-Policy Distillation",
        authors="Lu & Thinking Machines Lab",
        year=2025,
        url="https://thinkingmachines.ai/blog/on-policy-distillation/",
    ),
    summary="The student writes; a token that the teacher finds likelier than the student did becomes likelier.",
    formula="L = -E[(q(y_t) / q_old(y_t)) A_t | y ~ q_old],   A_t = log p(y_t) - log q_old(y_t), held fixed",
    fragment={
        "trajectories": {"source": "student"},
        "objective": {
            "divergence": {"kind": "reverse_kl", "weight": 0.0},
            "policy": {"kind": "sampled_token", "weight": 1.0},
            "cross_entropy": {"weight": 0.0},
        },
    },
    example={
        "student": {"depth": {"keep": 16}},
        "trajectories": {"generation": {"prompt_tokens": 32, "max_new_tokens": 48}},
    },
    notes=(
        "One number a token is all that is asked of the teacher, so it may stand behind a server "
        "(teaching.kind: server). opd_full has the same expectation, less noise, and needs the whole distribution.",
        "The mean is over the tokens of the step; the publication's code (tinker-cookbook) sums over them, so that its "
        "learning rates (1e-4 with LoRA of rank 128) mean other steps than ours.",
        "Discount 0, no clipping, no group baseline, as published. objective.policy.reward_clip bounds single tokens "
        "that the teacher finds next to impossible; clip is PPO's, for rollouts.reuse above 1.",
        "It sharpens what the student can write already: the publication starts from a fine-tuned student.",
    ),
    aliases=("opd", "on_policy_distillation"),
)
