# The trainer as an image: the locked Python environment, which brings CUDA's libraries, and the package. The host brings
# the driver, and NVIDIA's container toolkit mounts it. A CUDA runtime as the base would add 2.7 GB of the same libraries.
# Override BASE_IMAGE with any Debian 12 or 13, or Ubuntu 24.04 or 26.04 image; all bring a supported Python.
ARG BASE_IMAGE=debian:12-slim

# Build stage: makes the package. It has a directory of its own: a new version of it is a layer of one megabyte, not a new
# environment.
FROM ${BASE_IMAGE} AS package
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# hadolint ignore=DL3008,DL3009
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ca-certificates python3 python3-venv

# For builds behind a proxy there are optional secrets, which leave no trace in the image: `ca` is a bundle of
# certificates, `pipconf` a pip.conf with the index-url and extra-index-url to use.
WORKDIR /build
COPY docker/build.lock ./
RUN --mount=type=secret,id=ca,target=/run/secrets/ca.pem,required=false \
    --mount=type=secret,id=pipconf,target=/run/secrets/pip.conf,required=false \
    if [ -s /run/secrets/ca.pem ]; then export PIP_CERT=/run/secrets/ca.pem; fi; \
    if [ -s /run/secrets/pip.conf ]; then export PIP_CONFIG_FILE=/run/secrets/pip.conf; fi; \
    python3 -m venv /build/tools; \
    tools/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r build.lock; \
    python3 -m venv --without-pip /opt/venv

COPY pyproject.toml README.md LICENSE ./
COPY gfgw_prod gfgw_prod
COPY configs configs
COPY launch launch
RUN tools/bin/python -m hatchling build -t wheel \
    && tools/bin/uv pip install --python /opt/venv/bin/python --no-cache --offline --compile-bytecode --no-deps \
        --target /opt/gfgw dist/*.whl

FROM ${BASE_IMAGE}
# train.compile needs a compiler at run time: --build-arg EXTRA_PACKAGES="gcc g++ libc6-dev python3-dev".
ARG EXTRA_PACKAGES=
# tini is process 1: it forwards signals and reaps orphans.
# hadolint ignore=DL3008,SC2086
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates python3 tini ${EXTRA_PACKAGES} \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/cache/debconf/*-old /var/lib/dpkg/*-old /var/log/*

# Uid 1000 is taken in Ubuntu 24.04. The container may also run as the caller's uid, so that mounted files are the
# caller's. Hence run directories that anyone may write, a home that exists for everyone, and USER for a uid that has no
# passwd entry.
WORKDIR /workspace
RUN useradd --uid 10001 --user-group --no-create-home --no-log-init --home-dir /tmp --shell /usr/sbin/nologin gfgw \
    && install -d -m 1777 runs data \
    && rm -f /etc/passwd- /etc/group- /etc/shadow- /etc/gshadow- /etc/subuid- /etc/subgid-

# Dependencies have a layer of their own, as they change less often than the code. What installs them comes and goes within
# it: from a build stage, 8 GB would have to be copied, which doubles the time and the disk that a build takes.
COPY docker/build.lock docker/runtime.lock docker/
# hadolint ignore=DL3008
RUN --mount=type=secret,id=ca,target=/run/secrets/ca.pem,required=false \
    --mount=type=secret,id=pipconf,target=/run/secrets/pip.conf,required=false \
    set -eu; \
    if [ -s /run/secrets/ca.pem ]; then export SSL_CERT_FILE=/run/secrets/ca.pem PIP_CERT=/run/secrets/ca.pem; fi; \
    if [ -s /run/secrets/pip.conf ]; then export PIP_CONFIG_FILE=/run/secrets/pip.conf; fi; \
    apt-get update; \
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3-venv; \
    python3 -B -m venv /tmp/tools; \
    /tmp/tools/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r docker/build.lock; \
    index=$(/tmp/tools/bin/pip config get global.index-url 2>/dev/null || true); \
    more=$(/tmp/tools/bin/pip config get global.extra-index-url 2>/dev/null || true); \
    if [ -n "$index" ]; then export UV_DEFAULT_INDEX="$index"; fi; \
    if [ -n "$more" ]; then export UV_INDEX="$more"; fi; \
    python3 -B -m venv --without-pip /opt/venv; \
    /tmp/tools/bin/uv pip install --python /opt/venv/bin/python --no-cache --compile-bytecode \
        --require-hashes -r docker/runtime.lock; \
    echo /opt/gfgw >"$(/opt/venv/bin/python -B -c 'import site; print(site.getsitepackages()[0])')/gfgw.pth"; \
    apt-get purge -y --auto-remove python3-venv; \
    rm -rf /tmp/tools /var/lib/apt/lists/* /var/cache/apt /var/cache/debconf/*-old /var/lib/dpkg/*-old /var/log/*

COPY --from=package /opt/gfgw /opt/gfgw
COPY LICENSE ./
COPY configs configs
COPY launch launch
COPY docker/entrypoint.sh docker/healthcheck.py docker/

ARG VERSION=0.1.0
ARG REVISION=
ENV PATH=/opt/gfgw/bin:/opt/venv/bin:$PATH \
    PYTHONNOUSERSITE=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    USER=gfgw \
    HF_HOME=/workspace/data/huggingface \
    TORCH_HOME=/workspace/data/torch \
    TORCHINDUCTOR_CACHE_DIR=/workspace/data/torchinductor \
    TRITON_CACHE_DIR=/workspace/data/triton \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    GFGW_REVISION=${REVISION}
LABEL org.opencontainers.image.title="gfgw-prod" \
    org.opencontainers.image.description="Fault-tolerant trainer of one-step image generators by GFGW flow matching" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"

USER 10001:10001
VOLUME ["/workspace/runs", "/workspace/data"]
EXPOSE 9100
STOPSIGNAL SIGTERM
# The port is closed while nodes meet, which takes up to RDZV_TIMEOUT (10 min).
HEALTHCHECK --interval=30s --timeout=15s --start-period=15m --retries=10 \
    CMD ["python3", "/workspace/docker/healthcheck.py"]
ENTRYPOINT ["tini", "--", "/workspace/docker/entrypoint.sh"]
