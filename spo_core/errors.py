"""Errors that a user can cause. Each message says which file, key or value is wrong, and what to do."""


class SPOError(Exception):
    """Base of every refusal; command lines print its message without a traceback and exit with 2."""


class ConfigError(SPOError):
    """A params file, preset or override that cannot be used."""


class DataError(SPOError):
    """A dataset that is missing, malformed or changed under a run."""


class RunError(SPOError):
    """A run directory that is locked, incomplete or made with other params."""


class DiskError(SPOError):
    """A place where nothing more can be written: no space, a quota, a limit on the size of files."""


class TrainingError(SPOError):
    """A training run that must stop: non-finite numbers, or token ids that do not match their log-probs."""


class EngineError(SPOError):
    """A rollout engine that does not start, dies again after a restart, or disagrees with the trainer."""


class GradingError(SPOError):
    """Answers that cannot be compared, or too many that could not."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, with the next ones while it ends in a colon; the name of the error's type
    where it has no message."""
    first, *others = str(error).strip().splitlines() or [type(error).__name__]
    while first.rstrip().endswith(":") and others:
        first = f"{first.rstrip()} {others.pop(0).strip()}"
    return first


def type_and_line(error: BaseException) -> str:
    """``ValueError: `` and the first line of the message, or the name of the type alone."""
    name, line = type(error).__name__, first_line(error)
    return name if line == name else f"{name}: {line}"
