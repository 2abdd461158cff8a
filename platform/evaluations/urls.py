from django.urls import path

from evaluations import views

app_name = "evaluations"
urlpatterns = [
    path("evaluation-sets", views.Sets.as_view(), name="sets"),
    path("evaluation-sets/<str:evaluation_set>", views.OneSet.as_view(), name="set"),
    path("evaluations", views.Evaluations.as_view(), name="evaluations"),
    path("evaluations/comparison", views.Comparison.as_view(), name="comparison"),
    path("evaluations/<uuid:evaluation>", views.OneEvaluation.as_view(), name="evaluation"),
    path("evaluations/<uuid:evaluation>/cancel", views.Cancel.as_view(), name="cancel"),
    path("evaluations/<uuid:evaluation>/results", views.Results.as_view(), name="results"),
]
