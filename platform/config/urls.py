"""Every URL's first segment and who answers it."""

from django.urls import URLPattern, URLResolver, include, path, re_path
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerView

from config import health
from config.inspection import inspected
from config.nowhere import nowhere
from gateway.errors import ENDPOINTS

handler400 = "config.failures.bad_request"
handler403 = "config.failures.permission_denied"
handler404 = "config.failures.page_not_found"
handler500 = "config.failures.server_error"

urlpatterns: list[URLPattern | URLResolver] = [
    path("healthz", health.live, name="healthz"),
    path("readyz", health.ready, name="readyz"),
    path("health", health.serving, name="health"),  # as inference servers name it
    path("metrics", inspected(health.metrics), name="metrics"),
    path("v1/", include("registry.upload_urls")),
    path("v1/", include("gateway.urls")),
    path("api/v1/", include("tenants.urls")),
    path("api/v1/", include("apikeys.urls")),
    path("api/v1/", include("metering.urls")),
    path("api/v1/", include("registry.urls")),
    path("api/v1/", include("evaluations.urls")),
    path("api/v1/", include("merges.urls")),
    path("api/v1/", include("webhooks.urls")),
    path("api/v1/", include("rollouts.urls")),
    path("api/v1/", include("audit.urls")),
    re_path(r"^(?:api/)?v1(?:/|$)", nowhere),
    re_path(rf"^(?:.*/)?(?:{'|'.join(ENDPOINTS[:3])})/?$", nowhere),  # a base URL without /v1, or with more
    re_path(rf"^(?:{'|'.join(ENDPOINTS[3:])})(?:/|$)", nowhere),
    path("api/schema", SpectacularAPIView.as_view(), name="schema"),
    path("api/docs", SpectacularSwaggerView.as_view(url_name="schema"), name="docs"),
    path("", include("console.urls")),
]
