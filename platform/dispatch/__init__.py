"""How work gets to workers and is seen to get there; knows neither tasks nor what they do.

A task that is sent is a hint: what is to be done stands in the database. What was lost on the way, or with its worker,
is found there within seconds (`SOON`) by sweeps, which ask again where no message waits any more (`idle`) or where
nobody is at work (`deserted`).
"""

from datetime import timedelta

from dispatch.presence import at_work, attended, deserted
from dispatch.sending import after_commit, flush, idle, send
from dispatch.times import long_ago, over

SOON = timedelta(seconds=5)  # in which a message that was sent has reached the broker

__all__ = ["SOON", "after_commit", "at_work", "attended", "deserted", "flush", "idle", "long_ago", "over", "send"]
