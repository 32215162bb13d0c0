"""What can go wrong with a spool, by who must act.

SpoolError
├── SpoolUnavailable   the world is bad: no spool there, not mounted, unknown format; wait or mend, then retry
├── InstanceLost       we were taken for dead and all we held was adopted: end, and start anew
├── BatchGone          we are too late: another daemon has adopted the batch; drop it and go on
├── RecordUnknown      a record of a version that this batchd does not know; left alone, loudly
├── ResultsLost        a user removed results before their batch had ended; they are made again from the parts
└── SidecarError       the drop is bad: its sidecar cannot be used; the batch fails with `invalid_request`
"""


class SpoolError(Exception):
    """Base of this package's errors."""


class SpoolUnavailable(SpoolError):
    """The spool cannot be used now; the message says why and what to do."""


class InstanceLost(SpoolError):
    """This instance's folder was adopted by another daemon."""


class BatchGone(SpoolError):
    """The batch's folder is no longer ours: it was adopted, and what we do must not become public."""


class RecordUnknown(SpoolError):
    """A record.json or spool.json of a format that this version does not know."""


class ResultsLost(SpoolError):
    """A committed result file is neither in the batch's folder nor in the outbox."""


class SidecarError(SpoolError):
    """The sidecar cannot be used; the message names the key and what is allowed."""
