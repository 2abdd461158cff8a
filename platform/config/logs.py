"""Logging: one line per event, JSON unless a person is watching. Redacts secrets and never lets a prompt through."""

import logging
import re
from collections.abc import Mapping, MutableMapping
from typing import Any

import structlog

REDACTED = "[redacted]"
SECRET_NAMES = re.compile(r"authorization|cookie|password|passwd|secret|api_?key|token$|pepper|plaintext", re.I)
CONTENT_NAMES = frozenset({"prompt", "prompts", "messages", "input", "instructions", "completion", "content"})
KEY_IN_TEXT = re.compile(r"\bly_[A-Za-z0-9]+_[A-Za-z0-9_-]{8,}|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)|(?i:(?<=bearer )\S+)")

Event = MutableMapping[str, Any]


def is_no_probe(record: logging.LogRecord) -> bool:
    """Not the line that Django writes about each 503 of /readyz: whoever asks is told, and asks every second."""
    return getattr(record, "status_code", 0) != 503


def redact(_logger: Any, _method: str, event: Event) -> Event:
    """Replaces values whose name or text gives away a key, a password or a prompt, at any depth."""
    return {name: _clean(name, value) for name, value in event.items()}


def _clean(name: str, value: Any) -> Any:
    if SECRET_NAMES.search(name) or name in CONTENT_NAMES:
        return REDACTED
    if isinstance(value, str):
        return KEY_IN_TEXT.sub(REDACTED, value)
    if isinstance(value, Mapping):
        return {str(key): _clean(str(key), item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(name, item) for item in value]
    return value


SHARED: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


def configure(*, human: bool) -> dict[str, Any]:
    """Sets structlog up, and returns Django's LOGGING: the standard library's loggers take the same way out."""
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *SHARED,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    last: Any = structlog.dev.ConsoleRenderer(colors=False) if human else structlog.processors.JSONRenderer()
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "line": {
                "()": structlog.stdlib.ProcessorFormatter,
                "foreign_pre_chain": SHARED,
                "processors": [
                    structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                    structlog.processors.format_exc_info,
                    redact,
                    last,
                ],
            }
        },
        "filters": {"no_probes": {"()": lambda: is_no_probe}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "root": {"handlers": ["stderr"], "level": "INFO"},
        "loggers": {
            "django": {"level": "INFO"},
            "django.request": {"filters": ["no_probes"]},
            "django.db.backends": {"level": "WARNING"},
            "uvicorn": {"handlers": [], "propagate": True},
            "uvicorn.access": {"handlers": [], "propagate": False, "level": "WARNING"},
            "httpx": {"level": "WARNING"},
            "celery.beat": {"level": "WARNING"},  # what is sent, received and done every second or two
            "celery.worker.strategy": {"level": "WARNING"},
            "celery.app.trace": {"level": "WARNING"},
        },
    }
