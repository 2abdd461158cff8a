from django.urls import path

from metering import views

app_name = "metering"
urlpatterns = [path("usage", views.Usage.as_view(), name="usage")]
