"""Answers what no API serves, in the shape of every API's errors. The console's pages have Django's own."""

from django.http import HttpRequest, JsonResponse
from django.views.decorators.csrf import csrf_exempt

from tenants.errors import NotFound


@csrf_exempt
def nowhere(request: HttpRequest) -> JsonResponse:
    return JsonResponse(NotFound("There is nothing at this address.").body, status=NotFound.status)
