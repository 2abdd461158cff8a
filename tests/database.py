"""Lets a test's own connection be what a web process has: the role that row-level security binds."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.conf import settings
from django.db import connection


@contextmanager
def web_role() -> Iterator[None]:
    """Queries in here are those of a web process: of no tenant, until one is in scope."""
    role, options = settings.LORAYARD.web_role, connection.settings_dict["OPTIONS"]
    if connection.connection is None:
        connection.connect()
    connection.connection.execute(f"SET ROLE {role}")
    options["assume_role"] = role
    try:
        yield
    finally:
        del options["assume_role"]
        if connection.connection is not None:
            connection.connection.execute("RESET ROLE")
