"""The loss engine; depends on torch alone, so that it can be used inside any trainer."""

from lmdistill.objectives.advantages import (
    group_advantages,
    importance_weights,
    minillm_advantages,
    reward_advantages,
    sampled_token_advantages,
    teacher_mixed_weights,
)
from lmdistill.objectives.chunked import LossParts, distillation_loss, divergence
from lmdistill.objectives.contrastive import adaptive_alpha, contrastive_weights, curriculum_beta, likelihood_gap
from lmdistill.objectives.divergences import DIVERGENCES, Divergence, find_divergence
from lmdistill.objectives.policy import policy_loss
from lmdistill.objectives.preference import PreferenceParts, preference_loss, sequence_logprobs
from lmdistill.objectives.segments import segment_ids, sequence_mean_weights, to_tokens
from lmdistill.objectives.surrogate import PolicyTerm
from lmdistill.objectives.token_logprobs import token_logprobs, top_tokens

__all__ = [
    "DIVERGENCES",
    "Divergence",
    "LossParts",
    "PolicyTerm",
    "PreferenceParts",
    "adaptive_alpha",
    "contrastive_weights",
    "curriculum_beta",
    "distillation_loss",
    "divergence",
    "find_divergence",
    "group_advantages",
    "importance_weights",
    "likelihood_gap",
    "minillm_advantages",
    "policy_loss",
    "preference_loss",
    "reward_advantages",
    "sampled_token_advantages",
    "segment_ids",
    "sequence_logprobs",
    "sequence_mean_weights",
    "teacher_mixed_weights",
    "to_tokens",
    "token_logprobs",
    "top_tokens",
]
