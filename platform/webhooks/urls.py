from django.urls import path

from webhooks import views

app_name = "webhooks"
urlpatterns = [
    path("webhooks", views.Endpoints.as_view(), name="endpoints"),
    path("webhooks/<uuid:pk>", views.OneEndpoint.as_view(), name="endpoint"),
    path("webhooks/<uuid:pk>/rotate", views.Rotate.as_view(), name="rotate"),
    path("webhooks/<uuid:pk>/ping", views.Ping.as_view(), name="ping"),
    path("webhooks/<uuid:pk>/deliveries", views.Deliveries.as_view(), name="deliveries"),
]
