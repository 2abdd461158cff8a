"""Versions: uploaded through a form, judged by a worker, never edited."""

import base64
import re
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponseBase, HttpResponseRedirect
from django.template.loader import render_to_string
from django.utils.html import format_html_join
from django.utils.safestring import SafeString
from django.views.decorators.csrf import csrf_exempt

from adapters.signatures import SIGNATURE_BYTES
from audit.services import Actor
from console import display as show
from console import fields, filters
from console.base import ConsoleAdmin
from console.pages.residency import Evict, Pin, Preload, Unpin, place
from console.site import site
from console.verbs import Verb, VerbForm
from registry import services
from registry.errors import UploadTooLarge
from registry.models import STABLE, Adapter, State, Version
from registry.quarantine import Incoming
from registry.services.versions import NOTES
from tenants.models import Role

PINNED = re.compile(r"[0-9]{1,9}")
SUMMARY = [
    *("rank_min", "rank_max", "targets", "modules", "tensors", "parameters"),
    *("bytes", "dtype", "rslora", "base_model"),
]
FILES_HELP = (
    "The two files that PEFT's save_pretrained writes, adapter_config.json and adapter_model.safetensors, "
    "or one .zip or .tar.gz of them."
)


SIGNATURE_HELP = "What `python -m adapters.signatures key.pem folder` prints, if the version is to be signed."
LONGEST_SIGNATURE = 1024  # bytes of the file


class Upload(VerbForm):
    adapter = fields.row(Version._meta.get_field("adapter"))
    files = fields.files(help_text=FILES_HELP)  # type: ignore[assignment]  # the form's own name for it is another thing

    signature = fields.file(required=False, help_text=SIGNATURE_HELP)

    def clean_signature(self) -> str:
        """In base64, whether the file holds that or the bytes; `python -m adapters.signatures` says it last."""
        given = self.cleaned_data["signature"]
        if not given:
            return ""
        if given.size > LONGEST_SIGNATURE:
            raise forms.ValidationError("That is too large to be a signature.")
        raw: bytes = given.read()
        if len(raw) == SIGNATURE_BYTES:
            return base64.b64encode(raw).decode()
        return (raw.decode("ascii", errors="replace").split() or ["?"])[-1]

    def prepare(self) -> None:
        mine = Adapter.objects.filter(tenant__in=self.access.tenants_as(Role.EDITOR))
        self.fields["adapter"].queryset = mine.select_related("tenant")  # type: ignore[attr-defined]


