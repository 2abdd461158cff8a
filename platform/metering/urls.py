from django.urls import path

from metering import views

app_name = "metering"
urlpatterns = [
    path("usage", views.Usage.as_view(), name="usage"),
    path("budgets", views.Budgets.as_view(), name="budgets"),
    path("budgets/<uuid:budget>", views.OneBudget.as_view(), name="budget"),
]
