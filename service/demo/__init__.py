"""The demo: a small model learns Python's own documentation, through the public HTTP API."""
