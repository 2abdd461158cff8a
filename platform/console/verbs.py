"""A verb is one change a person makes: a form, who may send it, and the one service call that carries it out.

Nothing is decided here. What a service refuses becomes an error on the form.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Protocol
from uuid import uuid4

from django import forms
from django.contrib import messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import transaction
from django.db.models import Model
from django.http import HttpRequest, HttpResponse, HttpResponseBase, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.views.generic import FormView

from audit.services import Actor
from console.access import Access, access_of, actor_of
from tenants.errors import PlatformError
from tenants.models import Role

SENT = "console_forms_sent"
REMEMBERED = 20

if TYPE_CHECKING:
    VerbView = FormView["VerbForm"]
else:
    VerbView = FormView


class VerbForm(forms.Form):
    """Knows the person's rights and the row, so that it offers no more than they may choose."""

    def __init__(self, *args: Any, access: Access, target: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.access = access
        self.target = target
        self.prepare()

    def prepare(self) -> None:
        """Narrow the fields to this person and row."""


class Page(Protocol):
    """What a verb asks of the page that it belongs to."""

    admin_site: Any

    def get_object(self, request: HttpRequest, object_id: str) -> Any: ...

    def missing(self, request: HttpRequest, object_id: str) -> HttpResponseBase: ...

    def tenant_of(self, obj: Any) -> Any: ...

    def url_of(self, row: Model) -> str: ...

    def url_of_list(self) -> str: ...


class Verb(VerbView):
    """`target` is the row that the verb is about; None for a verb that makes one.

    `role` is what a member needs in the row's tenant; None: operators alone. `applies` says whether it makes sense for
    the row as it is.
    """

    slug: ClassVar[str]
    title: ClassVar[str]
    submit: ClassVar[str]
    icon: ClassVar[str] = ""
    explains: ClassVar[str] = ""
    role: ClassVar[Role | None] = None
    danger: ClassVar[bool] = False
    form_class = VerbForm
    template_name = "console/verb.html"

    admin: "Page" = None  # type: ignore[assignment]  # `as_view` sets it
    target: Any = None

    @classmethod
    def entry(cls, admin: "Page") -> Callable[..., HttpResponseBase]:
        """The view that a URL leads to."""
        view: Callable[..., HttpResponseBase] = admin.admin_site.admin_view(cls.as_view(admin=admin))
        return view

    @classmethod
    def applies(cls, target: Any) -> bool:
        return True

    def perform(self, form: VerbForm, actor: Actor) -> Model | HttpResponse:
        """Call the service. Returns the row to go to, or the answer itself."""
        raise NotImplementedError

    def done(self, row: Model) -> str:
        """What is said of the row afterwards."""
        return f"{self.title}: {row}"

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        object_id = kwargs.get("object_id")
        access = access_of(request)
        request.current_app = self.admin.admin_site.name
        if object_id is None:
            allowed = access.may_somewhere(self.role)
        else:
            self.target = self.admin.get_object(request, object_id)
            if self.target is None:
                return self.admin.missing(request, object_id)
            allowed = access.may(self.role, self.admin.tenant_of(self.target))
        if not allowed:
            raise PermissionDenied
        if self.target is not None and not self.applies(self.target):
            messages.error(request, f"“{self.title}” doesn't apply to {self.target} as it is now.")
            return HttpResponseRedirect(self.admin.url_of(self.target))
        return super().dispatch(request, *args, **kwargs)

    def get_form_kwargs(self) -> dict[str, Any]:
        return {**super().get_form_kwargs(), "access": access_of(self.request), "target": self.target}

    def form_valid(self, form: VerbForm) -> HttpResponse:
        try:
            outcome = self.perform(form, actor_of(self.request))
        except PlatformError as error:
            form.add_error(_place(form, error.param), str(error))
        except ValidationError as error:
            _add(form, error)
        else:
            return outcome if isinstance(outcome, HttpResponse) else self._show(outcome)
        return self.form_invalid(form)

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        site = self.admin.admin_site.each_context(self.request)
        return super().get_context_data(
            **{
                **site,
                "title": self.title,
                "verb": self,
                "model_admin": self.admin,
                "object": self.target,
                "back": self.admin.url_of(self.target) if self.target else self.admin.url_of_list(),
                **kwargs,
            }
        )

    def _show(self, row: Model) -> HttpResponse:
        messages.success(self.request, self.done(row))
        return HttpResponseRedirect(self.admin.url_of(row))


class SecretVerb(Verb):
    """One that ends with a secret, on the page that answers the form and nowhere else. `what` it is to people.

    That page can be reloaded, which sends the form again: a form carries a number of its own, and is carried out once.
    """

    what: ClassVar[str]

    def get_form(self, form_class: Any = None) -> VerbForm:
        form = super().get_form(form_class)
        form.fields["once"] = forms.UUIDField(required=False, initial=uuid4, widget=forms.HiddenInput)
        return form

    def form_valid(self, form: VerbForm) -> HttpResponse:
        once = form.cleaned_data["once"]
        if once is None:
            return super().form_valid(form)
        with transaction.atomic():
            if str(once) in _sent(self.request):
                messages.warning(self.request, f"This form was sent before, and the {self.what} was shown then.")
                return HttpResponseRedirect(self.admin.url_of_list())
            answer = super().form_valid(form)
            if form.is_valid():
                self.request.session[SENT] = [*_sent(self.request), str(once)][-REMEMBERED:]
                self.request.session.save()
        return answer

    def secret_page(self, row: Model, plaintext: str, about: str) -> HttpResponse:
        told = {
            "title": f"The new {self.what}",
            "warning": f"This is the only time that the {self.what} is shown. Copy it now and keep it in a safe place.",
            "back": self.admin.url_of(row),
        }
        context = self.get_context_data(object=row, plaintext=plaintext, about=about, **told)
        return TemplateResponse(self.request, "console/secret.html", context)


def _sent(request: HttpRequest) -> list[str]:
    """The forms that this session has sent already, read while the session's row is locked until the commit."""
    session: Any = request.session
    list(session.model.objects.select_for_update().filter(pk=session.session_key))
    sent: list[str] = type(session)(session.session_key).get(SENT, [])
    return sent


def _add(form: VerbForm, error: ValidationError) -> None:
    """A service's own validation, at the fields it is about, else on top."""
    if not hasattr(error, "error_dict"):
        form.add_error(None, error)
        return
    for name, errors in error.error_dict.items():
        form.add_error(_place(form, name), errors)


def _place(form: VerbForm, name: str | None) -> str | None:
    """The field to tell at, if the person can see it."""
    return name if name in form.fields and not form.fields[name].widget.is_hidden else None
