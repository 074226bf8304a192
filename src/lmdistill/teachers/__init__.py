"""Who speaks: a model in this process, a server, several teachers, or the student itself with more to read.

Names are imported when they are used: a teacher behind an API needs no torch, and its ledger opens in a moment.
"""

from typing import TYPE_CHECKING

from lmdistill.packages import late_names

if TYPE_CHECKING:
    from lmdistill.teachers.api import ApiTeacher
    from lmdistill.teachers.api_types import Answer, Message, Request, Sampling, Usage
    from lmdistill.teachers.base import Part, Speech, Teacher
    from lmdistill.teachers.columns import (
        Retold,
        context_columns,
        privileged_batch,
        retemplate,
        teacher_columns,
        with_context,
    )
    from lmdistill.teachers.ensemble import MixedTeachers, RoutedTeachers
    from lmdistill.teachers.llamacpp import serve_llamacpp
    from lmdistill.teachers.local import LocalTeacher
    from lmdistill.teachers.self_teacher import AdapterOffTeacher, SelfTeacher
    from lmdistill.teachers.served import KeptMass, ServedTeacher, served_bias

__all__ = [
    "AdapterOffTeacher",
    "Answer",
    "ApiTeacher",
    "KeptMass",
    "LocalTeacher",
    "Message",
    "MixedTeachers",
    "Part",
    "Request",
    "Retold",
    "RoutedTeachers",
    "Sampling",
    "SelfTeacher",
    "ServedTeacher",
    "Speech",
    "Teacher",
    "Usage",
    "context_columns",
    "privileged_batch",
    "retemplate",
    "serve_llamacpp",
    "served_bias",
    "teacher_columns",
    "with_context",
]

_MODULES = {
    "api": ["ApiTeacher"],
    "api_types": ["Answer", "Message", "Request", "Sampling", "Usage"],
    "base": ["Part", "Speech", "Teacher"],
    "columns": ["Retold", "context_columns", "privileged_batch", "retemplate", "teacher_columns", "with_context"],
    "ensemble": ["MixedTeachers", "RoutedTeachers"],
    "llamacpp": ["serve_llamacpp"],
    "local": ["LocalTeacher"],
    "self_teacher": ["AdapterOffTeacher", "SelfTeacher"],
    "served": ["KeptMass", "ServedTeacher", "served_bias"],
}

if not TYPE_CHECKING:
    __getattr__ = late_names(__name__, _MODULES)
