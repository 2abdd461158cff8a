"""Exits with 0 if the engine in this container serves, by its own account. For the container's health check."""

import asyncio
import os
import sys

from inference.client import EngineClient


async def healthy() -> bool:
    client = EngineClient("127.0.0.1:50051", os.environ["LORAYARD_ENGINE_SECRET"])
    try:
        return await client.healthy()
    finally:
        await client.close()


sys.exit(0 if asyncio.run(healthy()) else 1)
