"""What can go wrong, and whose move it is.

AutomlError
├── InputError        the images, a manifest, an option: exit code 2
├── ZooError          a card, weights, a download
├── HistoryError      the database or a facts file
│   └── HistoryUnusable  the database itself, whatever is asked of it
├── PluginError       a plugin: import, name clash, broken promise
├── BudgetError       nothing could be trained in the time given
└── TrialError        one trial failed; the search goes on
    └── WorkerLost    the process or machine that it ran on is gone
"""

import errno
from typing import TypeGuard


class AutomlError(Exception):
    """The message says what was wrong, where, and what to do."""


class InputError(AutomlError, ValueError):
    """The input or an option cannot be used as it is. A ValueError, too, which is what programs such as scikit-learn expect."""


class ZooError(AutomlError):
    """A pretrained network cannot be listed, fetched or built."""


class HistoryError(AutomlError):
    """The task-history database or a facts file cannot be used."""


class HistoryUnusable(HistoryError):
    """The database is damaged, too new, in use or out of room: what was asked of it is not to blame."""


class PluginError(AutomlError):
    """A plugin could not be loaded or broke its promise."""


class BudgetError(AutomlError):
    """The budget is too small for any candidate."""


class TrialError(AutomlError):
    """One trial cannot go on; the search does."""


class WorkerLost(TrialError):
    """The process or the machine that something ran on is gone."""


class TrialWarning(UserWarning):
    """A trial went on, but not quite as it was asked to."""


class InputWarning(UserWarning):
    """The input is used, but not all of it, or not quite as it may be meant."""


PLUGIN_FAULTS = (Exception, SystemExit)
"""What is caught around somebody's plugin, and reported with its name. `sys.exit` is not a plugin's to call."""


def no_room(error: BaseException | None) -> TypeGuard[OSError]:
    """Whether it says that the disk is full, or what a user may fill of it: nobody's fault, and over when there is room."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
