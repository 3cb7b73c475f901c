"""The one exception family: every error says what happened, where, why, and what to do about it."""

from __future__ import annotations


class EverymaskError(Exception):
    """Base of all errors that Everymask raises on purpose.

    Args:
        what: what could not be done, one clause without a full stop.
        where: the file, field or argument that it happened in.
        why: the observed cause, with the offending value.
        fix: what the user can do about it.
    """

    def __init__(self, what: str, *, where: object = "", why: str = "", fix: str = "") -> None:
        self.what, self.where, self.why, self.fix = what, str(where), why, fix
        super().__init__(self.message)

    @property
    def message(self) -> str:
        """The whole text: ``what: where (why). fix``."""
        text = f"{self.what}: {self.where}" if self.where else self.what
        text += f" ({self.why})." if self.why else "."
        return f"{text} {self.fix}" if self.fix else text

    def __reduce__(self) -> tuple:
        # Errors cross process borders (loader workers): keyword-only arguments need their own way through pickle.
        return _rebuild, (type(self), self.what, self.where, self.why, self.fix)


def _rebuild(kind: type[EverymaskError], what: str, where: str, why: str, fix: str) -> EverymaskError:
    return kind(what, where=where, why=why, fix=fix)


class ImageError(EverymaskError):
    """A photo or mask file that cannot be read, is too large, or is of a kind that is not accepted."""


class DataError(EverymaskError):
    """A data set whose files do not fit together: orphans, sizes, unknown pixel values, empty folders."""


class ModelError(EverymaskError):
    """An unknown model or preset, or weights that do not belong to it."""


class CheckpointError(EverymaskError):
    """A checkpoint folder or packed file that is missing, truncated, changed or from another configuration."""


class TrainingError(EverymaskError):
    """Training that cannot start or go on: non-finite numbers, conflicting settings, a folder in use."""


class UsageError(EverymaskError):
    """An argument of the public API or command line that does not make sense."""


class WriteError(EverymaskError):
    """A file that the system does not let us write; what was there before is still there."""
