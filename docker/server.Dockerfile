# The API server: no torch, no model. Build from the repository's root:
#   docker build -f docker/server.Dockerfile -t trunkline-server .
FROM python:3.11-slim

ENV PIP_NO_CACHE_DIR=1 \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1

# The number is fixed because server and engine write to the same volume.
RUN groupadd --gid 10001 trunkline \
    && useradd --uid 10001 --gid 10001 --create-home trunkline \
    && install -d -o trunkline -g trunkline /data

WORKDIR /build
COPY pyproject.toml README.md LICENSE ./
COPY src src
COPY server server
COPY store store
COPY engine engine
COPY kernels kernels
COPY migrations migrations
RUN pip install . && rm -rf /build/*

USER trunkline
WORKDIR /home/trunkline
ENV TRUNKLINE_DATA_DIR=/data \
    TRUNKLINE_HOST=0.0.0.0 \
    TRUNKLINE_PORT=8000
VOLUME /data
EXPOSE 8000

HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]

ENTRYPOINT ["python", "-m", "trunkline"]
CMD ["server"]
