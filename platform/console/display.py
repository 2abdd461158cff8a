"""Small pieces of HTML that several pages show. Everything passes through templates or `format_html`."""

from collections.abc import Iterable
from typing import Any

from django.db.models import Model
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from apikeys.models import ApiKey
from registry.models import State

STATE_COLOURS = {
    State.UPLOADED: "info",
    State.VALIDATING: "info",
    State.READY: "success",
    State.REJECTED: "danger",
    State.ARCHIVED: "default",
    State.DELETED: "default",
}
UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def badge(text: str, colour: str = "default") -> SafeString:
    """`colour` is one of unfold's: success, info, warning, danger, primary, default."""
    return render_to_string("unfold/helpers/label.html", {"text": text, "variant": colour, "class": "ly-as-written"})


def badges(texts: Iterable[str], colour: str = "default") -> SafeString:
    return render_to_string("console/badges.html", {"texts": list(texts), "colour": colour})


def state(value: str) -> SafeString:
    return badge(State(value).value, STATE_COLOURS[State(value)])


def key_status(key: ApiKey) -> SafeString:
    if key.revoked_at is not None:
        return badge("revoked", "danger")
    if key.is_live:
        return badge("live", "success")
    return badge("tenant inactive" if key.tenant and not key.tenant.active else "expired", "warning")


def action(value: str) -> SafeString:
    """An audit event's action, in the colour of what it means for what is served."""
    match value.rpartition(":")[2]:
        case "ready" | "created" | "issued":
            colour = "success"
        case "rejected" | "revoked" | "deleted":
            colour = "danger"
        case "changed" | "moved" | "rotated" | "archived":
            colour = "warning"
        case _:
            colour = "default"
    return badge(value, colour)


def code(text: str) -> SafeString:
    return format_html('<code class="ly-code">{}</code>', text) if text else SafeString("-")


def line(text: str) -> SafeString:
    return format_html('<code class="ly-code ly-when">{}</code>', text)


def short_digest(digest: str) -> SafeString:
    """Enough of it to tell versions apart in a list; the whole as a tooltip."""
    short = digest.removeprefix("sha256:")[:12]
    return format_html('<code class="ly-code" title="{}">{}</code>', digest, short) if digest else SafeString("-")


def size(count: int) -> str:
    amount, unit = float(count), 0
    while amount >= 1024 and unit < len(UNITS) - 1:
        amount, unit = amount / 1024, unit + 1
    return f"{count} bytes" if unit == 0 else f"{amount:.1f} {UNITS[unit]}"


def bar(value: int, most: int, text: str) -> SafeString:
    """`value` of `most`, as a bar and in words; in another colour from 80 percent on."""
    facts = {"value": value, "most": most, "high": most * 8 // 10, "text": text}
    return render_to_string("console/bar.html", facts)


def pairs(value: Any) -> SafeString:
    """Keys and values as a list, one below the other."""
    lines = [(str(name).replace("_", " "), _plain(item)) for name, item in value.items()]
    return render_to_string("console/pairs.html", {"pairs": lines}) if lines else SafeString("-")


def link(row: Model, text: str) -> SafeString:
    """To the row's own page."""
    url = reverse(f"admin:{row._meta.app_label}_{row._meta.model_name}_change", args=[row.pk])
    return format_html('<a class="text-link" href="{}">{}</a>', url, text)


def rank(summary: dict[str, Any]) -> str:
    """The ranks that a version's summary tells, if it has one."""
    low, high = summary.get("rank_min"), summary.get("rank_max")
    return "-" if low is None else str(low) if low == high else f"{low} to {high}"


def _plain(value: Any) -> str:
    """A JSON value as people write it."""
    if value is None or value in ("", [], {}):
        return "-"
    match value:
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case list():
            return ", ".join(_plain(item) for item in value)
        case dict():
            return "; ".join(f"{name}: {_plain(item)}" for name, item in value.items())
    return str(value)
