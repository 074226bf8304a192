"""The catalogue: every method is cited, resolves to what its publication says, and has a recipe."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from lmdistill.errors import RecipeError
from lmdistill.methods import METHODS, Method, Paper, find_method
from lmdistill.recipe import DIVERGENCE_PARAMETERS, Recipe, load_recipe, recipe_stages, resolve_recipe

ROOT = Path(__file__).parents[2]
BASE = {"teacher": {"model": "t"}, "data": {"train": [{"path": "d"}]}, "student": {"depth": {"keep": 4}}}

# What each publication minimises: divergence, weight, parameters, temperature, tau², cross-entropy, hidden cosine.
OBJECTIVES: dict[str, tuple[Any, ...]] = {
    "sft": ("forward_kl", 0.0, {}, 1.0, False, 1.0, 0.0),
    "hinton_kd": ("forward_kl", 1.0, {}, 2.0, True, 0.5, 0.0),
    "forward_kl": ("forward_kl", 1.0, {}, 1.0, False, 0.0, 0.0),
    "reverse_kl": ("reverse_kl", 1.0, {}, 1.0, False, 0.0, 0.0),
    "jsd": ("jsd", 1.0, {"teacher_weight": 0.5}, 1.0, False, 0.0, 0.0),
    "total_variation": ("total_variation", 1.0, {}, 1.0, False, 0.0, 0.0),
    "skew_kl": ("skew_forward_kl", 1.0, {"alpha": 0.1}, 1.0, False, 0.0, 0.0),
    "skew_reverse_kl": ("skew_reverse_kl", 1.0, {"alpha": 0.1}, 1.0, False, 0.0, 0.0),
    "akl": ("adaptive_kl", 1.0, {"mu": 0.5}, 1.0, False, 0.0, 0.0),
    "abkd": ("alpha_beta", 1.0, {"alpha": 0.2, "beta": 0.7}, 1.0, False, 0.0, 0.0),
    "taid": ("taid", 1.0, {"start": 0.4, "end": 1.0, "alpha": 5e-4, "momentum": 0.99}, 1.0, False, 0.0, 0.0),
    "seqkd": ("forward_kl", 0.0, {}, 1.0, False, 1.0, 0.0),
    "distilbert": ("forward_kl", 5.0, {}, 2.0, True, 2.0, 1.0),
    "minitron": ("forward_kl", 1.0, {}, 1.0, False, 0.0, 0.0),
    "minitron_hidden": ("forward_kl", 1.0, {}, 1.0, False, 0.0, 0.0),
    "minilmv2_decoder": ("forward_kl", 1.0, {}, 1.0, False, 0.0, 0.0),
    "ted_decoder": ("forward_kl", 1.0, {}, 1.0, False, 1.0, 0.0),
    "distillm_hints": ("skew_forward_kl", 1.0, {"alpha": 0.1}, 1.0, False, 0.0, 0.0),
    "minima": ("forward_kl", 0.5, {}, 1.0, False, 0.5, 0.0),
    "rs_kd": ("forward_kl", 1.0, {}, 1.0, False, 0.0, 0.0),
    "se_kd": ("forward_kl", 1.0, {}, 1.0, False, 0.0, 0.0),
    "miniplm": ("forward_kl", 0.0, {}, 1.0, False, 1.0, 0.0),
    "gkd": ("jsd", 1.0, {"teacher_weight": 0.5}, 1.0, False, 0.0, 0.0),
    "minillm": ("forward_kl", 0.5, {}, 1.0, False, 0.5, 0.0),
    "distillm": ("skew_forward_kl", 1.0, {"alpha": 0.1}, 1.0, False, 0.0, 0.0),
    "distillm2": ("skew_forward_kl", 1.0, {"alpha": 0.1}, 1.0, False, 0.0, 0.0),
    "f_distill_kl": ("forward_kl", 1.0, {}, 1.0, False, 0.0, 0.0),
    "f_distill_rkl": ("reverse_kl", 1.0, {}, 1.0, False, 0.0, 0.0),
    "f_distill_js": ("skew_forward_kl", 0.5, {"alpha": 0.5}, 1.0, False, 0.0, 0.0),
    "f_distill_tvd": ("total_variation", 0.5, {}, 1.0, False, 0.0, 0.0),
    "opd_sampled": ("reverse_kl", 0.0, {}, 1.0, False, 0.0, 0.0),
    "opd_full": ("reverse_kl", 1.0, {}, 1.0, False, 0.0, 0.0),
    "speculative_kd": ("forward_kl", 1.0, {}, 1.0, False, 0.0, 0.0),
    "shortopd": ("jsd", 1.0, {"teacher_weight": 0.5}, 1.0, False, 0.0, 0.0),
    "gad": ("reverse_kl", 0.0, {}, 1.0, False, 0.0, 0.0),
    "dpo_distill": ("reverse_kl", 0.0, {}, 1.0, False, 0.0, 0.0),
    "dpkd": ("reverse_kl", 0.0, {}, 1.0, False, 0.0, 0.0),
    "sdft": ("reverse_kl", 1.0, {}, 1.0, False, 0.0, 0.0),
    "sdpo": ("jsd", 1.0, {"teacher_weight": 0.5}, 1.0, False, 0.0, 0.0),
    "opsd": ("jsd", 1.0, {"teacher_weight": 0.5}, 1.0, False, 0.0, 0.0),
    "context_distillation": ("forward_kl", 1.0, {}, 1.0, False, 0.0, 0.0),
    "multi_teacher": ("reverse_kl", 0.0, {}, 1.0, False, 0.0, 0.0),
    "teacher_mixture": ("reverse_kl", 1.0, {}, 1.0, False, 0.0, 0.0),
    "uld": ("forward_kl", 0.0, {}, 1.0, False, 1.0, 0.0),
    "gold": ("forward_kl", 0.0, {}, 1.0, False, 0.0, 0.0),
    "alm": ("forward_kl", 0.0, {}, 1.0, False, 0.0, 0.0),
    "dskd": ("forward_kl", 0.0, {}, 1.0, False, 0.5, 0.0),
    "pkd": ("forward_kl", 0.5, {}, 5.0, True, 0.5, 0.0),
    "distilbert_mlm": ("forward_kl", 5.0, {}, 2.0, True, 2.0, 0.0),
    "distilbilstm": ("forward_kl", 1.0, {}, 1.0, False, 0.0, 0.0),
    "tinybert": ("forward_kl", 0.0, {}, 1.0, False, 0.0, 0.0),
    "mobilebert": ("forward_kl", 0.0, {}, 1.0, False, 0.0, 0.0),
    "minilm": ("forward_kl", 0.0, {}, 1.0, False, 0.0, 0.0),
    "minilmv2": ("forward_kl", 0.0, {}, 1.0, False, 0.0, 0.0),
    "ted": ("forward_kl", 20.0, {}, 1.0, False, 1.0, 0.0),
    "homodistil": ("forward_kl", 1.0, {}, 1.0, False, 1.0, 0.0),
    "xtremedistil": ("forward_kl", 0.0, {}, 1.0, False, 0.0, 0.0),
    "ad_kd": ("forward_kl", 0.9, {}, 4.0, True, 0.1, 0.0),
    "metadistil": ("forward_kl", 0.5, {}, 5.0, True, 0.5, 0.0),
    "reaugkd": ("forward_kl", 1.0, {}, 1.0, False, 1.0, 0.0),
    "mixkd": ("forward_kl", 1.0, {}, 1.0, False, 1.0, 0.0),
    "pd_encoder": ("forward_kl", 1.0, {}, 1.0, False, 0.0, 0.0),
    "textbrewer": ("forward_kl", 1.0, {}, 8.0, True, 0.0, 0.0),
    **dict.fromkeys(  # text of a teacher behind an API, learnt by cross-entropy
        (
            *("fine_tune_cot", "step_by_step", "scotd", "mt_cot", "socratic"),
            *("pad", "mcc_kd", "scott", "kard", "symbolic_kd"),
            *("llama_gpt4", "self_instruct", "alpaca", "lamini", "evol_instruct"),
            *("lion", "universal_ner", "persd", "reflection_tuning"),
            *("context_distillation_text", "aicd"),
        ),
        ("forward_kl", 0.0, {}, 1.0, False, 1.0, 0.0),
    ),
    # Answers behind demonstrations, with soft labels from the teacher's weights.
    **dict.fromkeys(("meta_ict", "multitask_ict", "llm_r"), ("forward_kl", 0.5, {}, 1.0, False, 0.5, 0.0)),
}

# Whose text each method on written text trains on, and by what else than `OBJECTIVES` says.
WRITTEN: dict[str, str] = {
    "gkd": "mixture",
    "minillm": "mixture + reverse_kl on own + minillm",
    "distillm": "replay",
    "distillm2": "paired + skew_reverse_kl_detached on own + contrastive",
    "f_distill_kl": "teacher",
    "f_distill_rkl": "student",
    "f_distill_js": "paired + skew_reverse_kl on own",
    "f_distill_tvd": "paired + total_variation on own",
    "opd_sampled": "student + sampled_token",
    "opd_full": "student",
    "speculative_kd": "student",
    "shortopd": "student",
    "gad": "paired + discriminator",
    "dpo_distill": "paired + dpo",
    "dpkd": "paired + dpkd",
    "sdft": "student",
    "sdpo": "student",
    "opsd": "student",
    "context_distillation": "mixture",
    "multi_teacher": "student + sampled_token",
    "teacher_mixture": "student",
    "uld": "dataset + uld",
    "gold": "mixture + gold",
    "alm": "dataset + alm",
    "dskd": "dataset + dskd",
}


def base(name: str) -> dict[str, Any]:
    """The least that a recipe of this method has to say."""
    method = METHODS[name]
    least: dict[str, Any] = {**BASE, "method": name}
    if "task" in method.fragment:  # an encoder's layers are chosen by their place
        least["student"] = {"depth": {"keep": 4, "importance": "uniform"}}
    if "teaching" in method.fragment:
        least["data"] = {"train": [{"path": "d", "fields": {"context": "c", "teacher": "t"}}]}
        least["teaching"] = dict(method.example.get("teaching", {}))
    return least


def resolved(name: str) -> Recipe:
    return resolve_recipe(base(name))


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_method_is_cited_and_explained(method: Method) -> None:
    assert method.paper.title
    assert method.paper.authors
    assert 2014 < method.paper.year < 2030
    if method.paper.arxiv:
        assert re.fullmatch(r"\d{4}\.\d{5}", method.paper.arxiv)
        # The number tells the year of the first version.
        assert int(method.paper.arxiv[:2]) + 2000 == method.paper.year
    assert method.paper.link.startswith("https://")
    assert method.summary.endswith(".")
    assert method.formula.startswith("L = ")
    assert all(note.endswith(".") for note in method.notes)
    assert len(method.notes) >= 2


def test_what_the_newer_methods_add_is_the_published_one() -> None:
    rs_kd, se_kd = resolved("rs_kd"), resolved("se_kd")
    assert (rs_kd.signals.kind, rs_kd.signals.samples, rs_kd.signals.proposal_temperature) == ("sampled", 50, 1.0)
    assert (se_kd.objective.tokens.by, se_kd.objective.tokens.keep) == ("student_entropy", 0.2)
    example = resolve_recipe(
        {**BASE, "data": {**BASE["data"], **METHODS["miniplm"].example["data"]}, "method": "miniplm"}
    )
    assert example.data.difference is not None
    assert example.data.difference.keep == 0.5


def test_the_objective_of_every_method_is_the_published_one() -> None:
    assert set(OBJECTIVES) | {"pretrained_distillation", "bld"} == set(METHODS)
    assert set(WRITTEN) <= set(METHODS)
    for name, expected in OBJECTIVES.items():
        objective = resolved(name).objective
        term = objective.divergence
        found = (
            term.kind,
            term.weight,
            term.parameters,
            term.temperature,
            term.temperature_squared,
            objective.cross_entropy.weight,
            objective.hidden_cosine.weight,
        )
        assert found == expected, name


def test_what_is_compared_inside_decoders_is_what_their_methods_say() -> None:
    def hints(name: str, stage: int = 0) -> list[tuple[Any, ...]]:
        objective = recipe_stages(resolved(name))[stage].objective
        assert objective is not None
        return [
            (hint.kind, hint.student, hint.teacher, hint.map, hint.weight, hint.weight_schedule, hint.parameters)
            for hint in objective.hints
        ]

    assert hints("minitron_hidden") == [("hidden_mse", None, None, "uniform", 1.0, "loss_magnitude", {})]
    assert hints("distillm_hints") == [("hidden_cosine", None, None, "uniform", 1.0, "constant", {})]
    assert hints("ted_decoder") == [("hidden_mse", None, None, "uniform", 1.0, "constant", {})]
    assert hints("minilmv2_decoder") == [
        (kind, [-1], [-1], "uniform", 1.0, "constant", {"causal": True})
        for kind in ("query_relation", "key_relation", "value_relation")
    ]
    assert hints("bld") == [
        ("hidden_residual_mse", None, None, "uniform", 1.0, "constant", {"reduction": "sum"}),
    ]
    assert hints("bld", 1) == []
    blocks, whole = (stage.objective for stage in recipe_stages(resolved("bld")))
    assert blocks is not None
    assert whole is not None
    assert (blocks.block_inputs, blocks.divergence.weight) == ("teacher", 0.0)
    assert (whole.block_inputs, whole.divergence.kind, whole.divergence.weight) == ("student", "forward_kl", 1.0)


def test_whose_text_it_is_and_what_else_is_minimised() -> None:
    for name, expected in WRITTEN.items():
        recipe = resolved(name)
        texts, objective = recipe.trajectories, recipe.objective
        source = "paired" if texts.mixture.paired else "replay" if texts.mixture.replay is not None else texts.source
        parts = [source]
        if objective.student_divergence is not None:
            parts.append(f"{objective.student_divergence.kind} on own")
        parts += [term.kind for term in (objective.policy, objective.preference) if term.weight > 0]
        parts += ["contrastive"] if objective.contrastive is not None else []
        parts += [objective.cross_tokenizer.kind] if objective.cross_tokenizer is not None else []
        assert " + ".join(parts) == expected, name


def test_what_minillm_sets_is_that_of_its_release() -> None:
    recipe = resolved("minillm")
    policy = recipe.objective.policy
    assert (policy.clip, policy.reward_scaling, policy.reward_clip, policy.discount) == (0.2, 0.5, 100.0, 0.95)
    assert (recipe.trajectories.teacher_mixing, recipe.trajectories.rollouts.reuse) == (0.2, 4)
    assert recipe.trajectories.generation.temperature == 1.0


def test_a_divergence_is_given_all_of_its_parameters() -> None:
    """Then the defaults of a resolved recipe do not depend on those of the loss engine."""
    for name in METHODS:
        for stage in recipe_stages(resolved(name)):
            assert stage.objective is not None
            for term in (stage.objective.divergence, stage.objective.student_divergence):
                if term is not None:
                    assert set(term.parameters) == set(DIVERGENCE_PARAMETERS[term.kind]), name


def test_seqkd_trains_on_what_the_teacher_writes_by_beam_search() -> None:
    recipe = resolved("seqkd")
    assert recipe.trajectories.source == "teacher"
    assert recipe.trajectories.generation.num_beams == 5
    assert not recipe.objective.needs_teacher


def test_pretrained_distillation_asks_the_teacher_in_its_middle_stage_only() -> None:
    recipe = resolve_recipe({"method": "pretrained_distillation", **{k: BASE[k] for k in ("teacher", "data")}})
    stages = recipe_stages(recipe)
    assert [stage.name for stage in stages] == ["pretrain", "distil", "finetune"]
    assert [stage.objective.needs_teacher for stage in stages if stage.objective] == [False, True, False]
    assert recipe.student.start == "config"


def test_distilbert_takes_layers_evenly() -> None:
    depth = resolved("distilbert").student.depth
    assert depth is not None
    assert depth.importance == "uniform"


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_recipe_of_its_own(name: str) -> None:
    recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml")
    assert recipe.method == name
    assert recipe.name == name
    # What a recipe repeats for the reader is what the method says.
    assert recipe_stages(recipe)[0].objective is not None
    if name in ("total_variation", "pretrained_distillation"):  # cross-entropy mixed in; stages of its own
        return
    own = resolved(name).objective
    # Where hints are taken and how heavy they are depends on the models.
    assert [hint.kind for hint in recipe.objective.hints] == [hint.kind for hint in own.hints]
    assert recipe.objective.model_copy(update={"hints": []}) == own.model_copy(update={"hints": []})


def test_every_recipe_reads_and_names_itself() -> None:
    paths = sorted((ROOT / "recipes").glob("*.yaml"))
    assert {path.stem for path in paths} >= set(METHODS)
    for path in paths:
        assert load_recipe(path).name == path.stem


def test_the_data_that_recipes_ship_are_what_the_script_writes() -> None:
    spec = importlib.util.spec_from_file_location("make_recipe_data", ROOT / "tools" / "make_recipe_data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    committed = [json.loads(line) for line in module.TARGET.read_text(encoding="utf-8").splitlines()]
    assert committed == module.rows()
    for row in committed:
        # Every sum that a solution writes down is right, and it ends in the last of them.
        sums = re.findall(r"(\d+) ([-+x/]) (\d+) = (\d+)", row["response"])
        found = {"+": int.__add__, "-": int.__sub__, "x": int.__mul__, "/": int.__floordiv__}
        assert [found[sign](int(a), int(b)) for a, sign, b, _ in sums] == [int(result) for *_, result in sums]
        assert row["response"].endswith(f"The answer is {sums[-1][-1]}.")
        assert sums[-1][-1] not in re.findall(r"answered (\d+)", row["feedback"])


def test_methods_are_found_by_name_and_alias() -> None:
    for method in METHODS.values():
        assert find_method(method.name) is method
        for alias in method.aliases:
            assert find_method(alias) is method
    names = [*METHODS, *(alias for method in METHODS.values() for alias in method.aliases)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("wrong", "near"), [("tiad", "taid"), ("TAID", "taid"), ("hinton", "hinton_kd"), ("minitorn", "minitron")]
)
def test_an_unknown_method_gets_the_nearest_name(wrong: str, near: str) -> None:
    with pytest.raises(RecipeError, match=f"did you mean '{near}'"):
        find_method(wrong)


def test_a_name_that_is_near_to_nothing_gets_the_catalogue() -> None:
    with pytest.raises(RecipeError, match=r"known: sft, hinton_kd, .*minima, .*textbrewer$"):
        find_method("xyzzy")


def test_a_paper_has_one_place() -> None:
    with pytest.raises(ValueError, match="one of them"):
        Paper(title="t", authors="a", year=2020)
    with pytest.raises(ValueError, match="one of them"):
        Paper(title="t", authors="a", year=2020, arxiv="2001.00001", url="https://example.org")


def test_fragments_are_plain_values_and_stay_as_they_are() -> None:
    """Resolving a recipe must not write into the catalogue."""

    def plain(value: Any) -> bool:
        if isinstance(value, dict):
            return all(isinstance(key, str) and plain(item) for key, item in value.items())
        if isinstance(value, list):
            return all(plain(item) for item in value)
        return value is None or isinstance(value, str | int | float | bool)

    before = {name: dataclasses.asdict(method) for name, method in METHODS.items()}
    for name, method in METHODS.items():
        assert plain(dict(method.fragment)), name
        recipe = resolve_recipe(base(name), ["evaluation.max_tokens=7", "student.depth.keep=2"])
        recipe.objective.divergence.parameters["mu"] = 99.0
        recipe.training["max_steps"] = 1
    assert {name: dataclasses.asdict(method) for name, method in METHODS.items()} == before
