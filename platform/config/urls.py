"""Every URL's first segment and who answers it."""

import importlib.util

from django.contrib import admin
from django.urls import URLPattern, URLResolver, include, path
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerView

from config import health


def _app(prefix: str, module: str) -> list[URLPattern | URLResolver]:
    package = module.partition(".")[0]
    if importlib.util.find_spec(package) and importlib.util.find_spec(module):
        return [path(prefix, include(module))]
    return []


urlpatterns: list[URLPattern | URLResolver] = [
    path("healthz", health.live, name="healthz"),
    path("readyz", health.ready, name="readyz"),
    path("metrics", health.metrics, name="metrics"),
    *_app("v1/", "gateway.urls"),
    *_app("api/v1/", "tenants.urls"),
    *_app("api/v1/", "apikeys.urls"),
    *_app("api/v1/", "registry.urls"),
    *_app("api/v1/", "audit.urls"),
    path("api/schema", SpectacularAPIView.as_view(), name="schema"),
    path("api/docs", SpectacularSwaggerView.as_view(url_name="schema"), name="docs"),
    *_app("", "console.urls"),
    path("", admin.site.urls),
]
