"""The files of the status page, as any client gets them; what they do is for `tests/browser`."""

import httpx
import pytest


@pytest.mark.parametrize("path", ["/", "/dashboard/main.js"])
def test_a_file_of_the_page_can_be_asked_about_without_its_body(
    http: httpx.Client, path: str
) -> None:
    whole, head = http.get(path), http.head(path)
    assert (whole.status_code, head.status_code) == (200, 200)
    assert head.content == b""
    for name in ("content-length", "etag", "content-security-policy"):
        assert head.headers[name] == whole.headers[name]
