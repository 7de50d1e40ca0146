# The engine, with a torch that runs on CUDA GPUs and on CPUs. Build from the repository's root:
#   docker build -f docker/engine.Dockerfile -t trunkline-engine .
FROM python:3.11-slim

ENV PIP_NO_CACHE_DIR=1 \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1

# The number is fixed because server and engine write to the same volume.
RUN groupadd --gid 10001 trunkline \
    && useradd --uid 10001 --gid 10001 --create-home trunkline \
    && install -d -o trunkline -g trunkline /data /models

WORKDIR /build
COPY pyproject.toml README.md LICENSE ./
COPY src src
COPY server server
COPY store store
COPY engine engine
COPY kernels kernels
COPY migrations migrations
RUN pip install '.[engine]' && rm -rf /build/*
COPY docker/engine_alive.py /usr/local/lib/trunkline/engine_alive.py

USER trunkline
WORKDIR /home/trunkline
ENV TRUNKLINE_DATA_DIR=/data \
    TRUNKLINE_CACHE_DIR=/models/trunkline \
    TRUNKLINE_ENGINE_NAME=engine \
    HF_HOME=/models/huggingface
VOLUME ["/data", "/models"]

# A model is fetched and loaded before the first heartbeat, so the start may take long.
HEALTHCHECK --interval=15s --timeout=10s --start-period=30m --retries=3 \
    CMD ["python", "/usr/local/lib/trunkline/engine_alive.py"]

ENTRYPOINT ["python", "-m", "trunkline"]
CMD ["engine"]
