"""Which processes make a platform on one machine, by what the environment says. Starts none of them."""

import os
import sys
from dataclasses import dataclass

from config.env import ROOT, Env
from config.processes import Command
from config.services import Postgres, Redis, Service
from config.signs import Sign, answers_http, runs, speaks_http2

DATABASE_CONNECTIONS = 16  # that the web process holds at most
SERVICES = ("redis", "postgres")
HANGS = 30.0  # seconds without a sign of life
RUNS = Sign(runs, HANGS)
STOP_ORDER = (
    ("seed", "web", "worker", "rollouts", "background", "merges", "webhooks", "periodic", "beat"),
    ("engine",),
    SERVICES,
)


@dataclass(frozen=True)
class Stack:
    """The embedded services and the platform's own processes."""

    env: Env

    @property
    def postgres(self) -> Postgres | None:
        return Postgres(self.env.home / "postgres", self.env.run / "postgres") if self.env.own_database else None

    @property
    def redis(self) -> Redis | None:
        return Redis(self.env.home / "redis", self.env.run / "redis.sock") if self.env.own_redis else None

    @property
    def services(self) -> tuple[Service, ...]:
        return tuple(service for service in (self.postgres, self.redis) if service is not None)

    @property
    def processes(self) -> tuple[Command, ...]:
        """The slowest to start first."""
        engine = (self.engine,) if self.env.own_engine else ()
        workers = (self.worker, self.rollouts, self.background, self.merges, self.webhooks, self.periodic)
        return (*engine, self.web, *workers, self.beat)

    @property
    def engine(self) -> Command:
        env = self.env
        options = {
            "model": env.base_model,
            "listen": env.engine_url,
            "store": env.store_url,
            "cache": str(env.home / "cache"),
            "device": env.device,
            "dtype": env.dtype,
        }
        argv = [text for name, value in options.items() for text in (f"--{name}", value)]
        sign = Sign(speaks_http2(env.engine_url), HANGS)
        return self._python("engine", "-m", "inference.server", *argv, sign=sign, OMP_WAIT_POLICY="passive")

    @property
    def web(self) -> Command:
        return self._python(
            "web",
            *("-m", "config.web", "--port", str(self.env.port)),
            OMP_NUM_THREADS="1",
            LORAYARD_DATABASE_ROLE=self.env.web_role,
            LORAYARD_DATABASE_POOL=str(self.env.database_pool or DATABASE_CONNECTIONS),
            sign=Sign(answers_http(f"http://127.0.0.1:{self.env.port}/healthz"), HANGS),
        )

    @property
    def worker(self) -> Command:
        """Two tasks at a time, so that what is short need not wait for a validation of minutes."""
        return self._worker("worker", "celery", concurrency=2)

    @property
    def rollouts(self) -> Command:
        """Ticks alone, in one process, so that no tenant's uploads keep anybody's rollout from being looked at."""
        return self._worker("rollouts", "rollouts", "--pool", "solo")

    @property
    def background(self) -> Command:
        """Works through evaluations, which take minutes, so that nothing short ever waits for them."""
        return self._worker("background", "background")

    @property
    def merges(self) -> Command:
        """Works through merges, which may take an hour, so that no evaluation waits for them."""
        return self._worker("merges", "merges")

    @property
    def webhooks(self) -> Command:
        """Delivers webhooks, a few at a time, so that nothing of ours ever waits for somebody else's server."""
        return self._worker("webhooks", "webhooks", "--pool", "threads", concurrency=8)

    @property
    def periodic(self) -> Command:
        """Sweeps, and seals and verifies the audit log, so that neither waits for any tenant's work."""
        return self._worker("periodic", "periodic,audit", "--pool", "threads", concurrency=4)

    @property
    def beat(self) -> Command:
        return self._python("beat", "-m", "celery", "-A", "config", "beat", "--loglevel", "INFO", "--pidfile=")

    @property
    def seed(self) -> Command:
        return self._python("seed", str(ROOT / "manage.py"), "seed", OMP_NUM_THREADS="1")

    def _worker(self, name: str, queue: str, *more: str, concurrency: int = 1) -> Command:
        command = ("-m", "celery", "-A", "config", "worker", "--queues", queue, "--hostname", f"{name}@%h")
        options = (
            *more,
            "--concurrency",
            str(concurrency),
            "--without-gossip",
            "--without-mingle",
            "--without-heartbeat",
        )
        return self._python(name, *command, "--loglevel", "INFO", *options, OMP_NUM_THREADS="1")

    def _python(self, name: str, *arguments: str, sign: Sign = RUNS, **environment: str) -> Command:
        env = self.env
        told = {
            # As this process understood them, so that a child started elsewhere cannot understand them otherwise.
            "LORAYARD_HOME": str(env.home),
            "LORAYARD_BASE_MODEL": env.base_model,
            "LORAYARD_ENGINE_SECRET": env.engine_secret,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "platform")]),
            "PYTHONUNBUFFERED": "1",
            "DJANGO_SETTINGS_MODULE": "config.settings",
            "TOKENIZERS_PARALLELISM": "false",
        }
        return Command(name, (sys.executable, *arguments), {**told, **environment}, cwd=ROOT, sign=sign)
