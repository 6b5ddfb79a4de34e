# One image for every part: SuperLink, SuperNode, `fl-sim run`, the page. See docs/deployment.md.
#
#   docker build --tag fl-sim:0.1.0 .                                  CPU
#   docker build --tag fl-sim:0.1.0 --build-arg TORCH_BACKEND=cu130 .  CUDA
ARG PYTHON_VERSION=3.11.14
FROM python:${PYTHON_VERSION}-slim-bookworm

# The user who owns the files that are mounted: keys can be read by their owner only.
ARG UID=1000
# Which build of torch: cpu, cu130, … (`uv pip install --torch-backend`).
ARG TORCH_BACKEND=cpu

ENV PYTHONUNBUFFERED=1 \
    OMP_NUM_THREADS=1 \
    FLWR_TELEMETRY_ENABLED=0 \
    FLWR_DISABLE_UPDATE_CHECK=1 \
    FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1 \
    RAY_USAGE_STATS_ENABLED=0

# Volumes that are new take over the owner of these folders.
RUN useradd --uid ${UID} --create-home fl-sim \
    && mkdir /runs /report /data \
    && chown fl-sim: /runs /report /data

WORKDIR /opt/fl-sim
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY fl_sim fl_sim
COPY clients clients
COPY attacker attacker
COPY reproduction reproduction
COPY tradeoff tradeoff
COPY audit audit
COPY dashboard dashboard
RUN python -m pip install --no-cache-dir --constraint constraints.txt uv \
    && uv pip install --system --no-cache --torch-backend "${TORCH_BACKEND}" --constraint constraints.txt .

USER fl-sim
WORKDIR /home/fl-sim
CMD ["fl-sim", "--help"]
