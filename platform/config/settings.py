"""Django's settings, all of them derived from `env.load()`: read that file for what can be set from outside."""

import sys
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from config import env, logs
from console.unfold import UNFOLD as UNFOLD  # noqa: PLC0414 - Django reads it here
from tenants.postgresql import patience

try:
    LORAYARD = env.load()
except env.SettingInvalid as error:
    sys.exit(str(error))

SECRET_KEY = LORAYARD.secret_key
DEBUG = LORAYARD.debug

_public = urlsplit(LORAYARD.url)
ALLOWED_HOSTS = ["localhost", "127.0.0.1", "[::1]", *filter(None, [_public.hostname]), *LORAYARD.hosts]
CSRF_TRUSTED_ORIGINS = [f"{_public.scheme}://{_public.netloc}"]

OUR_APPS = ["config", "tenants", "apikeys", "audit", "webhooks", "metering", "registry", "merges", "evaluations"]
OUR_APPS += ["rollouts", "jobs", "console", "gateway"]
INSTALLED_APPS = [
    "unfold",
    "unfold.contrib.filters",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "pgtrigger",
    "axes",
    *OUR_APPS,
]

MIDDLEWARE = [
    "tenants.isolation.begins_with_nobody",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "config.urls"
ASGI_APPLICATION = "config.asgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [env.ROOT / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.debug",
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]


# The pool's pauses between attempts double until `reconnect_timeout`, then start anew: a short one, so that a database
# which was away for a minute is not met again only after two.
POOL = {
    "min_size": 1,
    "timeout": patience.GETTING,
    "reconnect_timeout": 3,
    "connection_class": patience.Connection,
}
# A server, or a network, that is gone without a word is noticed by the kernel within half a minute.
KEEPALIVES = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 25_000}


def _database(url: str, pool: int, role: str) -> dict[str, Any]:
    """Django's form of a PostgreSQL URL. The query's `host` wins, as in libpq: it is how a URL names a Unix socket."""
    parts = urlsplit(url)
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    host = query.pop("host", "") or unquote(parts.hostname or "")
    return {
        "ENGINE": "tenants.postgresql",
        "NAME": unquote(parts.path.lstrip("/")),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": host,
        "PORT": query.pop("port", "") or (parts.port or ""),
        # Under ASGI a persistent connection would be one per thread, and outlive it: only a pool keeps them.
        "CONN_MAX_AGE": 0,
        "CONN_HEALTH_CHECKS": True,
        "OPTIONS": {
            "connect_timeout": 5,
            **KEEPALIVES,
            **query,
            **({"pool": {**POOL, "max_size": pool}, "kept": pool // 2} if pool else {}),
            **({"assume_role": role} if role else {}),
        },
    }


DATABASES = {"default": _database(LORAYARD.database_url, LORAYARD.database_pool, LORAYARD.database_role)}

# A Redis that hangs is one that is away, soon: these are tried once, and whoever needs them is told.
REDIS_PATIENCE = {"socket_connect_timeout": 1.0, "socket_timeout": 2.0}  # seconds

CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": LORAYARD.redis_url,
        "OPTIONS": {**REDIS_PATIENCE},
    }
}

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
AUTHENTICATION_BACKENDS = ["axes.backends.AxesStandaloneBackend", "django.contrib.auth.backends.ModelBackend"]
# Five failures lock an account for the address that they came from alone, so that nobody locks others out.
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
AXES_FAILURE_LIMIT = 5
AXES_COOLOFF_TIME = timedelta(minutes=15)
AXES_RESET_COOL_OFF_ON_FAILURE_DURING_LOCKOUT = False
AXES_RESET_ON_SUCCESS = True
AXES_DISABLE_ACCESS_LOG = True  # the audit log has it
AXES_ENABLE_ADMIN = AXES_VERBOSE = False
AXES_CLIENT_IP_CALLABLE = "console.signing_in.client_address"
SILENCED_SYSTEM_CHECKS = ["axes.W002"]  # its middleware would answer what `console.signing_in` has answered
LOGIN_URL = "admin:login"
LOGIN_REDIRECT_URL = "admin:index"

LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_TZ = True

STATIC_URL = "static/"
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}
# Files come from the packages themselves, found once at the start, so that there is no `collectstatic` to forget.
WHITENOISE_USE_FINDERS = True

# Uploads go to disk beyond this, and a request without files may be no larger.
FILE_UPLOAD_MAX_MEMORY_SIZE = 2**20
DATA_UPLOAD_MAX_MEMORY_SIZE = 4 * 2**20
DATA_UPLOAD_MAX_NUMBER_FIELDS = 1000
DATA_UPLOAD_MAX_NUMBER_FILES = 8

SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
SECURE_CROSS_ORIGIN_OPENER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
SESSION_ENGINE = "config.sessions"
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
if _public.scheme == "https":
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    SECURE_HSTS_SECONDS = 31_536_000
    SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = True

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "apikeys.authentication.KeyAuthentication",
        "rest_framework.authentication.SessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["apikeys.permissions.HasScope"],
    "EXCEPTION_HANDLER": "tenants.errors.exception_handler",
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "DEFAULT_PAGINATION_CLASS": "rest_framework.pagination.LimitOffsetPagination",
    "PAGE_SIZE": 50,
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Lorayard",
    "DESCRIPTION": "The management plane: tenants, keys, adapters, versions, aliases, audit.",
    "VERSION": "1",
    "SERVE_INCLUDE_SCHEMA": False,
    "SERVE_PERMISSIONS": ["config.inspection.Inspector"],
    "SERVE_AUTHENTICATION": ["rest_framework.authentication.SessionAuthentication"],
    "SCHEMA_PATH_PREFIX": "/api/v1",
    "ENFORCE_NON_BLANK_FIELDS": True,
    "ENUM_NAME_OVERRIDES": {
        "MergeKind": "merges.models.Kind",
        "RolloutState": "rollouts.models.State",
        "VersionState": "registry.models.State",
    },
    "SWAGGER_UI_DIST": "SIDECAR",  # its files from our own server; nothing is fetched from elsewhere
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
}

