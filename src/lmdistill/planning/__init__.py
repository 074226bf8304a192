"""What a run would take, before it is run: time, memory, disk, operations, energy and money.

A calibration takes a few real steps with the recipe's own teacher and a student of its size; all else is scaled from
them (`lmdistill plan`). `plan.json` in the run's folder is set against what then happened by the report.
"""

from lmdistill.planning.hardware import Hardware, find_hardware, load_hardware
from lmdistill.planning.make import make_plan, write_plan
from lmdistill.planning.records import HardwarePlan, Plan, ScalePlan, StagePlan
from lmdistill.planning.scaling import DistillationLaw, distillation_flops, supervised_loss, supervised_tokens

__all__ = [
    "DistillationLaw",
    "Hardware",
    "HardwarePlan",
    "Plan",
    "ScalePlan",
    "StagePlan",
    "distillation_flops",
    "find_hardware",
    "load_hardware",
    "make_plan",
    "supervised_loss",
    "supervised_tokens",
    "write_plan",
]
