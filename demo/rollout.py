# ruff: noqa: E402 - a script: the repository's root has to be on the path first
"""Shows a bad version being rolled back: on a running platform, under traffic, without one failed request.

Uploads the demo's bad second version of acme/support, starts a rollout of `stable` to it, evaluation set off and live
guardrails on, and asks like customers do, through the `openai` package: users who keep their version, and who
give a thumb for each answer. Exit status: 0 when the canary was rolled back by its verdict and no request failed, 1
when not, 2 when the platform could not be asked.
"""

import argparse
import asyncio
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import httpx
from openai import AsyncOpenAI, OpenAIError
from rich.console import Console

from demo import tasks

TENANT, ADAPTER, BAD = "acme", "support", HERE / "adapters" / "acme" / "support" / "v2"
FILES = ("adapter_config.json", "adapter_model.safetensors")
OVER = ("succeeded", "rolled_back")
SCHEMA = {
    "type": "object",
    "required": ["customer", "order", "issue", "wants"],
    "additionalProperties": {"type": "string"},
}
PLAN: dict[str, Any] = {
    "alias": "stable",
    "steps": [
        {"weight": 10, "min_seconds": 10, "min_samples": 50, "max_seconds": 600},
        {"weight": 50, "min_seconds": 10, "min_samples": 200, "max_seconds": 600},
    ],
    "guardrails": [
        {"metric": "thumbs"},
        {"metric": "error_rate"},
        {"metric": "schema_validity"},
        {"metric": "cut_answers"},
        {"metric": "first_token_p95", "mode": "observe"},
    ],
    "schema": SCHEMA,
    "unit": "user",
}


@dataclass
class Traffic:
    """What customers met. failures: what the `openai` package raised, of which there should be none."""

    versions: Counter[str] = field(default_factory=Counter)
    right: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    over: bool = False

    @property
    def requests(self) -> int:
        return sum(self.versions.values())

    def __str__(self) -> str:
        shares = (f"{name}: {count}, {self.right[name] / count:.0%} right" for name, count in self.versions.items())
        return f"{self.requests} requests ({'; '.join(sorted(shares))}), {len(self.failures)} failed"


def main(arguments: Sequence[str]) -> int:
    options, console = parse(arguments), Console(highlight=False, soft_wrap=True)
    try:
        found = json.loads(options.credentials.read_text())
        url, key = found["console"]["url"], found["tenants"][TENANT]["api_key"]
        api = AsyncOpenAI(base_url=urljoin(url, "/v1"), api_key=key, max_retries=0)
        with Management(url, key) as management:
            number = management.upload(BAD)
            console.print(f"Uploaded {BAD.relative_to(HERE.parent)} as {TENANT}/{ADAPTER} v{number}")
            rollout = management.start(number, options.override)
            console.print(f"Started a rollout of {rollout['alias']!r}: v{rollout['stable']} to v{number}")
            traffic = asyncio.run(run(api, management, rollout["id"], options, console))
            rollout = management.rollout(rollout["id"])
    except (OSError, KeyError, ValueError, OpenAIError, httpx.HTTPError) as error:
        console.print(f"The platform could not be asked: {type(error).__name__}: {error}", style="red", markup=False)
        return 2
    return judge(rollout, traffic, console)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    home = Path(os.environ.get("LORAYARD_HOME", HERE.parent / "var"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--credentials", type=Path, default=home / "credentials.json", help="what `make up` wrote")
    parser.add_argument("--concurrency", type=int, default=8, help="requests under way at once")
    parser.add_argument("--users", type=int, default=400, help="different users who ask")
    parser.add_argument("--patience", type=float, default=300, help="seconds until this gives up")
    parser.add_argument("--override", action="store_true", help="try the version although it was rolled back before")
    return parser.parse_args(arguments)


class Management(httpx.Client):
    """The management API, as the adapter's owner calls it. Every method raises httpx.HTTPError."""

    def __init__(self, url: str, key: str) -> None:
        base = urljoin(url, f"/api/v1/adapters/{ADAPTER}/")
        super().__init__(base_url=base, headers={"Authorization": f"Bearer {key}"}, timeout=60)

    def upload(self, folder: Path) -> int:
        """The number of the new version, once it is ready."""
        files = [("files", (name, (folder / name).read_bytes())) for name in FILES]
        number = int(_json(self.post("versions", files=files))["number"])
        while (version := _json(self.get(f"versions/{number}")))["state"] in ("uploaded", "validating"):
            time.sleep(0.2)
        if version["state"] != "ready":
            raise ValueError(f"v{number} is {version['state']}: {version['findings']}")
        return number

    def start(self, number: int, override: bool) -> dict[str, Any]:
        return _json(self.post("rollouts", json={**PLAN, "version": number, "override": override}))

    def rollout(self, rollout: str) -> dict[str, Any]:
        return _json(self.get(f"rollouts/{rollout}"))


def _json(answer: httpx.Response) -> dict[str, Any]:
    if answer.is_error:
        raise ValueError(answer.json()["error"]["message"])
    return dict(answer.json())


async def run(
    api: AsyncOpenAI, management: Management, rollout: str, options: argparse.Namespace, console: Console
) -> Traffic:
    """Traffic until the rollout is over, or patience is."""
    traffic, questions = Traffic(), enumerate(tasks.samples(ADAPTER, "held-out", seed=1))
    customers = [asyncio.create_task(ask(api, traffic, questions, options.users)) for _ in range(options.concurrency)]
    began, last = time.monotonic(), ""
    while not traffic.over:
        await asyncio.sleep(1)
        shown = await asyncio.to_thread(management.rollout, rollout)
        now = f"{shown['state']}, {shown['weight']:g} % to v{shown['canary']}: {traffic}"
        if now != last:
            console.print(f"{time.monotonic() - began:5.0f} s  {now}")
        last = now
        traffic.over = shown["state"] in OVER or time.monotonic() - began > options.patience
    await asyncio.gather(*customers)
    return traffic


async def ask(api: AsyncOpenAI, traffic: Traffic, questions: Iterator[tuple[int, tasks.Sample]], users: int) -> None:
    """Customers, one after the other, each with a thumb for the answer."""
    for number, question in questions:
        if traffic.over:
            return
        try:
            raw = await api.chat.completions.with_raw_response.create(
                model=f"{TENANT}/{ADAPTER}",
                messages=[{"role": "user", "content": question.prompt}],
                max_tokens=96,
                temperature=0,
                user=f"customer-{number % users}",
            )
            answer = raw.parse()
            right = answer.choices[0].message.content == question.answer
            thumb = {"response_id": answer.id, "thumb": "up" if right else "down"}
            await api.post("/feedback", cast_to=object, body=thumb)
        except OpenAIError as error:
            traffic.failures.append(f"{type(error).__name__}: {error}")
            continue
        traffic.versions[raw.headers["x-adapter-version"]] += 1
        traffic.right[raw.headers["x-adapter-version"]] += right


def judge(rollout: dict[str, Any], traffic: Traffic, console: Console) -> int:
    console.print(f"\n{rollout['state']} ({rollout['cause'] or 'no cause'})", style="bold")
    for reason in rollout["reasons"]:
        console.print(f"  {reason}", markup=False)
    met = traffic.versions[f"v{rollout['canary']}"] / max(traffic.requests, 1)
    console.print(f"{traffic}; the canary met {met:.0%} of the traffic")
    for failure in traffic.failures[:5]:
        console.print(failure, style="red", markup=False)
    good = rollout["state"] == "rolled_back" and rollout["cause"] == "verdict" and not traffic.failures
    console.print("As it should be." if good else "Not as it should be.", style="green" if good else "red")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
