"""The typed recipe: everything a run does, in one YAML file.

A recipe is read with `load_recipe`, completed by its method's fragment (`lmdistill.methods`), overridden with
`--set a.b=c`, and written back resolved, so that a run folder says exactly what happened in it. Unknown keys are
refused with the nearest known name. The string under a field is its documentation: `docs/recipe.md` is generated
from it and nowhere else is a field described.
"""

from lmdistill.recipe.accounting import AccountingSpec, TeacherTrainingSpec
from lmdistill.recipe.api import ApiLimits, ApiPrice, ApiRetries, ApiSpec, LlamaCppSpec, is_this_machine
from lmdistill.recipe.base import (
    AnySection,
    Count,
    NonNegative,
    Positive,
    Section,
    Share,
    names_a_folder,
    nearest,
    section_of,
)
from lmdistill.recipe.data import DataSpec, DifferenceSpec, FieldNames, SourceSpec
from lmdistill.recipe.evaluation import EvaluationSpec, ResponsesSpec, SpeedSpec
from lmdistill.recipe.generation import AskSpec, DataGenerationSpec, MakerName, SeedSpec
from lmdistill.recipe.hints import (
    HINT_PARAMETERS,
    HintKind,
    HintSpec,
    ProjectorSpec,
    PruneWhileSpec,
    UnfreezeSpec,
)
from lmdistill.recipe.load import (
    dump_recipe,
    load_recipe,
    parse_recipe,
    resolve_recipe,
    resolve_section,
    training_fields,
)
from lmdistill.recipe.models import ModelSpec
from lmdistill.recipe.objective import (
    DIVERGENCE_PARAMETERS,
    ContrastiveSpec,
    CrossEntropyTerm,
    CrossTokenizerTerm,
    DivergenceTerm,
    HiddenCosineTerm,
    ObjectiveSpec,
    PolicyTerm,
    PreferenceTerm,
    RewardSpec,
    TokenWeightSpec,
)
from lmdistill.recipe.signals import SignalKind, SignalSpec
from lmdistill.recipe.student import DepthSpec, LoraSpec, StudentSpec, VocabularySpec, WidthSpec
from lmdistill.recipe.suites import (
    CalibrationSpec,
    EditKind,
    EfficiencySpec,
    FidelitySpec,
    InstructionSpec,
    JudgeSpec,
    ReasoningSpec,
    RobustnessSpec,
    SuitesSpec,
    TasksSpec,
)
from lmdistill.recipe.teaching import TeachingSpec
from lmdistill.recipe.trajectories import (
    AnswerSpec,
    GenerationSpec,
    InterleavedSpec,
    LengthSpec,
    MixtureSpec,
    ReplaySpec,
    RolloutsSpec,
    ShareSchedule,
    TrajectoriesSpec,
)
from lmdistill.recipe.whole import BudgetSpec, MachineSpec, Recipe, StageSpec, merge, recipe_stages

__all__ = [
    "DIVERGENCE_PARAMETERS",
    "AccountingSpec",
    "HINT_PARAMETERS",
    "AnswerSpec",
    "AnySection",
    "ApiLimits",
    "ApiPrice",
    "ApiRetries",
    "ApiSpec",
    "AskSpec",
    "BudgetSpec",
    "CalibrationSpec",
    "ContrastiveSpec",
    "Count",
    "CrossEntropyTerm",
    "CrossTokenizerTerm",
    "DataGenerationSpec",
    "DataSpec",
    "DepthSpec",
    "DifferenceSpec",
    "DivergenceTerm",
    "EditKind",
    "EfficiencySpec",
    "EvaluationSpec",
    "FidelitySpec",
    "FieldNames",
    "GenerationSpec",
    "HiddenCosineTerm",
    "HintKind",
    "HintSpec",
    "InstructionSpec",
    "InterleavedSpec",
    "JudgeSpec",
    "LengthSpec",
    "LlamaCppSpec",
    "LoraSpec",
    "MachineSpec",
    "MakerName",
    "MixtureSpec",
    "ModelSpec",
    "NonNegative",
    "ObjectiveSpec",
    "PolicyTerm",
    "Positive",
    "PreferenceTerm",
    "ProjectorSpec",
    "PruneWhileSpec",
    "ReasoningSpec",
    "Recipe",
    "ReplaySpec",
    "ResponsesSpec",
    "RewardSpec",
    "RobustnessSpec",
    "RolloutsSpec",
    "Section",
    "SeedSpec",
    "Share",
    "ShareSchedule",
    "SignalKind",
    "SignalSpec",
    "SourceSpec",
    "SpeedSpec",
    "StageSpec",
    "StudentSpec",
    "TeacherTrainingSpec",
    "SuitesSpec",
    "TasksSpec",
    "TeachingSpec",
    "TokenWeightSpec",
    "TrajectoriesSpec",
    "UnfreezeSpec",
    "VocabularySpec",
    "WidthSpec",
    "dump_recipe",
    "is_this_machine",
    "load_recipe",
    "merge",
    "names_a_folder",
    "nearest",
    "parse_recipe",
    "recipe_stages",
    "resolve_recipe",
    "resolve_section",
    "section_of",
    "training_fields",
]
