"""Conditions on moments that are kept in rows, by the database's clock; one that was set back hides nothing."""

from datetime import timedelta

from django.db.models import Q
from django.db.models.functions import Now

AHEAD = timedelta(minutes=1)  # that the clocks of two machines may differ by


def long_ago(field: str, age: timedelta) -> Q:
    """Moments that lie so far back; or ahead, where no moment that was noted can lie."""
    return Q(**{f"{field}__lt": Now() - age}) | Q(**{f"{field}__gt": Now() + AHEAD})


def over(field: str, longest: timedelta) -> Q:
    """Ends of terms of at most `longest` that have come; or that lie further ahead than a term can."""
    return Q(**{f"{field}__lt": Now()}) | Q(**{f"{field}__gt": Now() + longest + AHEAD})
