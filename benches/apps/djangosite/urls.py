from django.urls import path
from entries.views import index

urlpatterns = [path("", index)]
