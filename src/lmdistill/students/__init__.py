"""Where the student starts: cut from the teacher, pretrained, or fresh; all parts combine."""

from lmdistill.students.build import BuiltStudent, build_student
from lmdistill.students.lora import merged, with_adapters

__all__ = ["BuiltStudent", "build_student", "merged", "with_adapters"]
