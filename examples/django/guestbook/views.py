import hashlib
import os
import time

from django.contrib import messages
from django.db import connection
from django.http import FileResponse, HttpResponse, StreamingHttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_safe

from .forms import EntryForm, UploadForm
from .models import Entry, Upload

MAX_LINES = 1_000_000


def index(request):
    """Shows the entries, newest first, and adds one."""
    form = EntryForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        form.save()
        messages.success(request, "Thank you for signing the guestbook.")
        return redirect("index")
    return render(
        request, "guestbook/index.html", {"form": form, "entries": Entry.objects.all()[:50]}
    )


def files(request):
    """Shows the uploads, newest first, and takes one."""
    form = UploadForm(request.POST or None, request.FILES or None)
    if request.method == "POST" and form.is_valid():
        upload = keep(form.cleaned_data["file"])
        messages.success(
            request, f"Kept {upload.name}: {upload.size} bytes, SHA-256 {upload.sha256}"
        )
        return redirect("files")
    return render(
        request, "guestbook/files.html", {"form": form, "uploads": Upload.objects.all()[:50]}
    )


def keep(file):
    digest = hashlib.sha256()
    for chunk in file.chunks():
        digest.update(chunk)
    return Upload.objects.create(
        file=file, name=file.name, size=file.size, sha256=digest.hexdigest()
    )


@require_safe
def download(request, pk):
    """A file response: the server sends it from the file, without reading it into Python."""
    upload = get_object_or_404(Upload, pk=pk)
    return FileResponse(upload.file.open("rb"), as_attachment=True, filename=upload.name)


@require_safe
def stream(request):
    """Numbered lines, made while they are sent: /stream/?lines=1000&delay=0.01"""
    try:
        lines = min(int(request.GET.get("lines", 100)), MAX_LINES)
        delay = min(float(request.GET.get("delay", 0)), 10)
    except ValueError:
        return HttpResponse("lines and delay are numbers\n", status=400, content_type="text/plain")
    response = StreamingHttpResponse(
        numbered(lines, delay), content_type="text/plain; charset=utf-8"
    )
    response["X-Accel-Buffering"] = "no"  # asks Nginx to pass each line on at once
    return response


def numbered(lines, delay):
    for number in range(1, lines + 1):
        yield f"line {number}\n"
        if delay > 0:
            time.sleep(delay)


@require_safe
def health(request):
    """For load balancers: 200 when this worker reaches the database."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        cursor.fetchone()
    return HttpResponse(f"ok {os.getpid()}\n", content_type="text/plain")
