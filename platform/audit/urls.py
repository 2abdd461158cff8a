from django.urls import path

from audit import views

app_name = "audit"
urlpatterns = [
    path("audit", views.Events.as_view(), name="events"),
    path("audit/verify", views.Verify.as_view(), name="verify"),
    path("audit/export", views.Export.as_view(), name="export"),
    path("audit/checkpoints", views.Checkpoints.as_view(), name="checkpoints"),
    path("audit/key", views.Key.as_view(), name="key"),
]
