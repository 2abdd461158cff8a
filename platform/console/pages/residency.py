"""A version's place on the engine, and the verbs that change it. Belongs to the versions' page."""

from typing import Any

from django.db.models import Model
from django.utils.safestring import SafeString

from audit.services import Actor
from console import display as show
from console.verbs import Verb, VerbForm
from registry import services
from registry.models import State, Version
from registry.services import Place
from tenants.errors import PlatformError
from tenants.models import Role

PATIENCE = 1.0  # seconds that the page waits for the engine


def place(version: Version) -> SafeString | str:
    """Where the version is. While the engine is away the page says so; it never fails."""
    try:
        found = services.locate(version, patience=PATIENCE)
    except PlatformError:
        return "The engine does not answer."
    return show.pairs(
        {
            "on the device": found.state,
            "nearest copy": found.tier,
            "bytes": found.bytes,
            "pinned": found.pinned,
        }
    )


class OnTheEngine(Verb):
    """Base: makes sense for a version in service."""

    role = Role.EDITOR

    @classmethod
    def applies(cls, target: Any) -> bool:
        return bool(target.state == State.READY)

    def call(self, actor: Actor) -> Place:
        raise NotImplementedError

    def perform(self, form: VerbForm, actor: Actor) -> Model:
        self.place = self.call(actor)
        return self.target  # type: ignore[no-any-return]

    def done(self, row: Model) -> str:
        return f"{row} is {self.place.state} on the engine."


class Preload(OnTheEngine):
    slug, title, submit, icon = "preload", "Preload", "Bring it to the device", "memory"
    explains = "The version is brought to the engine's device, so that its next request need not wait for it."

    def call(self, actor: Actor) -> Place:
        return services.preload_version(self.target, actor=actor)


class Evict(OnTheEngine):
    slug, title, submit, icon = "evict", "Evict", "Send it away", "eject"
    explains = "The version leaves the engine's device, memory and disk; a request for it brings it back."

    def call(self, actor: Actor) -> Place:
        return services.evict_version(self.target, actor=actor)


class Pin(OnTheEngine):
    slug, title, submit, icon = "pin", "Pin", "Keep it on the device", "keep"
    explains = "The version stays on the engine's device until it is unpinned. A tenant may pin only a few."

    @classmethod
    def applies(cls, target: Any) -> bool:
        return super().applies(target) and target.pinned_at is None

    def call(self, actor: Actor) -> Place:
        return services.pin_version(self.target, actor=actor)


class Unpin(OnTheEngine):
    slug, title, submit, icon = "unpin", "Unpin", "Let it make room", "keep_off"
    explains = "The version makes room on the engine's device for others, when they need it."

    @classmethod
    def applies(cls, target: Any) -> bool:
        return target.pinned_at is not None

    def call(self, actor: Actor) -> Place:
        return services.unpin_version(self.target, actor=actor)
