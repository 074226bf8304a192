"""Who speaks: a model in this process, a server, several teachers, or the student itself with more to read."""

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
from lmdistill.teachers.local import LocalTeacher
from lmdistill.teachers.self_teacher import AdapterOffTeacher, SelfTeacher
from lmdistill.teachers.served import KeptMass, ServedTeacher, served_bias

__all__ = [
    "AdapterOffTeacher",
    "KeptMass",
    "LocalTeacher",
    "MixedTeachers",
    "Part",
    "Retold",
    "RoutedTeachers",
    "SelfTeacher",
    "ServedTeacher",
    "Speech",
    "Teacher",
    "context_columns",
    "privileged_batch",
    "retemplate",
    "served_bias",
    "teacher_columns",
    "with_context",
]
