# The engine, for NVIDIA GPUs and for CPUs. Build from the repository's root:
#   docker build -f docker/engine.Dockerfile -t trunkline-engine .
# torch comes with the CUDA libraries that it was built for; the machine brings the driver. For
# another CUDA version, or for CPUs only, name PyTorch's index for it:
#   --build-arg PIP_EXTRA_INDEX_URL=…
FROM python:3.12-slim-trixie AS python
ENV PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1

# A change of pyproject.toml that leaves this list as it is reuses the layers that follow from it.
FROM python AS requirements
WORKDIR /build
COPY pyproject.toml docker/requirements.py ./
RUN python requirements.py pyproject.toml engine > requirements.txt

FROM python AS install
ENV PIP_CACHE_DIR=/var/cache/pip \
    PIP_DISABLE_PIP_VERSION_CHECK=1
ARG PIP_EXTRA_INDEX_URL
WORKDIR /build
RUN python -m venv /opt/trunkline
COPY --from=requirements /build/requirements.txt ./
RUN --mount=type=cache,target=/var/cache/pip \
    /opt/trunkline/bin/pip install --requirement requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY src src
COPY server server
COPY store store
COPY engine engine
COPY kernels kernels
COPY migrations migrations
RUN --mount=type=cache,target=/var/cache/pip \
    /opt/trunkline/bin/pip install --no-deps .

FROM python
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Trunkline engine" \
      org.opencontainers.image.description="Inference engine of the Trunkline batch server" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# Both are needed when the engine runs: Triton compiles the launchers of its kernels, and the CPU
# kernels are compiled at first use. tini passes signals on while a model is being loaded, which
# Python as process 1 would ignore.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ tini \
    && rm -rf /var/lib/apt/lists/*

# The number is fixed because server and engine use the same volume.
RUN groupadd --gid 10001 trunkline \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp trunkline \
    && install -d -o trunkline -g trunkline /data /cache
COPY --from=install /opt/trunkline /opt/trunkline
COPY docker/engine_alive.py /usr/local/lib/trunkline/engine_alive.py

ENV PATH=/opt/trunkline/bin:$PATH \
    # The root file system may be read-only: all that is fetched, converted or compiled is here.
    PYTHONDONTWRITEBYTECODE=1 \
    XDG_CACHE_HOME=/cache \
    TRUNKLINE_CACHE_DIR=/cache/trunkline \
    TRITON_CACHE_DIR=/cache/triton \
    CUDA_CACHE_PATH=/cache/cuda \
    HF_HOME=/cache/huggingface \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    TRUNKLINE_DATA_DIR=/data \
    TRUNKLINE_ENGINE_NAME=engine
USER 10001:10001
WORKDIR /data
VOLUME ["/data", "/cache"]

# A model is fetched and loaded before the first heartbeat, so the start may take long.
HEALTHCHECK --interval=30s --timeout=15s --start-period=30m --retries=3 \
    CMD ["python", "/usr/local/lib/trunkline/engine_alive.py"]

ENTRYPOINT ["tini", "--", "trunkline"]
CMD ["engine"]
