"""Gives the database's connection back before its time; knows nothing of what is done with it."""

from django.db import connection


def let_go() -> None:
    """To be called before what takes as long as others like: a client that reads, an engine that loads.

    Whoever queries later takes a new one. In a transaction nothing happens. Not for work that `dispatch.at_work` shows,
    since that ends with its session.
    """
    if not connection.in_atomic_block:
        connection.close()
