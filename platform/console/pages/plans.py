"""The form that begins a rollout: steps as lines, guardrails by their metrics. It makes the plan that the API makes."""

import json
import re
from typing import Any

from django import forms
from django.db.models import Model

from audit.services import Actor
from console import fields
from console.verbs import Verb, VerbForm
from registry.models import STABLE, Version
from registry.models import State as VersionState
from rollouts import services
from rollouts.guardrails import Mode
from rollouts.models import OnNew, Rollout, State, Unit
from rollouts.services import Plan, PlannedStep
from rollouts.services.plans import USUAL
from rollouts.windows import Metric
from tenants.models import Role

STEP = re.compile(
    r"(?P<percent>\d{1,3}(\.\d{1,2})?) ?%?(?: (?P<seconds>\d{1,7}) ?s)?(?: (?P<samples>\d{1,9}) samples)?"
    r"(?: at most (?P<most>\d{1,7}) ?s)?(?P<shadow> shadow)?(?P<gate> gate)?"
)
STEPS_HELP = (
    "A line for each: the canary's percentage, then, if you like, how long at least, how many answers at least, and "
    "how long at most; “shadow” if it only gets copies, “gate” if a person has to approve. For example: "
    "5 % 300 s 100 samples at most 3600 s gate"
)
METRICS = [(metric.value, metric.value.replace("_", " ")) for metric in Metric]
WATCHED = [Metric.ERRORS.value, Metric.EMPTY.value, Metric.FIRST_TOKEN.value]


def written(step: PlannedStep) -> str:
    """The step as a line of the form."""
    return f"{step.weight / 100:g} % {step.min_seconds} s {step.min_samples} samples"


def read(line: str) -> PlannedStep:
    """Raises ValidationError for a line that is no step."""
    found = STEP.fullmatch(" ".join(line.split()))
    if found is None:
        raise forms.ValidationError(f"“{line[:100]}” is not a step.")
    told = {"min_seconds": found["seconds"], "min_samples": found["samples"], "max_seconds": found["most"]}
    return PlannedStep(
        weight=round(float(found["percent"]) * 100),
        shadow=bool(found["shadow"]),
        gate=bool(found["gate"]),
        **{name: int(value) for name, value in told.items() if value},
    )


class NewRollout(VerbForm):
    canary = fields.row(Rollout._meta.get_field("canary"), label="To version")
    alias = fields.text(max_length=63, initial=STABLE, help_text="What moves there, from the version it names now.")
    steps = fields.paragraph(initial="\n".join(map(written, USUAL)), help_text=STEPS_HELP)
    guardrails = fields.some_of(METRICS, initial=WATCHED, required=False, help_text="Harm to these rolls it back.")
    observed = fields.some_of(METRICS, required=False, help_text="These are compared and told, and decide nothing.")
    schema = fields.paragraph(required=False, help_text="JSON Schema that answers should fit, for schema validity.")
    evaluation = fields.text(required=False, max_length=63, help_text="Set that it must pass first, with its score.")
    unit = fields.one_of(Unit.choices, initial=Unit.AUTO, help_text="Whom a version sticks to.")
    on_new = fields.one_of(OnNew.choices, label="When another is begun", initial=OnNew.REFUSE)
    override = fields.switch(help_text="Also a version that was rolled back before.")
    start = fields.switch(initial=True, label="Start now", help_text="Else it is a draft.")

    def prepare(self) -> None:
        versions = Version.objects.filter(adapter__tenant__in=self.access.tenants_as(Role.EDITOR))
        ready = versions.filter(state=VersionState.READY).select_related("adapter__tenant")
        self.fields["canary"].queryset = ready  # type: ignore[attr-defined]

    def clean_steps(self) -> list[PlannedStep]:
        return [read(line) for line in self.cleaned_data["steps"].splitlines() if line.strip()]

    def clean_schema(self) -> Any:
        given = self.cleaned_data["schema"]
        try:
            schema = json.loads(given) if given.strip() else None
        except (ValueError, RecursionError) as error:
            raise forms.ValidationError("That is not JSON.") from error
        if not isinstance(schema, dict | None):
            raise forms.ValidationError("A schema is an object.")
        return schema

    def plan(self) -> Plan:
        """Call it when valid."""
        given = self.cleaned_data
        modes = {Mode.ENFORCE: given["guardrails"], Mode.OBSERVE: given["observed"]}
        guardrails = [{"metric": metric, "mode": mode.value} for mode, metrics in modes.items() for metric in metrics]
        same = ("alias", "steps", "schema", "evaluation", "unit", "on_new", "override")
        return Plan(given["canary"].number, guardrails=guardrails, **{name: given[name] for name in same})


class BeginRollout(Verb):
    slug, title, submit = "begin", "Begin a rollout", "Begin"
    explains = "The alias moves step by step, as long as the guardrails see no harm; one that does is rolled back."
    role = Role.EDITOR
    form_class = NewRollout

    def get_initial(self) -> dict[str, Any]:
        return {"canary": self.request.GET["canary"]} if "canary" in self.request.GET else {}

    def perform(self, form: VerbForm, actor: Actor) -> Model:
        assert isinstance(form, NewRollout)
        adapter = form.cleaned_data["canary"].adapter
        return services.create_rollout(adapter, form.plan(), actor=actor, start=form.cleaned_data["start"])

    def done(self, row: Model) -> str:
        return f"{row} is {State(row.state).label.lower()}."  # type: ignore[attr-defined]


class StartRollout(Verb):
    slug, title, submit, icon = "start", "Start", "Start", "play_arrow"
    role = Role.EDITOR

    @classmethod
    def applies(cls, target: Any) -> bool:
        return bool(target.state == State.DRAFT)

    def perform(self, form: VerbForm, actor: Actor) -> Model:
        return services.start_rollout(self.target, actor=actor)

    def done(self, row: Model) -> str:
        return f"{row} is under way."
