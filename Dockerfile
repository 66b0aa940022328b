# syntax=docker/dockerfile:1
# CPU image. The weights are fetched and checked while it is built, so it starts with the network off.
#   docker build -t tandem .
#   docker run -p 127.0.0.1:8000:8000 -e TANDEM_ADMIN_KEY=... -v tandem:/data -v ./corpora:/corpora:ro tandem

FROM python:3.11-slim AS build
# An index that holds CPU-only builds of torch keeps several gigabytes of GPU libraries out of the image.
ARG PIP_EXTRA_INDEX_URL=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH TANDEM_WEIGHTS=/opt/weights
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY indexer indexer
COPY tuner tuner
COPY service service
COPY corpora corpora
RUN pip install .
# Indexing fetches the embedder, the doctor the base model; both are checked against their SHA-256.
RUN TANDEM_HOME=/tmp/home tandem index corpora \
    && TANDEM_HOME=/tmp/home tandem doctor \
    && rm -rf /tmp/home /opt/weights/downloads

FROM python:3.11-slim
RUN useradd --system --uid 10001 --home-dir /data tandem \
    && mkdir /data /corpora \
    && chown 10001 /data
COPY --from=build /opt/venv /opt/venv
COPY --from=build --chown=10001 /opt/weights /opt/weights
COPY --from=build /src/corpora /corpora
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HUB_OFFLINE=1 \
    TANDEM_HOME=/data \
    TANDEM_WEIGHTS=/opt/weights \
    TANDEM_CORPORA=/corpora
USER 10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
# Others can reach a container, so it starts only with a key: set TANDEM_ADMIN_KEY (16 characters or more).
CMD ["tandem", "up", "--host", "0.0.0.0"]