class UploadVersion(Verb):
    slug, title, submit = "upload", "Upload a version", "Upload"
    explains = "A worker looks at the files next; until it finds them fit, nothing is served from them."
    role = Role.EDITOR
    form_class = Upload

    @classmethod
    def entry(cls, admin: Any) -> Any:
        """Files are read into the quarantine, so they are read only once it is known that a person of ours sends them.

        The check for forgery reads the form; it stands inside, on the view that `admin_view` guards.
        """
        guarded = super().entry(admin)

        @csrf_exempt
        def view(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            incoming = Incoming(request)
            if request.method == "POST" and admin.has_add_permission(request):
                request.upload_handlers = [incoming]
            try:
                return guarded(request, *args, **kwargs)
            except UploadTooLarge as error:
                messages.error(request, str(error))
                return HttpResponseRedirect(request.get_full_path())
            finally:
                incoming.end()

        return view

    def get_initial(self) -> dict[str, Any]:
        return {"adapter": self.request.GET["adapter"]} if "adapter" in self.request.GET else {}

    def perform(self, form: VerbForm, actor: Actor) -> Model:
        wanted = form.cleaned_data
        return services.upload_version(wanted["adapter"], wanted["files"], signature=wanted["signature"], actor=actor)

    def done(self, row: Model) -> str:
        return f"{row} is uploaded and waits for validation."


class Expected(VerbForm):
    """Carries where the alias pointed when the person looked, so that nobody undoes what they have not seen."""

    expected = forms.IntegerField(required=False, widget=forms.HiddenInput)

    def prepare(self) -> None:
        stable = self.target.adapter.aliases.filter(name=STABLE).select_related("version").first()
        self.initial = {"expected": stable.version.number if stable else None}


class MakeStable(Verb):
    slug, title, submit, icon = "make-stable", "Make stable", "Make this version stable", "verified"
    explains = "Requests for the adapter's bare name are served by this version from now on."
    role = Role.EDITOR
    form_class = Expected

    @classmethod
    def applies(cls, target: Any) -> bool:
        return target.state == State.READY and not any(alias.name == STABLE for alias in target.aliases.all())

    def perform(self, form: VerbForm, actor: Actor) -> Model:
        expected, number = form.cleaned_data["expected"], self.target.number
        services.move_alias(self.target.adapter, STABLE, number, expected=expected, actor=actor)
        return self.target  # type: ignore[no-any-return]

    def done(self, row: Model) -> str:
        return f"{row} is stable."


class ArchiveVersion(Verb):
    slug, title, submit, icon = "archive", "Archive", "Archive this version", "archive"
    explains = "The version is taken out of service for good, also for those who ask for it by number or digest."
    role = Role.EDITOR
    danger = True

    @classmethod
    def applies(cls, target: Any) -> bool:
        return target.state == State.READY and not target.aliases.all()

    def perform(self, form: VerbForm, actor: Actor) -> Model:
        return services.archive_version(self.target, actor=actor)

    def done(self, row: Model) -> str:
        return f"{row} is archived."


class DeleteVersion(Verb):
    slug, title, submit, icon = "remove", "Delete", "Delete this version", "delete"
    explains = "The version is taken out of service, off the engine and out of the store. There is no way back."
    role = Role.OWNER
    danger = True

    @classmethod
    def applies(cls, target: Any) -> bool:
        return target.state in (State.READY, State.ARCHIVED, State.REJECTED) and not target.aliases.all()

    def perform(self, form: VerbForm, actor: Actor) -> Model:
        services.delete_version(self.target, actor=actor)
        return self.target.adapter  # type: ignore[no-any-return]

    def done(self, row: Model) -> str:
        return f"{self.target} is deleted."


class Notes(VerbForm):
    notes = fields.paragraph(max_length=NOTES, required=False)

    def prepare(self) -> None:
        self.initial = {"notes": self.target.notes}


class Annotate(Verb):
    slug, title, submit, icon = "annotate", "Edit notes", "Save", "edit_note"
    explains = "What its makers say of the version. What it is never changes."
    role = Role.EDITOR
    form_class = Notes

    @classmethod
    def applies(cls, target: Any) -> bool:
        return bool(target.state != State.DELETED)

    def perform(self, form: VerbForm, actor: Actor) -> Model:
        return services.annotate_version(self.target, actor=actor, notes=form.cleaned_data["notes"])

    def done(self, row: Model) -> str:
        return f"The notes of {row} are saved."


def _twins(version: Version) -> list[Version]:
    """The tenant's other versions of the same digest, the oldest first."""
    same = Version.objects.filter(digest=version.digest, adapter__tenant=version.adapter.tenant_id)
    return list(same.exclude(digest="").exclude(pk=version.pk).select_related("adapter__tenant").order_by("created_at"))


@admin.register(Version, site=site)
class VersionAdmin(ConsoleAdmin):
    tenant_path = "adapter__tenant_id"
    adds = UploadVersion
    verbs = (MakeStable, Annotate, Preload, Evict, Pin, Unpin, ArchiveVersion, DeleteVersion)
    icon = "inventory_2"
    actor_field = "uploader"
    list_display = ("name", "state_", "aliases_", "digest_", "rank", "size_", "by", "created_at")
    list_select_related = ("adapter__tenant",)
    list_filter = (("state", filters.Choices), ("adapter__tenant", filters.Row), ("adapter", filters.Row))
    search_fields = ("adapter__name", "adapter__tenant__slug", "digest")
    ordering = ("-created_at",)
    fields = (
        *(
            "adapter",
            "number",
            "state_",
            "aliases_",
            "findings_",
            "digest_whole",
            "same_files",
            "signed_by",
            "summary_",
        ),
        *("notes", "metrics_", "place_"),
        *("size_", "by", "created_at", "changed_at"),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).select_related("adapter__tenant").prefetch_related("aliases")

    def get_search_results(self, request: HttpRequest, queryset: Any, search_term: str) -> Any:
        name, _, number = search_term.partition("@v")
        if PINNED.fullmatch(number):
            return super().get_search_results(request, queryset.filter(number=int(number)), name)
        return super().get_search_results(request, queryset, search_term.removeprefix("sha256:"))

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """What a version in this state has to say."""
        absent = {
            "findings_": obj is None or not obj.findings,
            "digest_whole": obj is None or not obj.digest,
            "same_files": obj is None or not _twins(obj),
            "signed_by": obj is None or obj.signed_by_id is None,
            "summary_": obj is None or not obj.summary,
            "notes": obj is None or not obj.notes,
            "metrics_": obj is None or not obj.metrics,
            "place_": obj is None or obj.state != State.READY,
        }
        return [name for name in self.fields or () if not absent.get(str(name))]

    @admin.display(description="Version", ordering="adapter__name")
    def name(self, version: Version) -> str:
        return str(version)

    @admin.display(description="State", ordering="state")
    def state_(self, version: Version) -> SafeString:
        return show.state(version.state)

    @admin.display(description="Aliases")
    def aliases_(self, version: Version) -> SafeString:
        return show.badges([alias.name for alias in version.aliases.all()], "primary")

    @admin.display(description="Digest")
    def digest_(self, version: Version) -> SafeString:
        return show.short_digest(version.digest)

    @admin.display(description="Digest")
    def digest_whole(self, version: Version) -> SafeString:
        return show.code(version.digest)

    @admin.display(description="Same files as")
    def same_files(self, version: Version) -> SafeString:
        """An upload of bytes that the tenant has already is a version of its own, and serves what the other serves."""
        return format_html_join(", ", "{}", ((show.link(twin, str(twin)),) for twin in _twins(version)))

    @admin.display(description="Rank")
    def rank(self, version: Version) -> str:
        return show.rank(version.summary)

    @admin.display(description="Size", ordering="size")
    def size_(self, version: Version) -> str:
        return show.size(version.size)

    @admin.display(description="Findings")
    def findings_(self, version: Version) -> SafeString:
        return render_to_string("console/findings.html", {"findings": version.findings})

    @admin.display(description="Summary")
    def summary_(self, version: Version) -> SafeString:
        return show.pairs({name: version.summary[name] for name in SUMMARY if name in version.summary})

    @admin.display(description="Metrics")
    def metrics_(self, version: Version) -> SafeString:
        return show.pairs(version.metrics)

    @admin.display(description="On the engine")
    def place_(self, version: Version) -> SafeString | str:
        return place(version)
