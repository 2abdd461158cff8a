"""The console's pages, a module for each kind of row: its verbs with their forms, then its list and page."""

from console.pages import (
    adapters,
    aliases,
    base_models,
    budgets,
    evaluations,
    events,
    keys,
    people,
    rollouts,
    tenants,
    usage,
    versions,
    webhooks,
)

__all__ = [
    "adapters",
    "aliases",
    "base_models",
    "budgets",
    "evaluations",
    "events",
    "keys",
    "people",
    "rollouts",
    "tenants",
    "usage",
    "versions",
    "webhooks",
]
