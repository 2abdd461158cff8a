"""Knows what an engine holds of which adapter, tier by tier, and says it on the wire; never how it got there."""

from inference import engine_pb2 as pb
from inference.lora.bounded import Tally
from inference.lora.slots import SlotPool
from inference.lora.source import Loader


def states(slots: SlotPool, loader: Loader, digests: list[str] | None = None) -> list[pb.AdapterState]:
    """Of these digests, or of all that anything is held of. On the engine's thread, as whatever asks the pool."""
    host, disk = loader.host.sizes(), loader.cache.sizes()
    placed = {slot.digest: slot for slot in slots.occupied()}

    def state(digest: str) -> pb.AdapterState:
        slot = placed.get(digest)
        made = pb.AdapterState(
            digest=digest,
            state="loading" if digest in slots.coming else "absent",
            pinned=digest in slots.held,
            tier="host" if digest in host else "disk" if digest in disk else "store",
            host_bytes=host.get(digest, 0),
            disk_bytes=disk.get(digest, 0),
        )
        if slot is not None:
            made.state, made.running, made.bytes = slot.state.value, slot.pins, slot.bytes
            made.tier = "device" if slot.bytes else made.tier
        return made

    return [state(digest) for digest in digests or dict.fromkeys([*placed, *slots.coming, *host, *disk])]


def tiers(slots: SlotPool, loader: Loader) -> list[pb.Tier]:
    """How full the tiers are, and what they have done."""
    room, cache = slots.room, loader.cache
    resident = sum(slot.bytes > 0 for slot in slots.slots)
    return [
        _tier("device", room.leased * room.page, room.total * room.page, resident, slots.tally),
        _tier("host", loader.host.bytes, loader.host.limit, len(loader.host.sizes()), loader.host.tally),
        _tier("disk", cache.bytes, cache.limit, len(cache.sizes()), cache.tally),
    ]


def _tier(name: str, held: int, limit: int, adapters: int, tally: Tally) -> pb.Tier:
    return pb.Tier(
        name=name,
        bytes=held,
        limit=limit,
        adapters=adapters,
        hits=tally.hits,
        misses=tally.misses,
        loads=tally.loads,
        evictions=tally.evictions,
        seconds=tally.seconds,
    )
