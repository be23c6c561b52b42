# mim4d with all that training and mim4d-eval need; docs/cluster.md says how to run it.
FROM python:3.12.11-slim-bookworm

# Downloads, indices and synthetic worlds go to /cache; anyone may write there, so that `docker run --user` works.
ENV MIM4D_CACHE=/cache/mim4d \
    HF_HOME=/cache/huggingface \
    MPLCONFIGDIR=/cache/matplotlib \
    PYTHONUNBUFFERED=1
RUN useradd --create-home --uid 1000 mim4d && mkdir --mode 1777 /cache

WORKDIR /opt/mim4d
COPY pyproject.toml README.md LICENSE ./
COPY mim4d mim4d
# The versions are those that pyproject.toml allows.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir '.[pretrain]'

USER 1000
WORKDIR /home/mim4d
CMD ["mim4d-pretrain", "--help"]
