# What everything in a cluster runs with: Ebbtide, and the packages that programs import.
#
#   make wheel
#   echo pandas >dist/packages.txt
#   docker build --file images/runtime.Dockerfile --tag registry.internal/team/risk dist
#
# The base has Python with `venv`. An index that asks for a password is named in a pip.conf which leaves nothing in
# the image: --secret id=pip,src=pip.conf
ARG BASE=python:3.11-slim
FROM ${BASE}
RUN --mount=type=bind,target=/context --mount=type=secret,id=pip,target=/etc/pip.conf \
    python3 -m venv /opt/environment && \
    /opt/environment/bin/pip install --no-cache-dir --requirement /context/packages.txt /context/ebbtide-*.whl
ENV PATH=/opt/environment/bin:/usr/local/bin:/usr/bin:/bin
USER 65532:65532
