"""DPO with the teacher's answer preferred to the student's own."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="dpo_distill",
    title="DPO, the teacher's text preferred (dDPO)",
    paper=Paper(
        title="Zephyr: Direct Distillation of LM Alignment",
        authors="Tunstall et al.",
        year=2023,
        arxiv="2310.16944",
    ),
    summary="Each prompt gives a pair: the teacher's answer is to become likelier than the student's own.",
    formula="L = -log sigma(beta [log q(y_T) / q_0(y_T) - log q(y_S) / q_0(y_S)]),   beta = 0.1, q_0 = q at the start",
    fragment={
        "trajectories": {"source": "mixture", "mixture": {"paired": True, "teacher": {"start": 1.0}}},
        "objective": {
            "divergence": {"kind": "reverse_kl", "weight": 0.0},
            "preference": {"kind": "dpo", "weight": 1.0, "beta": 0.1},
            "cross_entropy": {"weight": 0.0},
        },
    },
    example={
        "student": {"depth": {"keep": 16}},
        "trajectories": {"generation": {"prompt_tokens": 32, "max_new_tokens": 48}},
    },
    notes=(
        "Zephyr has a judge rank the answers of several models and takes the best and a random other one, all written "
        "before training. Here the pair is the teacher's answer and one that the student writes now: no judge is "
        "asked, and the rejected answers do not grow stale.",
        "The loss is that of DPO (2305.18290, eq. 7). Published with learning rate 5e-7, beta 0.1 and one to three "
        "epochs, after fine-tuning on the teacher's answers.",
        "Log-probabilities are summed over an answer, so that long pairs weigh more: preference.kind simpo averages, "
        "ipo bounds the lead. The loss is a mean over pairs.",
        "The reference is a copy of the student's trained weights; with student.lora it is the adapter alone.",
    ),
    aliases=("ddpo",),
)
