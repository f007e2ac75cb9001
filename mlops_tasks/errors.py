"""The exception tree, and the exit code that each class means to whoever started the process.

WmtpError                  1   unknown: the orchestrator retries as its DAG says
├── Killed                     a process that was killed and left no word, mostly for want of memory
├── UserError             64   the user's mistake: config, data schema, a missing model; fail at once
│   └── Unfit                  settings of a recipe that do not go together, or not with its model or data
├── DataError             65   the data or an invariant is bad: contamination, NaN loss; fail at once
│   ├── OutOfMemory            a device cannot hold what it was given; less may do
│   └── NotFinite              a training whose loss or gradient is no number any more
├── Unavailable           75   cannot now: a server is down, another build is running; retry later
├── Interrupted           85   stopped after a checkpoint: start again and it resumes
└── Pruned                86   whoever watched saw no use in going on; never the end of a process that somebody else started

A message has three parts: what was wrong with the value, where, and what to do.
"""


class WmtpError(Exception):
    """Root of every error that this package raises on purpose."""

    exit_code = 1


class Killed(WmtpError):
    """A process, or a pod, that ended by a signal which nobody here has sent: mostly its memory did not do."""


class UserError(WmtpError):
    """Something that only the user can put right."""

    exit_code = 64


class Unfit(UserError):
    """Settings of a recipe that do not go together, or not with its model or its data; other settings may."""


class DataError(WmtpError):
    """Data or a result that breaks a rule on which the result would rest."""

    exit_code = 65


class OutOfMemory(DataError):
    """A device's memory is too small for what it was given at one time."""


class NotFinite(DataError):
    """A loss or a gradient that is no number; with other settings it may be one."""


class Unavailable(WmtpError):
    """Something outside is not there now and may be later."""

    exit_code = 75


class Interrupted(WmtpError):
    """The work was stopped from outside; what was done up to the last checkpoint is kept."""

    exit_code = 85


class Pruned(WmtpError):
    """A training that was ended because others did better at the same step; it leaves nothing."""

    exit_code = 86


BY_EXIT_CODE: dict[int, type[WmtpError]] = {
    error.exit_code: error for error in (UserError, DataError, Unavailable, Interrupted, Pruned)
}

FAULTS_OF_RECIPE: tuple[type[WmtpError], ...] = (Unfit, OutOfMemory, NotFinite, Killed)
"""What a recipe's own settings can bring about, so that another recipe may do on the same machine and data."""


def class_of(exit_code: int, name: str) -> type[WmtpError]:
    """The class of an error of another process, by its exit code and, where there are several, the name of its class."""
    refined = {kind.__name__: kind for kind in FAULTS_OF_RECIPE if kind.exit_code == exit_code}
    return refined.get(name, BY_EXIT_CODE.get(exit_code, WmtpError))
