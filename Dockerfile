# The trainer as an image: CUDA runtime, the locked Python environment, the package. Runs on a CPU too.
# Override BASE_IMAGE with any Debian 12 or Ubuntu 24.04 image; both bring a supported Python.
ARG BASE_IMAGE=nvidia/cuda:12.8.1-cudnn-runtime-ubuntu24.04
FROM ${BASE_IMAGE}

RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates python3 python3-venv tini \
    && rm -rf /var/lib/apt/lists/*

ENV PATH=/opt/venv/bin:$PATH \
    PYTHONNOUSERSITE=1 \
    PYTHONDONTWRITEBYTECODE=1

# Dependencies change less often than the code: a layer of their own. The optional secrets `ca` (a bundle of
# certificates) and `pipconf` (an index of one's own, as index-url and extra-index-url) serve builds behind a proxy,
# and leave no trace in the image.
ARG UV_VERSION=0.13.9
COPY requirements.lock /tmp/requirements.lock
RUN --mount=type=secret,id=ca,target=/run/secrets/ca.pem,required=false \
    --mount=type=secret,id=pipconf,target=/run/secrets/pip.conf,required=false \
    set -eu; \
    if [ -s /run/secrets/ca.pem ]; then export SSL_CERT_FILE=/run/secrets/ca.pem PIP_CERT=/run/secrets/ca.pem; fi; \
    if [ -s /run/secrets/pip.conf ]; then export PIP_CONFIG_FILE=/run/secrets/pip.conf; fi; \
    python3 -m venv /opt/venv; \
    pip install --no-cache-dir --disable-pip-version-check "uv==${UV_VERSION}"; \
    index=$(pip config get global.index-url 2>/dev/null || true); \
    more=$(pip config get global.extra-index-url 2>/dev/null || true); \
    if [ -n "$index" ]; then export UV_DEFAULT_INDEX="$index"; fi; \
    if [ -n "$more" ]; then export UV_INDEX="$more"; fi; \
    uv pip install --python /opt/venv/bin/python --no-cache --compile-bytecode \
        --require-hashes -r /tmp/requirements.lock; \
    rm /tmp/requirements.lock

WORKDIR /workspace
COPY pyproject.toml README.md LICENSE ./
COPY gfgw_prod gfgw_prod
RUN uv pip install --python /opt/venv/bin/python --no-cache --offline --compile-bytecode --no-deps \
        --no-build-isolation . \
    && rm -rf gfgw_prod build pyproject.toml README.md
COPY configs configs
COPY launch launch
COPY docker/entrypoint.sh docker/entrypoint.sh

# 1000 is taken in Ubuntu 24.04. The container may also run as the caller's uid, so that mounted files are the caller's:
# hence a run directory anyone may write to, a home that exists for everyone, and a user name that needs no passwd entry.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin gfgw \
    && install -d -m 1777 runs data
ENV HOME=/tmp \
    USER=gfgw \
    HF_HOME=/workspace/data/huggingface \
    TORCH_HOME=/workspace/data/torch
USER 10001:10001

ENTRYPOINT ["tini", "--", "/workspace/docker/entrypoint.sh"]
