# Both environments for workers on GPUs, and the project; docs/deployments.md says how it is built and used.
# The base has Python 3.11.5 or later, git, by which runs know their code, and a C compiler, with which Triton builds.
ARG BASE=python:3.11
FROM ${BASE}

ARG PYTHON=python3
ARG EXTRAS=vllm,deepspeed,lora,tensorboard
RUN git --version && cc --version && ${PYTHON} -c 'import sys; sys.exit(sys.version_info < (3, 11, 5) and \
    "Python " + sys.version.split()[0] + " is too old: --build-arg BASE=... names an image with 3.11.5 or later")'
RUN echo 'spo:x:1000:1000::/home/spo:/bin/sh' >> /etc/passwd && mkdir -p /home/spo /spo/project \
    && chown 1000:1000 /home/spo /spo /spo/project

WORKDIR /spo/project
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# what changes least comes first: a change of the code makes the last layer alone
COPY constraints/evaluate.txt constraints/evaluate.in constraints/
RUN ${PYTHON} -m venv /opt/spo/.venv-evaluate \
    && /opt/spo/.venv-evaluate/bin/python -m pip install --quiet -c constraints/evaluate.txt torch \
    && /opt/spo/.venv-evaluate/bin/python -m pip install --quiet -c constraints/evaluate.txt -r constraints/evaluate.in
COPY constraints/main.txt constraints/
RUN ${PYTHON} -m venv /opt/spo/.venv \
    && /opt/spo/.venv/bin/python -m pip install --quiet -c constraints/main.txt torch
COPY pyproject.toml ./
# an editable install puts the folder on the path only where its packages have a file each
RUN touch README.md && mkdir flows tasks spo_core && touch flows/__init__.py tasks/__init__.py spo_core/__init__.py \
    && /opt/spo/.venv/bin/python -m pip install --quiet -c constraints/main.txt -e ".[${EXTRAS}]"
COPY --chown=1000:1000 . .

USER 1000:1000
ENV HOME=/home/spo USER=spo PATH=/opt/spo/.venv/bin:${PATH} SPO_EVAL_PYTHON=/opt/spo/.venv-evaluate/bin/python
# as make worker; a pod of Kubernetes is given Prefect's own command
CMD ["python", "-m", "flows.worker"]
