from django.urls import path

from rollouts import views

app_name = "rollouts"
ONE = "adapters/<str:name>/rollouts/<uuid:rollout>"
urlpatterns = [
    path("adapters/<str:name>/rollouts", views.Rollouts.as_view(), name="rollouts"),
    path(ONE, views.OneRollout.as_view(), name="rollout"),
    path(f"{ONE}/verdicts", views.Verdicts.as_view(), name="verdicts"),
    path(f"{ONE}/start", views.Start.as_view(), name="start"),
    path(f"{ONE}/pause", views.Pause.as_view(), name="pause"),
    path(f"{ONE}/resume", views.Resume.as_view(), name="resume"),
    path(f"{ONE}/approve", views.Approve.as_view(), name="approve"),
    path(f"{ONE}/promote", views.Promote.as_view(), name="promote"),
    path(f"{ONE}/abort", views.Abort.as_view(), name="abort"),
]
