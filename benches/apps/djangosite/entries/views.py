from django.shortcuts import render

from .models import Entry


def index(request):
    return render(request, "entries.html", {"entries": Entry.objects.order_by("-id")[:10]})
