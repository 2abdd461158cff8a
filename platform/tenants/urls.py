from django.urls import path

from tenants import views

app_name = "tenants"
urlpatterns = [
    path("tenants", views.Tenants.as_view(), name="tenants"),
    path("tenants/<slug:slug>", views.OneTenant.as_view(), name="tenant"),
    path("tenants/<slug:slug>/members", views.Members.as_view(), name="members"),
    path("tenants/<slug:slug>/members/<str:username>", views.OneMember.as_view(), name="member"),
]
