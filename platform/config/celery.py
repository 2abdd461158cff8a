"""The Celery application. Knows that apps keep their tasks in `tasks.py`; knows no task."""

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

app = Celery("lorayard")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
