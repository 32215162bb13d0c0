"""What can go wrong in scheduling, by who must act.

SchedulerError
├── QueueFull      the world is bad: as many jobs wait as may be held; claim nothing until one leaves
└── OutOfStep      we are wrong: the caller's view and ours differ (a job queued twice, a slot taken that
                   is not free, a run released twice); stop
"""


class SchedulerError(Exception):
    """Base of this package's errors."""


class QueueFull(SchedulerError):
    """The queue holds as many jobs as its limit allows; the job was not taken in."""


class OutOfStep(SchedulerError):
    """A call that cannot follow from what was decided before; nothing was changed."""
