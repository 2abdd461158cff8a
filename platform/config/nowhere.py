"""Answers what no API serves, in the shape of every API's errors. The console's pages have Django's own."""

from django.http import HttpRequest, JsonResponse
from django.views.decorators.csrf import csrf_exempt

from gateway.errors import unknown_address
from tenants.errors import NotFound


@csrf_exempt
def nowhere(request: HttpRequest) -> JsonResponse:
    return JsonResponse(NotFound(unknown_address(request.path_info)).body, status=NotFound.status)
