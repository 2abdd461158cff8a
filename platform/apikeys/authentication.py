"""Turns `Authorization: Bearer ly_…`, or what stands for it, into a key, with one refusal for every reason."""

from dataclasses import dataclass
from typing import Literal

from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request

from apikeys import services
from apikeys.credentials import token_of
from apikeys.models import ApiKey
from tenants.models import Tenant


@dataclass(frozen=True)
class KeyUser:
    """What `request.user` is when a key calls: nobody in particular, of a tenant (None: an operator)."""

    key: ApiKey
    is_authenticated: Literal[True] = True
    is_active: Literal[True] = True
    is_staff: Literal[False] = False
    is_anonymous: Literal[False] = False

    @property
    def tenant(self) -> Tenant | None:
        return self.key.tenant

    @property
    def pk(self) -> str:
        return str(self.key.pk)

    def __str__(self) -> str:
        return f"key:{self.pk}"


class KeyAuthentication(BaseAuthentication):
    """First in line: it defines `authenticate_header`, without which DRF turns every 401 into a 403."""

    def authenticate(self, request: Request) -> tuple[KeyUser, ApiKey] | None:
        token = token_of(request.headers)
        if token is None:
            return None
        key = services.verify(token)
        if key is None:
            raise AuthenticationFailed
        return KeyUser(key), key

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"
