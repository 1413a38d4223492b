"""The exceptions of polarprune, one small tree.

    PolarpruneError
    ├── ConfigError          a value out of range, or values that contradict each other
    ├── DataError            a data set that is missing, empty, broken or inconsistent
    ├── WeightsError         a weights file that does not fit the network
    ├── RunFolderError       a run folder that is absent, foreign, or in the way
    ├── CheckpointError      a checkpoint that is truncated or does not fit the run
    ├── TrainingError        training went wrong (a loss that is not finite)
    ├── Refused              a network or request that polarprune declines, with the reason
    ├── ParityError          two stages that should compute the same do not
    ├── BundleError          a bundle whose files do not match its manifest
    ├── BackendUnavailable   a package or device that is not here; the message says what to install
    └── ServerError          a server that is down, or answers otherwise than the protocol says

Every message is one line: what was violated, what was got, what to do. The command line prints it
and exits with 1; a traceback there is a bug.
"""


class PolarpruneError(Exception):
    """Whatever polarprune raises on purpose."""


class ConfigError(PolarpruneError, ValueError):
    """A value out of range, or values that contradict each other."""


class DataError(PolarpruneError):
    """A data set that is missing, empty, broken or inconsistent."""


class WeightsError(PolarpruneError):
    """A weights file that does not fit the network."""


class RunFolderError(PolarpruneError):
    """A run folder that is absent, foreign, or in the way."""


class CheckpointError(PolarpruneError):
    """A checkpoint that is truncated or does not fit the run."""


class TrainingError(PolarpruneError):
    """Training went wrong; the last good checkpoint is kept."""


class Refused(PolarpruneError):
    """polarprune declines, and says why."""


class ParityError(PolarpruneError):
    """Two stages that should compute the same do not."""


class BundleError(PolarpruneError):
    """A bundle whose files do not match its manifest."""


class BackendUnavailable(PolarpruneError):
    """A package or device that is not here."""


class ServerError(PolarpruneError):
    """A server is down, or answers otherwise than the protocol says."""


def first_line(error: BaseException) -> str:
    """What an exception says, in one line; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def of_another_version(path: object, found: object, read: int) -> str:
    """The message about a file of a schema that is not read here."""
    return f"{path} has schema {found}, this polarprune reads {read}; use the one that wrote it"


def quote(value: object, limit: int = 80) -> str:
    """A value from a file as a message may quote it: in one line, cut where it is long."""
    words = ascii(value[:limit] if isinstance(value, str | bytes) else value)
    return words if len(words) <= limit else f"{words[:limit]}..."
