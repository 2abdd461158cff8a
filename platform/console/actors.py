"""Who did something, by the name that people know. Knows how an actor is written ("user:7", "key:…"), and no page."""

from collections.abc import Iterable
from typing import Any
from uuid import UUID

from django.contrib.auth import get_user_model

from apikeys.models import ApiKey
from audit.services import SYSTEM


def names(actors: Iterable[str]) -> dict[str, str]:
    """Each actor's name, in one query for people and one for keys; who is gone stays as written."""
    written = set(actors)
    people = {int(id_) for id_ in _ids(written, "user") if id_.isdecimal()}
    keys = {UUID(id_) for id_ in _ids(written, "key") if _is_uuid(id_)}
    found = {f"user:{user.pk}": user.get_username() for user in get_user_model().objects.filter(pk__in=people)}
    found |= {f"key:{key.pk}": f"key “{key.name}”" for key in ApiKey.objects.filter(pk__in=keys).only("name")}
    found |= {str(SYSTEM): "the platform"}
    return {actor: found.get(actor, actor) for actor in written}


def name(rows: Iterable[Any], field: str) -> None:
    """Give each row `actor_name`: the name of the actor whom its `field` holds."""
    named = list(rows)
    known = names(getattr(row, field) for row in named)
    for row in named:
        row.actor_name = known[getattr(row, field)]


def _ids(actors: Iterable[str], kind: str) -> list[str]:
    return [id_ for found, _, id_ in (actor.partition(":") for actor in actors) if found == kind]


def _is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True
