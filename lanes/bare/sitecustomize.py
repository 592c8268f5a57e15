"""Takes away what only POSIX has; Python imports this at its start where it is on PYTHONPATH."""

import os

from tests import without_posix

# pytest asks whose its temporary folder is.
without_posix.LACKING[os] = tuple(
    name for name in without_posix.LACKING[os] if name not in ("getuid", "geteuid")
)
without_posix.take_away()
