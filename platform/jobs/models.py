"""When each kind of periodic work was last done to its end."""

from django.db import models


class Tick(models.Model):
    """One row for each kind of periodic work. `at` is the database's time."""

    kind = models.CharField(max_length=100, primary_key=True)
    at = models.DateTimeField()

    def __str__(self) -> str:
        return self.kind
