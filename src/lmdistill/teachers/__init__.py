"""Who speaks: a model in this process, a server, several teachers, or the student itself with more to read."""

from lmdistill.teachers.base import Part, Speech, Teacher
from lmdistill.teachers.local import LocalTeacher

__all__ = ["LocalTeacher", "Part", "Speech", "Teacher"]
