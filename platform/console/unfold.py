"""How the console looks: the setting UNFOLD. Imported by the settings, so it imports no models."""

from typing import Any

from django.http import HttpRequest
from django.templatetags.static import static
from django.urls import reverse_lazy


def _item(title: str, icon: str, model: str) -> dict[str, Any]:
    def visible(request: HttpRequest) -> bool:
        from console.site import site

        return site.shows(model, request)

    return {"title": title, "icon": icon, "link": reverse_lazy(f"admin:{model}_changelist"), "permission": visible}


def _stylesheet(_request: HttpRequest) -> str:
    return static("console/console.css")


def _favicon(_request: HttpRequest) -> str:
    return static("console/favicon.svg")


NAVIGATION = [
    {"items": [{"title": "Dashboard", "icon": "space_dashboard", "link": reverse_lazy("admin:index")}]},
    {
        "title": "Models",
        "separator": True,
        "items": [
            _item("Adapters", "tune", "registry_adapter"),
            _item("Versions", "inventory_2", "registry_version"),
            _item("Aliases", "sell", "registry_alias"),
            _item("Rollouts", "alt_route", "rollouts_rollout"),
            _item("Evaluation sets", "checklist", "evaluations_evaluationset"),
            _item("Evaluations", "grading", "evaluations_evaluation"),
            _item("Base models", "neurology", "registry_basemodel"),
        ],
    },
    {
        "title": "Access",
        "separator": True,
        "items": [
            _item("Tenants", "domain", "tenants_tenant"),
            _item("API keys", "key", "apikeys_apikey"),
            _item("Webhooks", "webhook", "webhooks_endpoint"),
            _item("Budgets", "savings", "metering_budget"),
            _item("People", "group", "auth_user"),
        ],
    },
    {
        "title": "Record",
        "separator": True,
        "items": [
            _item("Usage", "monitoring", "metering_dailyusage"),
            _item("Audit events", "receipt_long", "audit_event"),
        ],
    },
]

UNFOLD: dict[str, Any] = {
    "SITE_TITLE": "Lorayard",
    "SITE_HEADER": "Lorayard",
    "SITE_SUBHEADER": "Console",
    "SITE_URL": None,
    "SITE_SYMBOL": "hub",
    "SITE_FAVICONS": [{"rel": "icon", "type": "image/svg+xml", "href": _favicon}],
    "SHOW_HISTORY": True,
    "SHOW_VIEW_ON_SITE": False,
    "SHOW_BACK_BUTTON": False,
    "BORDER_RADIUS": "6px",
    "STYLES": [_stylesheet],
    "COLORS": {
        "primary": {
            "50": "oklch(97.7% .013 236.62)",
            "100": "oklch(95.1% .026 236.824)",
            "200": "oklch(90.1% .058 230.902)",
            "300": "oklch(82.8% .111 230.318)",
            "400": "oklch(74.6% .14 232.661)",
            "500": "oklch(66% .14 237.323)",
            "600": "oklch(53.5% .125 241.966)",
            "700": "oklch(48% .115 242.749)",
            "800": "oklch(42.5% .1 240.79)",
            "900": "oklch(37% .085 240.876)",
            "950": "oklch(28% .063 243.157)",
        },
    },
    "SIDEBAR": {"show_search": True, "command_search": True, "navigation": NAVIGATION},
}
