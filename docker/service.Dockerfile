# The HTTP API with its status page. No torch, no GPU; it runs on a read-only root file system.
FROM python:3.11-slim-bookworm AS wheel
WORKDIR /src
COPY . .
RUN python3 -m venv /opt/build \
    && /opt/build/bin/pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim-bookworm
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# The same uid as the worker's: both write to the storage volume.
RUN useradd --uid 10001 --home-dir /nonexistent --no-create-home headroom \
    && install -d -o headroom -g headroom /data /spool
COPY --from=wheel /wheels /wheels
RUN python3 -m venv /opt/venv \
    && pip install --no-cache-dir "$(echo /wheels/*.whl)[service]"

USER 10001:10001
WORKDIR /data
# Large uploads are spooled to TMPDIR; in a tmpfs they would be held in memory.
ENV HEADROOM_STORAGE_URL=/data/storage \
    TMPDIR=/spool
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
CMD ["python", "-m", "service", "--host", "0.0.0.0", "--port", "8000"]
