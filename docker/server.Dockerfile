# The API server: no torch, no model. Build from the repository's root:
#   docker build -f docker/server.Dockerfile -t trunkline-server .
FROM python:3.12-slim-trixie AS python
ENV PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1

# A change of pyproject.toml that leaves this list as it is reuses the layers that follow from it.
FROM python AS requirements
WORKDIR /build
COPY pyproject.toml docker/requirements.py ./
RUN python requirements.py pyproject.toml > requirements.txt

FROM python AS install
ENV PIP_CACHE_DIR=/var/cache/pip \
    PIP_DISABLE_PIP_VERSION_CHECK=1
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
LABEL org.opencontainers.image.title="Trunkline server" \
      org.opencontainers.image.description="OpenAI-compatible batch API server" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# The number is fixed because server and engine use the same volume.
RUN groupadd --gid 10001 trunkline \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp trunkline \
    && install -d -o trunkline -g trunkline /data
COPY --from=install /opt/trunkline /opt/trunkline

ENV PATH=/opt/trunkline/bin:$PATH \
    # The root file system may be read-only.
    PYTHONDONTWRITEBYTECODE=1 \
    TRUNKLINE_DATA_DIR=/data \
    TRUNKLINE_HOST=0.0.0.0 \
    TRUNKLINE_PORT=8000
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8000

HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]

ENTRYPOINT ["trunkline"]
CMD ["server"]
