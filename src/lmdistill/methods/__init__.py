"""The catalogue of published methods: each a partial recipe with its citation.

lmdistill methods            the table
lmdistill methods taid       one of them
method: taid                 in a recipe, where its settings are the defaults
"""

from __future__ import annotations

import difflib

from lmdistill.errors import RecipeError
from lmdistill.methods import (
    abkd,
    akl,
    alm,
    alpaca,
    bld,
    context_distillation,
    distilbert,
    distillm,
    distillm2,
    distillm_hints,
    dpkd,
    dpo_distill,
    dskd,
    evol_instruct,
    f_distill_js,
    f_distill_kl,
    f_distill_rkl,
    f_distill_tvd,
    fine_tune_cot,
    forward_kl,
    gad,
    gkd,
    gold,
    hinton_kd,
    jsd,
    kard,
    lamini,
    lion,
    llama_gpt4,
    mcc_kd,
    minillm,
    minilmv2_decoder,
    minima,
    miniplm,
    minitron,
    minitron_hidden,
    mt_cot,
    multi_teacher,
    opd_full,
    opd_sampled,
    opsd,
    pad,
    persd,
    pretrained_distillation,
    reflection_tuning,
    reverse_kl,
    rs_kd,
    scotd,
    scott,
    sdft,
    sdpo,
    se_kd,
    self_instruct,
    seqkd,
    sft,
    shortopd,
    skew_kl,
    skew_reverse_kl,
    socratic,
    speculative_kd,
    step_by_step,
    symbolic_kd,
    taid,
    teacher_mixture,
    total_variation,
    uld,
    universal_ner,
)
from lmdistill.methods.base import Method, Paper

__all__ = ["METHODS", "Method", "Paper", "find_method"]

METHODS: dict[str, Method] = {
    module.METHOD.name: module.METHOD
    for module in (
        sft,
        hinton_kd,
        forward_kl,
        reverse_kl,
        jsd,
        total_variation,
        skew_kl,
        skew_reverse_kl,
        akl,
        abkd,
        taid,
        se_kd,
        rs_kd,
        seqkd,
        gkd,
        minillm,
        distillm,
        distillm2,
        f_distill_kl,
        f_distill_rkl,
        f_distill_js,
        f_distill_tvd,
        opd_sampled,
        opd_full,
        speculative_kd,
        shortopd,
        gad,
        dpo_distill,
        dpkd,
        sdft,
        sdpo,
        opsd,
        context_distillation,
        multi_teacher,
        teacher_mixture,
        uld,
        gold,
        alm,
        dskd,
        miniplm,
        pretrained_distillation,
        distilbert,
        distillm_hints,
        minilmv2_decoder,
        minitron,
        minitron_hidden,
        minima,
        bld,
        fine_tune_cot,
        step_by_step,
        scotd,
        mt_cot,
        socratic,
        pad,
        mcc_kd,
        scott,
        kard,
        symbolic_kd,
        llama_gpt4,
        self_instruct,
        alpaca,
        lamini,
        evol_instruct,
        lion,
        universal_ner,
        persd,
        reflection_tuning,
    )
}
"""Name -> method, in the order of the catalogue: baseline, token by token, by sequence, on the student's own text, by
preference, from more to read, from several teachers, across tokenizers, in stages, by construction."""

_ALIASES: dict[str, str] = {alias: method.name for method in METHODS.values() for alias in method.aliases}


def find_method(name: str) -> Method:
    """The method of this name or alias. Raises RecipeError with the nearest name where there is none."""
    method = METHODS.get(_ALIASES.get(name, name))
    if method is None:
        close = difflib.get_close_matches(name.lower(), [*METHODS, *_ALIASES], n=1, cutoff=0.5)
        advice = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(METHODS)}"
        raise RecipeError(f"method: no method is named {name!r}; {advice}")
    return method
