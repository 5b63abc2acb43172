# The KV tier and the session records that the workers share.
#   docker build -f deploy/docker/kvstore.Dockerfile -t loopserve/kvstore .      (from the repository's root)

# The build stage is the same text in all three files, so it is built once.
FROM debian:bookworm-slim AS build
ENV DEBIAN_FRONTEND=noninteractive
RUN apt-get update && apt-get install -y --no-install-recommends bash ca-certificates make && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY .ci/ .ci/
RUN apt-get update && .ci/setup && rm -rf /var/lib/apt/lists/*
COPY . .
RUN make build
# Beside each executable, the packages that hold its shared libraries: all that the last stage installs.
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
RUN mkdir /out; for exe in loopserve-router loopserve-worker loopserve-kvstore; do \
      install -s "build/bin/$exe" "/out/$exe"; \
      ldd "/out/$exe" | awk '/=> \//{print $1}' | while read -r lib; do dpkg -S "*/$lib" | cut -d: -f1; done \
        | sort -u > "/out/$exe.packages"; \
    done

FROM debian:bookworm-slim
COPY --from=build /out/loopserve-kvstore.packages /tmp/packages
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive xargs apt-get install -y --no-install-recommends < /tmp/packages \
    && rm -rf /var/lib/apt/lists/* /tmp/packages \
    && install -d -o 65532 -g 65532 /var/lib/loopserve
COPY --from=build /out/loopserve-kvstore /usr/local/bin/
USER 65532:65532
VOLUME /var/lib/loopserve
EXPOSE 8201 8202
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/loopserve-kvstore"]
