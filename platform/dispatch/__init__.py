"""How work gets to workers and is seen to get there; knows neither tasks nor what they do."""

from dispatch.presence import at_work, attended, deserted
from dispatch.sending import after_commit, flush, send

__all__ = ["after_commit", "at_work", "attended", "deserted", "flush", "send"]
