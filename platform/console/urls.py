"""The console answers at the root; what it doesn't know stays a 404."""

from django.urls import path

from console.site import site

urlpatterns = [path("", site.urls)]
