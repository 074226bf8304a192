"""What a run cost: tokens, floating-point operations, time, energy and money by stage, and in three totals.

What is counted follows "Practical Principles for AI Cost and Compute Accounting" (Casper, Bailey, Schreier,
2502.15873): all that lies upstream of the student, the teacher's inference, its synthetic text and its training among
it, what failed and was thrown away too, item by item, cost and compute side by side, estimates said to be such.
"""

from lmdistill.accounting.attempts import Attempt, attempts_of, lost_seconds
from lmdistill.accounting.energy import EnergyMeter, watts_assumed
from lmdistill.accounting.flops import forward_flops, meta_model, training_flops_of
from lmdistill.accounting.machine import describe_machine
from lmdistill.accounting.pulse import Pulse, left_behind
from lmdistill.accounting.records import Accounting, ApiCost, Energy, StageCost, Total, Totals
from lmdistill.accounting.totals import account, role_of

__all__ = [
    "Accounting",
    "ApiCost",
    "Attempt",
    "Energy",
    "EnergyMeter",
    "Pulse",
    "StageCost",
    "Total",
    "Totals",
    "account",
    "attempts_of",
    "describe_machine",
    "forward_flops",
    "left_behind",
    "lost_seconds",
    "meta_model",
    "role_of",
    "training_flops_of",
    "watts_assumed",
]
