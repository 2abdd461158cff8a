"""What lies under /v1/. The names are the routes that metrics and logs speak of."""

from django.urls import path

from gateway.catalogue import list_models, retrieve_model
from gateway.chat import chat_completions
from gateway.completions import completions
from gateway.feedback import feedback
from gateway.responses import responses

urlpatterns = [
    path("models", list_models, name="models"),
    path("models/<path:model>", retrieve_model, name="model"),
    path("chat/completions", chat_completions, name="chat.completions"),
    path("completions", completions, name="completions"),
    path("responses", responses, name="responses"),
    path("feedback", feedback, name="feedback"),
]
