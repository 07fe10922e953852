"""The shop's one view, for Django."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.urls import re_path
from support.shop import Shop

shop = Shop()


def handle(request: HttpRequest) -> HttpResponseBase:
    if request.path == "/stream":
        shop.calls["/stream"] += 1
        return StreamingHttpResponse(shop.stream(1, b""), content_type="text/event-stream")
    status, headers, told = shop.handle(request.path, request.body)
    return HttpResponse(told, status=status, headers=headers)


urlpatterns = [re_path("", handle)]
