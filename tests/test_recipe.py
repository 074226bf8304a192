"""Recipes: what is refused and how, overrides, fragments, and the round trip through the resolved file."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lmdistill.errors import RecipeError
from lmdistill.methods import METHODS, find_method
from lmdistill.objectives import DIVERGENCES, find_divergence
from lmdistill.recipe import (
    DIVERGENCE_PARAMETERS,
    DivergenceTerm,
    EvaluationSpec,
    Recipe,
    Section,
    dump_recipe,
    load_recipe,
    merge,
    nearest,
    parse_recipe,
    recipe_stages,
    resolve_recipe,
    resolve_section,
    section_of,
    training_fields,
)
from lmdistill.yamltext import read_yaml

MINIMAL = "teacher: {model: t}\ndata: {train: [{path: d.jsonl}]}\n"
VALUES: dict[str, Any] = {"teacher": {"model": "t"}, "data": {"train": [{"path": "d.jsonl"}]}}
# Columns and models that only some methods' teachers need, and that do no harm to the others.
FOR_SOME_TEACHERS = ["data.train.0.fields={context: hint, teacher: who}", "teaching.models.other={model: m}"]


def refusal(*overrides: str, text: str = MINIMAL) -> str:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, overrides)
    return str(caught.value)


def outcome(text: str, *overrides: str) -> str | None:
    """What a recipe is refused for; None where it is taken."""
    try:
        parse_recipe(text, overrides)
    except RecipeError as error:
        return str(error)
    return None


# -- reading ----------------------------------------------------------------------------------------------------------


def test_a_minimal_recipe_is_two_lines() -> None:
    recipe = parse_recipe(MINIMAL)
    assert recipe.objective.divergence.kind == "forward_kl"
    assert recipe.folder == Path("runs/run")
    assert recipe.evaluation.baselines == ["none", "sft"]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"nope\.yaml: cannot be read \(No such file"):
        load_recipe(tmp_path / "nope.yaml")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(RecipeError, match=r"latin\.yaml: not UTF-8 text \(byte 9\)"):
        load_recipe(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "this holds nothing"),
        ("- a\n- b", "this holds a list"),
        ("just words", "this holds a str"),
        ("a: [1", "not valid YAML"),
        ("seed: 1\nseed: 2\n" + MINIMAL, "the key 'seed' stands in it twice"),
        ("!!python/object/apply:os.system [true]", "not valid YAML"),
        ("[" * 5000, "nested too deeply"),
    ],
)
def test_what_is_no_recipe_is_refused_with_the_reason(text: str, reason: str) -> None:
    assert reason in refusal(text=text)


@given(st.text(max_size=200))
@example("0:")  # found by hypothesis: a mapping, so several problems, which stand one a line
@settings(max_examples=150, deadline=None)
def test_any_text_is_a_recipe_or_a_recipe_error(text: str) -> None:
    told = outcome(text)
    assert told is None or told.startswith(("recipe: ", "recipe:\n  "))


_WORDS = st.sampled_from([*Recipe.model_fields, "depth", "keep", "model", "0", "path", "train", "x", ""])
_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
_TREES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_WORDS, inner, max_size=4), max_leaves=12
)


@given(st.dictionaries(_WORDS.filter(lambda word: word != "training"), _TREES, max_size=5))
@settings(max_examples=120, deadline=None)
def test_any_tree_of_values_is_a_recipe_or_a_recipe_error(values: dict[str, Any]) -> None:
    try:
        recipe = resolve_recipe({**VALUES, **values})
    except RecipeError:
        return
    assert resolve_recipe(read_yaml(dump_recipe(recipe))) == recipe


@given(
    st.lists(_WORDS.filter(bool), min_size=1, max_size=4).map(".".join),
    _SCALARS.map(str).filter(lambda text: "training" not in text),
)
@settings(max_examples=120, deadline=None)
def test_any_override_works_or_is_a_recipe_error(path: str, value: str) -> None:
    if path.startswith("training"):
        return  # its names are transformers' own: tested below
    told = outcome(MINIMAL, f"{path}={value}")
    assert told is None or told.startswith(("recipe:", "--set"))


# -- unknown keys -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "place", "near"),
    [
        ("teachr.model=x", "teachr", "teacher"),
        ("teacher.modle=x", "teacher.modle", "model"),
        ("student.depth={keep: 2, importanse: first}", "student.depth.importanse", "importance"),
        ("data.train.0.pth=x", "data.train.0.pth", "path"),
        ("data.train.0.fields.txt=x", "data.train.0.fields.txt", "text"),
        ("data.evaluation.quac={path: q, lmit: 3}", "data.evaluation.quac.lmit", "limit"),
        ("objective.divergence.temprature=2", "objective.divergence.temprature", "temperature"),
        ("evaluation.speed.repeat=2", "evaluation.speed.repeat", "repeats"),
        ("stages=[{name: a, objectiv: {}}]", "stages.0.objectiv", "objective"),
        ("student.lora={rnk: 3}", "student.lora.rnk", "rank"),
    ],
)
def test_an_unknown_key_is_refused_with_its_place_and_the_nearest_name(override: str, place: str, near: str) -> None:
    assert f"{place}: unknown field; did you mean '{near}'?" in refusal(override)


def test_a_key_that_is_near_to_nothing_gets_the_names_that_exist() -> None:
    assert "machine.zzzz: unknown field; known here: device, threads, compile, memory_limit_gib" in refusal(
        "machine.zzzz=1"
    )


def test_all_problems_are_told_at_once() -> None:
    told = refusal("teacher.modle=x", "student.depth={}", "seed=-1", "evaluation.confidence=2")
    assert "teacher.modle: unknown field" in told
    assert "student.depth.keep: missing; add it" in told
    assert "seed: Input should be greater than or equal to 0 (got -1)" in told
    assert "evaluation.confidence: Input should be less than 1 (got 2)" in told


def test_every_field_of_every_section_is_documented() -> None:
    sections = {Recipe}
    while True:
        found = {section_of(field.annotation) for section in sections for field in section.model_fields.values()}
        more = {section for section in found if section is not None} - sections
        if not more:
            break
        sections |= more
    assert len(sections) > 15
    for section in sections:
        assert issubclass(section, Section)
        assert section.__doc__
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name}"
            assert field.description.rstrip().endswith("."), f"{section.__name__}.{name}"


def test_nearest_prefers_what_is_close() -> None:
    assert nearest("learning_rte", ["learning_rate", "warmup_steps"]) == "; did you mean 'learning_rate'?"
    assert nearest("q", ["alpha", "beta"]) == "; known here: alpha, beta"
    assert nearest("q", []) == ""


# -- overrides --------------------------------------------------------------------------------------------------------


def test_overrides_reach_every_kind_of_place() -> None:
    recipe = parse_recipe(
        MINIMAL,
        [
            "name=other",
            "teacher.dtype=float32",
            "student.depth.keep=3",
            "data.train.0.limit=5",
            "data.evaluation.quac.path=q.jsonl",
            "evaluation.prompts=[a, b]",
            "objective.divergence={kind: jsd, parameters: {teacher_weight: 0.1}}",
            "objective.divergence.weight=0.25",
            "machine.memory_limit_gib=1e1",
        ],
    )
    assert recipe.name == "other"
    assert recipe.teacher.dtype == "float32"
    assert recipe.student.depth is not None
    assert recipe.student.depth.keep == 3
    assert recipe.data.train[0].limit == 5
    assert recipe.data.evaluation["quac"].path == "q.jsonl"
    assert recipe.evaluation.prompts == ["a", "b"]
    assert recipe.objective.divergence.parameters == {"teacher_weight": 0.1}
    assert recipe.objective.divergence.weight == 0.25
    assert recipe.machine.memory_limit_gib == 10.0


def test_the_last_override_wins_and_values_may_hold_equal_signs() -> None:
    assert parse_recipe(MINIMAL, ["seed=1", "seed=2"]).seed == 2
    assert parse_recipe(MINIMAL, ["teacher.model=a=b"]).teacher.model == "a=b"


def test_overrides_reach_what_the_method_brings() -> None:
    """Stages are a list that only the fragment holds."""
    recipe = parse_recipe(MINIMAL, ["method=pd", "stages.1.objective.divergence.weight=3"])
    assert recipe.stages[1].objective is not None
    assert recipe.stages[1].objective.divergence.weight == 3
    assert recipe.stages[1].objective.divergence.kind == "forward_kl"


def test_an_override_of_the_method_brings_its_fragment() -> None:
    recipe = parse_recipe("method: jsd\n" + MINIMAL, ["method=taid"])
    assert recipe.objective.divergence.kind == "taid"
    assert recipe.objective.divergence.parameters["start"] == 0.4
    assert parse_recipe("method: jsd\n" + MINIMAL, ["method=null"]).objective.divergence.kind == "forward_kl"


def test_overrides_do_not_write_into_the_values_that_they_are_applied_to() -> None:
    values = {**VALUES, "student": {"depth": {"keep": 4}}}
    resolve_recipe(values, ["student.depth.keep=2", "data.train.0.path=z"])
    assert values["student"] == {"depth": {"keep": 4}}
    assert VALUES["data"] == {"train": [{"path": "d.jsonl"}]}


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("training.max_steps", "write it as field=value"),
        ("=3", "write it as field=value"),
        ("seed={", "the value is not valid YAML"),
        ("data.train.7.path=x", "'7' is not an item of that list, which has the items 0 to 0"),
        ("data.train.first.path=x", "'first' is not an item"),
        ("data.train.-1.path=x", "'-1' is not an item"),
        ("data.train.².path=x", "'²' is not an item"),
        ("evaluation.baselines.0=x", "not an item of that list, which is empty"),
        ("teacher.model.x=1", "'x' lies inside 't', which has no fields"),
    ],
)
def test_an_override_that_points_nowhere_says_so(override: str, reason: str) -> None:
    text = MINIMAL + "evaluation: {baselines: []}\n"
    told = refusal(override, text=text)
    assert reason in told
    assert override in told


# -- fragments --------------------------------------------------------------------------------------------------------


def test_what_the_user_writes_lies_over_the_fragment() -> None:
    recipe = parse_recipe("method: hinton_kd\nobjective: {divergence: {temperature: 4}}\n" + MINIMAL)
    assert recipe.objective.divergence.temperature == 4
    assert recipe.objective.divergence.temperature_squared
    assert recipe.objective.cross_entropy.weight == 0.5


def test_null_takes_away_what_a_method_brought() -> None:
    told = refusal(text="method: distilbert\nstudent: {layers: [0, 3], depth: {keep: 2}}\n" + MINIMAL)
    assert "student.layers and student.depth both choose layers" in told
    assert "depth: null" in told
    recipe = parse_recipe("method: distilbert\nstudent: {layers: [0, 3], depth: null}\n" + MINIMAL)
    assert recipe.student.layers == [0, 3]


def test_an_unknown_method_is_refused_with_the_file_and_the_nearest_name() -> None:
    assert refusal("method=tiad") == "recipe: method: no method is named 'tiad'; did you mean 'taid'?"
    assert "method: Input should be a valid string (got 3)" in refusal("method=3")


def test_merge_goes_into_mappings_and_replaces_everything_else() -> None:
    base = {"a": {"b": 1, "c": [1, 2]}, "d": 1}
    assert merge(base, {"a": {"c": [3]}, "d": {"e": 2}}) == {"a": {"b": 1, "c": [3]}, "d": {"e": 2}}
    assert merge(base, {"a": None}) == {"a": None, "d": 1}
    assert base == {"a": {"b": 1, "c": [1, 2]}, "d": 1}


_KEYS = st.sampled_from("abc")
_PLAIN = st.recursive(st.integers() | st.none(), lambda inner: st.dictionaries(_KEYS, inner), max_leaves=8)
_MAPPINGS = st.dictionaries(_KEYS, _PLAIN)


@given(_MAPPINGS, _MAPPINGS, _MAPPINGS)
def test_merge_is_idempotent_and_keeps_what_is_over(
    base: dict[str, Any], over: dict[str, Any], more: dict[str, Any]
) -> None:
    once = merge(base, over)
    assert merge(once, over) == once
    assert merge({}, over) == over
    assert merge(base, {}) == base
    assert set(once) == set(base) | set(over)
    for key, value in over.items():
        if not isinstance(value, dict):
            assert once[key] == value
    # A fragment under a complete recipe changes nothing, which is why a resolved recipe can be read again.
    complete = merge(more, once)
    assert merge(more, complete) == complete


# -- round trip -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_a_resolved_recipe_reads_back_as_itself(name: str) -> None:
    changes = [f"method={name}", "student.depth.keep=3", "data.evaluation.q.path=x", *FOR_SOME_TEACHERS]
    if "task" in METHODS[name].fragment:  # an encoder's layers are chosen by their place
        changes.append("student.depth.importance=uniform")
    recipe = parse_recipe(MINIMAL, changes)
    again = parse_recipe(dump_recipe(recipe))
    assert again == recipe
    assert dump_recipe(again) == dump_recipe(recipe)


_TEXT = st.text(st.characters(codec="utf-8"), max_size=20)


@given(model=_TEXT, prompts=st.lists(_TEXT, max_size=3), weight=st.floats(0, 1e30), keys=st.dictionaries(_TEXT, _TEXT))
@settings(max_examples=150, deadline=None)
def test_any_text_and_number_survives_the_resolved_file(
    model: str, prompts: list[str], weight: float, keys: dict[str, str]
) -> None:
    values = {
        "teacher": {"model": model},
        "data": {"train": [{"path": model}]},
        "student": {"start": "config", "config": keys},
        "evaluation": {"prompts": prompts},
        "objective": {"divergence": {"weight": weight}, "cross_entropy": {"weight": 1.0}},
    }
    recipe = resolve_recipe(values)
    again = parse_recipe(dump_recipe(recipe))
    assert again == recipe
    assert again.objective.divergence.weight == weight


# -- what single fields refuse ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["student.start=pretrained"], "start: pretrained needs student.model"),
        (["student.model.model=m"], "start: teacher cuts the student from the teacher"),
        (["student.config={a: 1}"], "student.config is only used with start: config, not start: teacher"),
        (["student.layers=[0]", "student.depth.keep=1"], "both choose layers"),
        (["objective.divergence.weight=0"], "objective: "),
        (["objective.divergence.parameters.alfa=1"], "'alfa' is not a parameter of forward_kl, which takes none"),
        (
            ["objective.divergence={kind: skew_forward_kl, parameters: {alfa: 1}}"],
            "'alfa' is not a parameter of skew_forward_kl; did you mean 'alpha'?",
        ),
        (
            ["trajectories.generation={temperature: 0, samples_per_prompt: 3}"],
            "3 greedy samples of one prompt are the same text",
        ),
        (["stages=[{name: a}, {name: a}]"], "two stages have one name"),
        (["stages=[{name: student}]"], "'student' is what lmdistill calls something of its own"),
        (["stages=[{name: sft-a}]"], "choose another"),
        (["stages=[{name: A b}]"], "stages.0.name"),
        (["name=../x"], "cannot name a folder"),
        (["name=.."], "cannot name a folder"),
        (["name=a/b"], "cannot name a folder"),
        (["data.evaluation={../../x: {path: q}}"], "cannot name a held-out set"),
        (["data.train=[]"], "data.train"),
        (["machine.memory_limit_gib=.inf"], "should be a finite number"),
        (["objective.divergence.weight=.nan"], "should be a finite number"),
        (["objective.divergence.temperature=0"], "greater than 0 (got 0)"),
    ],
)
def test_a_wrong_value_is_refused_with_the_reason(overrides: list[str], reason: str) -> None:
    assert reason in refusal(*overrides)


def test_answers_in_the_report_are_greedy_even_where_a_part_of_their_spec_is_given() -> None:
    """A default of the whole section would be lost with the first field that is set in it."""
    recipe = parse_recipe(MINIMAL, ["evaluation.generation.max_new_tokens=8"])
    assert recipe.evaluation.generation.max_new_tokens == 8
    assert recipe.evaluation.generation.temperature == 0.0
    assert recipe.trajectories.generation.temperature == 1.0


def test_the_parameters_of_divergences_are_those_of_the_loss_engine() -> None:
    kinds = get_args(DivergenceTerm.model_fields["kind"].annotation)
    assert set(kinds) == set(DIVERGENCES) == set(DIVERGENCE_PARAMETERS)
    for kind, names in DIVERGENCE_PARAMETERS.items():
        own = [name for name in inspect.signature(DIVERGENCES[kind]).parameters if name != "interpolation"]
        assert list(names) == own
    for method in METHODS.values():
        values = {**VALUES, "method": method.name, "student": _student(method.name)}
        for stage in recipe_stages(resolve_recipe(values, FOR_SOME_TEACHERS)):
            assert stage.objective is not None
            find_divergence(stage.objective.divergence.kind, **stage.objective.divergence.parameters)


def _student(name: str) -> dict[str, Any]:
    return {} if name == "pretrained_distillation" else dict(find_method(name).example.get("student", {}))


# -- training fields and stages ---------------------------------------------------------------------------------------


def test_any_field_of_training_arguments_is_taken() -> None:
    recipe = parse_recipe(MINIMAL, ["training.adam_beta2=0.95", "training.learning_rate=1e-4", "training.max_steps=3"])
    assert recipe.training == {"adam_beta2": 0.95, "learning_rate": 1e-4, "max_steps": 3}
    assert {"learning_rate", "lr_scheduler_type", "fsdp", "deepspeed"} <= set(training_fields())


def test_a_field_that_training_arguments_lacks_gets_the_nearest_name() -> None:
    assert refusal("training.lerning_rate=1") == (
        "recipe: training.lerning_rate: unknown field of TrainingArguments; did you mean 'learning_rate'?"
    )
    assert "stages.0.training.max_stps: unknown field of TrainingArguments; did you mean 'max_steps'?" in refusal(
        "stages=[{name: a, training: {max_stps: 1}}]"
    )


@pytest.mark.parametrize(("name", "instead"), [("seed", "seed"), ("output_dir", "runs and name")])
def test_a_training_field_that_the_recipe_sets_elsewhere_says_where(name: str, instead: str) -> None:
    assert f"training.{name} is set by {instead}; remove it" in refusal(f"training.{name}=1")


def test_stages_take_what_is_absent_from_the_top_level() -> None:
    recipe = parse_recipe(
        MINIMAL,
        [
            "training={learning_rate: 1e-3, max_steps: 5}",
            "stages=[{name: warm, objective: {divergence: {weight: 0}, cross_entropy: {weight: 1}}}, "
            "{name: main, training: {max_steps: 9}, train: [{path: other}]}]",
        ],
    )
    warm, main = recipe_stages(recipe)
    assert warm.objective is not None
    assert not warm.objective.needs_teacher
    assert warm.training == {"learning_rate": 1e-3, "max_steps": 5}
    assert warm.train == recipe.data.train
    assert main.objective == recipe.objective
    assert main.training == {"learning_rate": 1e-3, "max_steps": 9}
    assert main.train is not None
    assert main.train[0].path == "other"
    assert recipe.training == {"learning_rate": 1e-3, "max_steps": 5}


def test_without_stages_there_is_one_that_distils() -> None:
    (stage,) = recipe_stages(parse_recipe(MINIMAL))
    assert stage.name == "distil"
    assert stage.trajectories is not None
    assert stage.trajectories.source == "dataset"


def test_a_section_alone_takes_overrides_too() -> None:
    spec = resolve_section(EvaluationSpec, ["max_tokens=10", "speed.repeats=1"], "evaluate --set")
    assert (spec.max_tokens, spec.speed.repeats) == (10, 1)
    with pytest.raises(RecipeError, match=r"evaluate --set: max_tokns: unknown field; did you mean 'max_tokens'"):
        resolve_section(EvaluationSpec, ["max_tokns=10"], "evaluate --set")


def test_reading_a_recipe_without_training_fields_loads_nothing_heavy() -> None:
    code = (
        "import sys; from lmdistill.recipe import parse_recipe, dump_recipe;"
        f"dump_recipe(parse_recipe({MINIMAL!r}, ['method=taid']));"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
