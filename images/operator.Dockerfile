# The operator, over any root file system that has a C library at least as new as the one it was built with.
#
#   make wheel
#   docker build --file images/operator.Dockerfile --tag registry.internal/ebbtide/operator .tools/bin
ARG BASE=debian:bookworm-slim
FROM ${BASE}
COPY --chmod=755 ebbtide-operator /usr/bin/ebbtide-operator
USER 65532:65532
ENTRYPOINT ["ebbtide-operator"]
