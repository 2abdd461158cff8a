from django.urls import path

from registry import signing_views, views

app_name = "registry"
urlpatterns = [
    path("signing-keys", signing_views.SigningKeys.as_view(), name="signing-keys"),
    path("signing-keys/<uuid:signing_key>/revoke", signing_views.RevokeSigningKey.as_view(), name="revoke-signing-key"),
    path("signing-policy", signing_views.SigningPolicy.as_view(), name="signing-policy"),
    path("quotas", views.Quotas.as_view(), name="quotas"),
    path("adapters", views.Adapters.as_view(), name="adapters"),
    path("adapters/<str:name>", views.OneAdapter.as_view(), name="adapter"),
    path("adapters/<str:name>/versions", views.Versions.as_view(), name="versions"),
    path("adapters/<str:name>/versions/<int:number>", views.OneVersion.as_view(), name="version"),
    path("adapters/<str:name>/versions/<int:number>/archive", views.Archive.as_view(), name="archive"),
    path("adapters/<str:name>/versions/<int:number>/diff/<int:other>", views.Diff.as_view(), name="diff"),
    path("adapters/<str:name>/versions/<int:number>/residency", views.Residency.as_view(), name="residency"),
    path("adapters/<str:name>/versions/<int:number>/pin", views.Pin.as_view(), name="pin"),
    path("adapters/<str:name>/aliases", views.Aliases.as_view(), name="aliases"),
    path("adapters/<str:name>/aliases/<str:alias>", views.OneAlias.as_view(), name="alias"),
    path("adapters/<str:name>/aliases/<str:alias>/rollback", views.RollbackAlias.as_view(), name="rollback"),
    path("adapters/<str:name>/aliases/<str:alias>/moves", views.AliasMoves.as_view(), name="moves"),
]
