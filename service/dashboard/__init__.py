"""The status page: plain HTML, CSS and JavaScript that poll the public endpoints."""
