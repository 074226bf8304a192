"""MiniLLM: sequence-level reverse KL by policy gradient, with the terms that its code adds."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="minillm",
    title="Reverse KL by policy gradient (MiniLLM)",
    paper=Paper(
        title="MiniLLM: Knowledge Distillation of Large Language Models",
        authors="Gu et al.",
        year=2023,
        arxiv="2306.08543",
    ),
    summary="The student writes with a fifth of the teacher in each draw and follows the return of log p - log q.",
    formula=(
        "L = E[max(-A w rho, -A clip(w rho, 0.8, 1.2)) + KL(q‖p) | y ~ 0.2 p + 0.8 q] "
        "+ E[0.5 CE + 0.5 KL(p‖q) | y ~ data],   A_t = whitened (sum_k 0.95^k r_(t+k)) / (tokens left), "
        "r = (log p - log q) / 0.5"
    ),
    fragment={
        "trajectories": {
            "source": "mixture",
            "mixture": {"student": {"start": 0.5}},
            "teacher_mixing": 0.2,
            "rollouts": {"reuse": 4},
        },
        "objective": {
            "divergence": {"kind": "forward_kl", "weight": 0.5},
            "cross_entropy": {"weight": 0.5},
            "student_divergence": {"kind": "reverse_kl", "weight": 1.0},
            "policy": {
                "kind": "minillm",
                "weight": 1.0,
                "clip": 0.2,
                "reward_scaling": 0.5,
                "reward_clip": 100.0,
                "discount": 0.95,
            },
        },
    },
    example={
        "student": {"depth": {"keep": 16}},
        "trajectories": {"generation": {"prompt_tokens": 32, "max_new_tokens": 48}},
    },
    notes=(
        "As released (LMOps/minillm), which differs from the publication: there the discount is 1, rewards are neither "
        "scaled nor whitened, and a token's return begins at the next one.",
        "Each of the two expectations is a mean over the tokens of the whole optimiser step; the release takes means "
        "over a micro-batch of each device. Advantages are whitened over the trained tokens of the step; the release "
        "whitens over a micro-batch and counts its padding.",
        "The release trains the second expectation on OpenWebText, as many texts as the student writes; here it is the "
        "data set's own answers, half of the samples. Its distillation term is a cross-entropy with p: it exceeds "
        "KL(p‖q) by the entropy of p, which has no gradient.",
        "Published with learning rate 5e-6, 5,000 steps and 4 updates (rollouts.reuse) on the texts of 64 prompts a "
        "device, from a student that was fine-tuned for 3 epochs first: a student that writes nonsense learns little "
        "from its own text.",
    ),
)
