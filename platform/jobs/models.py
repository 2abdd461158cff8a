"""When each kind of periodic work was last done to its end, and how much background work each tenant has had."""

from django.db import models

from tenants.models import Tenant


class Tick(models.Model):
    """One row for each kind of periodic work. `at` is the database's time."""

    kind = models.CharField(max_length=100, primary_key=True)
    at = models.DateTimeField()

    def __str__(self) -> str:
        return self.kind


class Share(models.Model):
    """What a tenant has had of one line of background work: its last shift's start and end in the line's own time.

    That time is seconds of a worker divided by the tenant's weight (`jobs.turns`).
    """

    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, related_name="+")
    line = models.CharField(max_length=32)
    start = models.FloatField()
    end = models.FloatField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["tenant", "line"], name="share_once_per_line")]

    def __str__(self) -> str:
        return f"{self.tenant}'s {self.line}"