# What apps above the registry tell of two versions, by the field of a version's diff that shows it.
VERSIONS_COMPARED_BY = {"scores": "evaluations.services.score_pairs"}

CELERY_BROKER_URL = LORAYARD.celery_broker
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_MAX_RETRIES = None  # a worker outlives a broker, however long it is away
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "visibility_timeout": 3600,
    "socket_keepalive": True,
    "health_check_interval": 10,  # seconds after which a worker doubts a connection that says nothing
    "max_retries": 1,
    "interval_start": 0.1,
    "connect_retries_timeout": 2.0,
    **REDIS_PATIENCE,
}
# What tasks find out is in the database; nothing waits for a result, so none is stored.
CELERY_TASK_IGNORE_RESULT = True
# A task may run twice (its worker was killed), never zero times: every task is written to be repeatable.
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_REJECT_ON_WORKER_LOST = True
# What takes minutes has a queue and a worker of its own, and so has what must never wait.
CELERY_TASK_ROUTES = {
    "jobs.tasks.tick_rollouts": {"queue": "rollouts"},
    "jobs.tasks.checkpoint_audit": {"queue": "audit"},
    "jobs.tasks.run_evaluation": {"queue": "background"},
    "jobs.tasks.seal_audit": {"queue": "audit"},
    "jobs.tasks.deliver_webhook": {"queue": "webhooks"},
    "jobs.tasks.verify_audit": {"queue": "audit"},
    "jobs.tasks.run_merge": {"queue": "merges"},
}
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_TASK_TIME_LIMIT = 3000  # below the visibility timeout, so that a running task is never delivered again
CELERY_TASK_SERIALIZER = CELERY_RESULT_SERIALIZER = CELERY_EVENT_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_TIMEZONE = "UTC"
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_WORKER_SEND_TASK_EVENTS = False
ASK_AGAIN = 5.0  # seconds between looks at work whose message, or whose worker, was lost
TICK = 2.0  # seconds between looks at the rollouts under way
CELERY_BEAT_SCHEDULE: dict[str, dict[str, Any]] = {  # seconds
    "revalidate-stale": {"task": "jobs.tasks.revalidate_stale", "schedule": ASK_AGAIN},
    "sweep-quarantine": {"task": "jobs.tasks.sweep_quarantine", "schedule": 60.0},
    "tend-usage": {"task": "jobs.tasks.tend_usage", "schedule": 30.0},
    "forget-usage": {"task": "jobs.tasks.forget_usage", "schedule": 3600.0},
    "expire-uploads": {"task": "jobs.tasks.expire_uploads", "schedule": 300.0},
    "forget-rejected": {"task": "jobs.tasks.forget_rejected", "schedule": 3600.0},
    "collect-unheld": {"task": "jobs.tasks.collect_unheld", "schedule": 30.0},
    "sweep-blobs": {"task": "jobs.tasks.sweep_blobs", "schedule": 900.0},
    "deliver-webhooks": {"task": "jobs.tasks.deliver_webhooks", "schedule": ASK_AGAIN},
    "forget-deliveries": {"task": "jobs.tasks.forget_deliveries", "schedule": 300.0},
    "checkpoint-audit": {"task": "jobs.tasks.checkpoint_audit", "schedule": 60.0},
    "seal-audit": {"task": "jobs.tasks.seal_audit", "schedule": 3600.0},
    "resume-evaluations": {"task": "jobs.tasks.resume_evaluations", "schedule": ASK_AGAIN},
    "resume-merges": {"task": "jobs.tasks.resume_merges", "schedule": ASK_AGAIN},
    "tend-merges": {"task": "jobs.tasks.tend_merges", "schedule": 60.0},
    "tick-rollouts": {"task": "jobs.tasks.tick_rollouts", "schedule": TICK},
    "sweep-rollouts": {"task": "jobs.tasks.sweep_rollouts", "schedule": 3600.0},
    "release-overdue": {"task": "jobs.tasks.release_overdue", "schedule": 2 * ASK_AGAIN},
    "hold-pins": {"task": "jobs.tasks.hold_pins", "schedule": 30.0},
    "verify-audit": {"task": "jobs.tasks.verify_audit", "schedule": 24 * 3600.0},
}
for _entry in CELERY_BEAT_SCHEDULE.values():  # what finds no worker until the next turn is dropped, and not done twice
    _entry["options"] = {"expires": max(10.0, _entry["schedule"])}
    # In a queue of their own, so that a queue with nothing in it means what it says to them: see `dispatch.idle`.
    CELERY_TASK_ROUTES.setdefault(_entry["task"], {"queue": "periodic"})
CELERY_BEAT_SCHEDULER = "jobs.beat:Scheduler"
CELERY_BEAT_MAX_LOOP_INTERVAL = 5.0  # seconds in which it is seen that the clock was set back
CELERY_BEAT_SCHEDULE_FILENAME = str(LORAYARD.home / "beat" / "schedule")

LOGGING = logs.configure(human=sys.stderr.isatty())
