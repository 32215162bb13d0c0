"""The commands of batchd, a module each: `add` declares the arguments, `run` does the work.

All but `run` work on the spool's folders alone, without a connection to a daemon.
"""
