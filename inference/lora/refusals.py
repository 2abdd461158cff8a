"""Knows which adapters will never be in a slot, and says why; never how the others get there."""

from collections.abc import Collection, Sequence

from inference.errors import AdapterFaulty, AdapterUnavailable, EngineError, PinsFull
from inference.lora.slot import Room, Slot
from inference.lora.weights import AdapterWeights


def refusal(
    digest: str, weights: AdapterWeights, room: Room, slots: Sequence[Slot], held: Collection[str]
) -> EngineError | None:
    """Why an adapter that is on the host finds no memory however long it waits, or may not be pinned (PinsFull)."""
    needed, total = room.pages(weights), room.total
    kept = [slot for slot in slots if slot.digest in held and slot.digest != digest]
    pinned = sum(slot.pages for slot in kept)

    def size(pages: int) -> str:
        return f"{pages * room.page / 2**20:.1f} MiB"

    told = f"Version {digest} takes {size(needed)} of device memory"
    if needed > total:
        return AdapterFaulty(f"{told}; all adapters together have {size(total)}.")
    if digest in held and needed + pinned > total - total // len(slots):
        return PinsFull(f"{told}; pinned ones hold {size(pinned)} of {size(total)}, and a slot's share stays free.")
    if needed + pinned > total:
        return AdapterUnavailable(f"{told}; pinned adapters hold {size(pinned)} of {size(total)}.")
    if kept and not room.fits(weights, [slot.lease for slot in kept]):
        return AdapterUnavailable(f"{told}; no place between the pinned adapters is large enough.")
    return None


def as_engine_error(error: BaseException) -> EngineError:
    """What a load ended with, as the engine says it."""
    if isinstance(error, EngineError):
        return error
    return AdapterUnavailable(f"The adapter could not be loaded: {type(error).__name__}.")
