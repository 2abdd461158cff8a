from django.apps import AppConfig


class MergesConfig(AppConfig):
    name = "merges"
    verbose_name = "Merges"
    default_auto_field = "django.db.models.BigAutoField"
