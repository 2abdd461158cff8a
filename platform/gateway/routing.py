"""Which WebSockets there are."""

from django.urls import path

from gateway.websocket import ResponsesConsumer

websocket_urlpatterns = [path("v1/responses", ResponsesConsumer.as_asgi())]
