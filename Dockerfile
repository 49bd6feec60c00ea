# syntax=docker/dockerfile:1
# Builds bitnet-launch and puts it into an image of its own: the binary, the C library it needs, certificates for `pull`, and a shell for the
# scripts that earlier documents name. It picks its kernels when it starts, so one image fits every machine of its architecture. Models are
# mounted, not baked in; without one it serves the demo model inside the binary.
#
#     docker build -t bitnet-launch --build-arg COMMIT="$(git rev-parse --short=8 HEAD)" .
#     docker build -t bitnet-launch:arm64 --platform linux/arm64 .
#     buildah build --format docker -t bitnet-launch .        (podman, too: its own format has no HEALTHCHECK)
#     docker run --rm -p 8081:8081 -v ./models:/app/models:ro bitnet-launch

ARG RUST_IMAGE=rust:1-bookworm
# Another base, such as gcr.io/distroless/cc-debian12, will do as well: nothing runs while the image is put together.
ARG RUNTIME_IMAGE=scratch

# Always on the machine's own architecture: for another one it cross-compiles, which is many times faster than emulation.
FROM --platform=$BUILDPLATFORM ${RUST_IMAGE} AS build
WORKDIR /build

# Writes the list of all crates into the binary, where `cargo audit bin` and scanners of images read it.
ARG CARGO_AUDITABLE=0.7.7
RUN cargo install cargo-auditable --version "$CARGO_AUDITABLE" --locked --root /usr/local

# The compiler for the other architecture, and what its image will hold, unpacked at /foreign. `docker build --platform linux/arm64` says which.
ARG TARGETARCH=amd64
RUN if [ "$TARGETARCH" = arm64 ] && [ "$(uname -m)" != aarch64 ]; then \
      if command -v rustup >/dev/null; then rustup target add aarch64-unknown-linux-gnu; fi; \
      dpkg --add-architecture arm64 && apt-get update \
      && apt-get install -y --no-install-recommends gcc-aarch64-linux-gnu libc6-dev-arm64-cross \
      && mkdir /debs && cd /debs && apt-get download libc6:arm64 libgcc-s1:arm64 dash:arm64 \
      && for deb in *.deb; do dpkg -x "$deb" /foreign; done \
      && echo aarch64-unknown-linux-gnu >/target; \
    elif [ "$TARGETARCH" = amd64 ] && [ "$(uname -m)" != x86_64 ]; then \
      echo "build linux/amd64 on an x86-64 machine" >&2; exit 1; \
    else \
      mkdir /foreign && ln -s /bin /lib /lib64 /foreign/ 2>/dev/null; \
      rustc -vV | sed -n 's/^host: //p' >/target; \
    fi
ENV CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
    CARGO_TARGET_DIR=/out

# The dependencies are a layer of their own, rebuilt only when a manifest changes: empty crates stand in for ours.
COPY Cargo.toml Cargo.lock ./
COPY engine/kernels/Cargo.toml engine/kernels/
COPY engine/model/Cargo.toml engine/model/
COPY engine/server/Cargo.toml engine/server/
RUN for crate in . engine/*; do \
      mkdir $crate/src $crate/benches && touch $crate/src/lib.rs; \
      for bench in $(grep -A1 '^\[\[bench\]\]' $crate/Cargo.toml | sed -n 's/^name = "\(.*\)"/\1/p'); do touch $crate/benches/$bench.rs; done; \
    done \
 && rm src/lib.rs && echo 'fn main() {}' > src/main.rs \
 && cargo auditable build --release --locked --target "$(cat /target)"

# Cargo compares times: without `touch` our files could look older than their stand-ins.
COPY . .
ARG COMMIT=unknown
RUN find . -name '*.rs' -exec touch {} + \
 && BITNET_COMMIT=$COMMIT cargo auditable build --release --locked --target "$(cat /target)" --bin bitnet-launch \
 && install -D "/out/$(cat /target)/release/bitnet-launch" /image/usr/local/bin/bitnet-launch \
 && case "$(cat /target)" in aarch64*) PATH=/usr/aarch64-linux-gnu/bin:$PATH ;; esac \
 && strip /image/usr/local/bin/bitnet-launch

# What the image holds: the binary, a shell, their loader, and the libraries they name, where the loader looks for them.
RUN cd /image \
 && ln -s bitnet-launch usr/local/bin/llama-server \
 && install -D "$(readlink -f /foreign/bin/dash)" bin/sh \
 && for loader in $(readelf -l usr/local/bin/bitnet-launch | sed -n 's/.*interpreter: \(.*\)\]/\1/p'); do \
      install -D "$(readlink -f "/foreign$loader")" ".$loader"; \
    done \
 && for library in $(readelf -d usr/local/bin/bitnet-launch bin/sh | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' | sort -u); do \
      for found in /foreign/lib/*-linux-gnu*/"$library"; do \
        [ ! -e "$found" ] || install -D "$(readlink -f "$found")" "${found#/foreign/}"; \
      done; \
    done \
 && install -D -m 644 /etc/ssl/certs/ca-certificates.crt etc/ssl/certs/ca-certificates.crt \
 && echo 'bitnet:x:10001:10001::/app:/bin/sh' >etc/passwd \
 && echo 'bitnet:x:10001:' >etc/group \
 && install -D -t app/scripts /build/scripts/*.sh \
 && ln -s scripts/start.sh app/start.sh \
 && install -D -m 644 -t usr/share/doc/bitnet-launch /build/LICENSE \
 && mkdir app/models && ln -s app/models models \
 && install -d -m 1777 tmp

FROM ${RUNTIME_IMAGE}
ARG COMMIT=unknown
ARG VERSION=dev
ARG SOURCE=
LABEL org.opencontainers.image.title="bitnet-launch" \
      org.opencontainers.image.description="Runs BitNet b1.58 language models on CPUs behind llama-server's HTTP API" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${COMMIT}" \
      org.opencontainers.image.source="${SOURCE}"
COPY --from=build /image /

# /models, where earlier compose files mount their models, leads to /app/models.
ENV PATH=/usr/local/bin:/bin \
    HOST=0.0.0.0 \
    PORT=8081 \
    MODEL_PATH=/app/models \
    BITNET_CRASH_LOOP=exit
EXPOSE 8081
USER 10001:10001
WORKDIR /app
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 CMD ["bitnet-launch", "health"]
ENTRYPOINT ["bitnet-launch"]
