from django.urls import path

from apikeys import views

app_name = "apikeys"
urlpatterns = [
    path("keys", views.Keys.as_view(), name="keys"),
    path("keys/<uuid:pk>", views.OneKey.as_view(), name="key"),
    path("keys/<uuid:pk>/revoke", views.Revoke.as_view(), name="revoke"),
    path("keys/<uuid:pk>/rotate", views.Rotate.as_view(), name="rotate"),
]
