"""How a bulk job can fail as a whole; how one row fails is in the package's own errors.

A line belongs here when it names a reason for which a job does not begin or does not go on.

    RerankError
    └─ JobError                   the job as a whole: what it has done so far is kept
       ├─ InputError (ValueError)  a file does not hold what its format says
       ├─ JobChangedError         the job was begun with another input, model or option
       ├─ JobLockedError          another process works on it
       ├─ JobDamagedError         what is on disk is not what was written
       └─ JobFullError (OSError)  the disk took no more
"""

from __future__ import annotations

from rerank_async._errors import RerankError

__all__ = [
    "HaltedError",
    "InputError",
    "JobChangedError",
    "JobDamagedError",
    "JobError",
    "JobFullError",
    "JobLockedError",
]


class HaltedError(Exception):
    """What was being read or written is not wanted any more; never a user's to see."""


class JobError(RerankError):
    """A job cannot begin or go on; what it has done so far is kept."""


class InputError(JobError, ValueError):
    """A file does not hold what its format says; the message names the file and the line."""


class JobChangedError(JobError):
    """The job's directory was begun with another input, model or option; the message says which."""


class JobLockedError(JobError):
    """Another process works on this job."""


class JobDamagedError(JobError):
    """A file of the job is not as it was written; the message names the file and the place."""


class JobFullError(JobError, OSError):
    """The disk took no more; everything that was acknowledged is kept."""

    def __init__(self, message: str) -> None:
        # OSError takes its arguments apart when there are two; here there is one.
        super().__init__(message)
