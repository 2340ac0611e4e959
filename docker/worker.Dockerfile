# A worker: the supervisor, the trainer and the loss. CUDA by default; the CPU build is
#   --build-arg BASE=debian:bookworm-slim --build-arg PIP_CONSTRAINT=constraints/cpu.txt
#   --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
# The `base` flavour of the CUDA image is enough: torch's wheels carry the CUDA libraries, and the
# image adds the declarations by which the container runtime hands in a fitting driver.
ARG BASE=nvidia/cuda:13.0.2-base-ubuntu24.04
FROM ${BASE} AS system
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# Triton and the compiled baseline build C extensions while a job runs: a compiler and headers.
# The distribution's own security updates are wanted, so no version is pinned.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        ca-certificates gcc g++ libc6-dev python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/venv
WORKDIR /src

FROM system AS wheel
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM system
# pip reads these two from the environment of the commands below.
ARG PIP_CONSTRAINT=
ARG PIP_EXTRA_INDEX_URL=
COPY constraints ./constraints
# Torch is most of the image: in a layer of its own it is neither built nor pulled again.
# Its range is the package's, which the next step holds it to.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir torch
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir "$(echo /wheels/*.whl)[worker]"
RUN useradd --uid 10001 --home-dir /cache --no-create-home headroom \
    && install -d -o headroom -g headroom /cache /data /work

USER 10001:10001
WORKDIR /work
# On a volume, and not in /tmp, which may forbid to execute what the compilers put there.
ENV HF_HOME=/cache/huggingface \
    TRITON_CACHE_DIR=/cache/triton \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor \
    HEADROOM_STORAGE_URL=/data/storage \
    HEADROOM_WORK_DIR=/work
HEALTHCHECK --interval=30s --timeout=20s --start-period=60s --retries=3 \
    CMD ["python", "-m", "worker", "--ping", "--queues", "train"]
ENTRYPOINT ["python", "-m", "worker"]
CMD ["--queues", "train"]
