"""One exception tree; the branch is the remedy, and every message says what to do next.

Each class derives from the built-in error that it refines, so that callers who know nothing of lmdistill still catch
what they expect. `exit_code` is what the command line ends with (see `lmdistill.cli`).
"""

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_INPUT = 2
EXIT_INTERRUPTED = 75


class LmdistillError(Exception):
    """Base of all errors that lmdistill raises on purpose."""

    exit_code = EXIT_FAILED


class RecipeError(LmdistillError, ValueError):
    """The recipe is wrong: edit the field that the message names."""

    exit_code = EXIT_INPUT


class DataError(LmdistillError, ValueError):
    """The data are wrong: repair the file and line that the message names, or choose a policy that allows them."""

    exit_code = EXIT_INPUT


class ModelError(LmdistillError, ValueError):
    """A model or tokenizer cannot be used: missing, unsafe, broken, or not fit for the other one."""

    exit_code = EXIT_INPUT


class TokenizerMismatch(ModelError):
    """Teacher and student do not give the same ids to the same text, so their distributions cannot be compared."""


class MissingExtra(LmdistillError, ImportError):
    """An optional dependency is not installed; the message holds the command that installs it."""

    exit_code = EXIT_INPUT


class RunFolderInUse(LmdistillError, RuntimeError):
    """Another live process owns the run folder."""

    exit_code = EXIT_INPUT


class UnsafePath(LmdistillError, ValueError):
    """A name or path points outside the folder that it must stay in."""

    exit_code = EXIT_INPUT


class StorageError(LmdistillError, OSError):
    """Writing failed (disk full, read-only, I/O error); what was written before is intact."""


class CorruptFile(LmdistillError, ValueError):
    """A file of ours fails its checksum or cannot be read."""


class TrainingError(LmdistillError, RuntimeError):
    """Training cannot go on; the last good checkpoint is intact."""


class NonFiniteLoss(TrainingError, ArithmeticError):
    """A loss or gradient is NaN or infinite; raised before the optimiser step."""


class Interrupted(LmdistillError, RuntimeError):
    """Stopped by a signal after saving; the same command resumes."""

    exit_code = EXIT_INTERRUPTED


class ServerLost(Interrupted):
    """A server did not answer after all retries; what was done is kept, and the same command goes on from there."""


class TeacherError(LmdistillError, RuntimeError):
    """A teacher behind an API does not answer; what it answered before is in the ledger.

    Its branches are how a request is tried again: Refused not at all, Busy as told, Broken later, BadAnswer twice more.
    """


class Refused(TeacherError):
    """The server refuses and will go on refusing (key, money, name of the model): mend it, then run again."""

    exit_code = EXIT_INPUT


class Unanswerable(TeacherError):
    """The server refuses this one request (too long, against its policy); others go on."""


class Busy(TeacherError):
    """The server asks to wait."""

    def __init__(self, message: str, wait_seconds: float | None = None) -> None:
        super().__init__(message)
        self.wait_seconds = wait_seconds
        """As told; None where it said nothing usable."""


class Broken(TeacherError):
    """The server or the way to it failed; later it may work."""

    def __init__(self, message: str, *, reached: bool = True, billed: bool = True) -> None:
        super().__init__(message)
        self.reached = reached
        """Whether the request may have come to the server."""
        self.billed = billed
        """Whether it may have to be paid: not where the server itself says that it failed."""


class BadAnswer(TeacherError):
    """An answer came and cannot be used."""

    def __init__(self, message: str, raw: bytes = b"") -> None:
        super().__init__(message)
        self.raw = raw
        """What came, or its beginning."""


class BudgetSpent(TeacherError):
    """The next call would exceed a cap: raise it, then the same command goes on."""

    exit_code = EXIT_INTERRUPTED
