# batchd in a container, for processors (--target cpu) or for NVIDIA GPUs (--target gpu):
#
#   docker build --target cpu --tag batchd:cpu .
#   docker run --rm --volume batchd-spool:/spool --entrypoint batchd batchd:cpu init /spool      (once)
#   docker run --init --shm-size 2g --stop-timeout 60 --volume batchd-spool:/spool batchd:cpu
#   docker run --gpus all ...                                                                    (the gpu image)
#
# --init reaps the processes that Ray and vLLM leave; --shm-size is Ray's object store; --stop-timeout is longer than
# shutdown.grace_s, so that a stop finishes or requeues instead of being killed. `run` never makes a spool out of an
# empty /spool, since that is what a volume that failed to mount looks like: `init` does. A bind mount must belong to
# user 10001. Your own settings: --volume ./my.yaml:/app/config/batchd.yaml:ro
#
# Limits: the gpu image holds no CUDA compiler. vLLM's own kernels come compiled; one that is compiled by nvcc at the
# first start is not to be had in it.

FROM python:3.12-slim-bookworm AS base

# libnuma1: vLLM's CPU build links it. g++ and libc6-dev: with them torch.compile (CPU) and Triton (GPU) build their
# kernels when an engine starts; Python's headers, which that needs too, are part of this image.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ libc6-dev libnuma1 \
 && rm -rf /var/lib/apt/lists/*

RUN groupadd --gid 10001 batchd \
 && useradd --uid 10001 --gid batchd --create-home batchd \
 && install --directory --owner=batchd --group=batchd --mode=0755 /spool /home/batchd/.cache

# Metrics listen on all of the container's addresses, or no Prometheus outside could read them; they are reachable
# from outside only where the port is published. NVIDIA_*: what the driver has to show to a plain base image.
ENV PATH=/opt/batchd/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    BATCHD_SPOOL__ROOT=/spool \
    BATCHD_METRICS__HOST=0.0.0.0 \
    BATCHD_METRICS__PORT=9108

WORKDIR /app
RUN python -m venv /opt/batchd

# Inherited by both targets. The health check goes past any proxy that the environment names.
VOLUME /spool
EXPOSE 9108
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s --retries=3 CMD ["python", "-c", \
  "import urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:9108/healthz', timeout=4)"]
ENTRYPOINT ["batchd", "run"]
CMD ["--config", "/app/config/batchd.yaml"]

# In both targets the lock comes first, and the code after it: a change of code does not install everything again.
FROM base AS cpu
COPY requirements/ requirements/
RUN requirements/install.sh /opt/batchd/bin/python cpu
COPY . .
RUN python -m pip install -qq --no-deps --no-build-isolation .
USER batchd

FROM base AS gpu
COPY requirements/ requirements/
RUN requirements/install.sh /opt/batchd/bin/python gpu
COPY . .
RUN python -m pip install -qq --no-deps --no-build-isolation .
USER batchd
