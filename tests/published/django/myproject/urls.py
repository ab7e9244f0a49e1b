from django.http import HttpResponse
from django.templatetags.static import static
from django.urls import path


def home(request):
    return HttpResponse(static("site.css"), content_type="text/plain")


urlpatterns = [path("", home)]
