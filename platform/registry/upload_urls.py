"""What of OpenAI's API takes files in. It lies under /v1/, beside the gateway's, and is served by Django."""

from django.urls import path

from registry import upload_views as views

app_name = "uploads"
urlpatterns = [
    path("uploads", views.Uploads.as_view(), name="uploads"),
    path("uploads/<str:upload>", views.OneUpload.as_view(), name="upload"),
    path("uploads/<str:upload>/parts", views.Parts.as_view(), name="parts"),
    path("uploads/<str:upload>/complete", views.Complete.as_view(), name="complete"),
    path("uploads/<str:upload>/cancel", views.Cancel.as_view(), name="cancel"),
    path("files", views.Files.as_view(), name="files"),
    path("files/<str:file>", views.OneFile.as_view(), name="file"),
    path("files/<str:file>/content", views.Content.as_view(), name="content"),
]
