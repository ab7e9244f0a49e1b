from django.urls import path

from . import views

urlpatterns = [
    path("", views.index, name="index"),
    path("files/", views.files, name="files"),
    path("files/<int:pk>/", views.download, name="download"),
    path("stream/", views.stream, name="stream"),
    path("health/", views.health, name="health"),
]
