from django.urls import path

from merges import views

app_name = "merges"
urlpatterns = [
    path("merges", views.Merges.as_view(), name="merges"),
    path("merges/<uuid:merge>", views.OneMerge.as_view(), name="merge"),
    path("merges/<uuid:merge>/cancel", views.Cancel.as_view(), name="cancel"),
    path("merges/<uuid:merge>/files/<str:filename>", views.OneFile.as_view(), name="file"),
]
