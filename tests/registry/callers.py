"""Clients that send files by plain requests."""

import io
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from rest_framework.test import APIClient

from registry.intake import Upload

Commits = Callable[..., AbstractContextManager[Any]]
Clients = Callable[..., APIClient]
LeftBehind = Callable[[], set[str]]


class Caller:
    """What a client does, by plain requests; every commit's consequences take place."""

    def __init__(self, client: APIClient, commits: Commits) -> None:
        self.client = client
        self.commits = commits

    def call(self, path: str, body: Any = None, status: int = 200, method: str = "post", **options: Any) -> Any:
        with self.commits(execute=True):
            answer = getattr(self.client, method)(path, body, **{"format": "json", **options})
        assert answer.status_code == status, answer.content
        return answer.json()

    def create(self, size: int, filename: str = "a.zip", status: int = 200, **more: Any) -> Any:
        about = {"bytes": size, "filename": filename, "purpose": "adapter", "mime_type": "application/zip", **more}
        return self.call("/v1/uploads", about, status)

    def part(self, upload: str, content: bytes, status: int = 200) -> Any:
        data = {"data": io.BytesIO(content)}
        return self.call(f"/v1/uploads/{upload}/parts", data, status, format="multipart")

    def complete(self, upload: str, parts: list[str], status: int = 200, **more: Any) -> Any:
        return self.call(f"/v1/uploads/{upload}/complete", {"part_ids": parts, **more}, status)

    def get(self, path: str, status: int = 200) -> Any:
        return self.call(path, None, status, method="get")

    def whole(self, content: bytes, filename: str = "a.zip") -> Any:
        upload = self.create(len(content), filename)
        return self.complete(upload["id"], [self.part(upload["id"], content)["id"]])


def only(upload: dict[str, Any]) -> Upload:
    return Upload.objects.get(pk=upload["id"].removeprefix("upload_"))


def at_once(calls: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
