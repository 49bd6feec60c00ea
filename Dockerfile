# syntax=docker/dockerfile:1
# Builds bitnet-launch and puts it into an image of its own: the binary, the C library it needs, certificates for `pull`, and a shell for the
# scripts that earlier documents name. It picks its kernels when it starts, so one image fits every machine of its architecture. Models are
# mounted, not baked in; without one it serves the demo model inside the binary.
#
#     docker build -t bitnet-launch --build-arg COMMIT="$(git rev-parse --short=8 HEAD)" .
#     docker run --rm -p 8081:8081 -v ./models:/app/models:ro bitnet-launch

ARG RUST_IMAGE=rust:1-bookworm
# Another base, such as gcr.io/distroless/cc-debian12, will do as well: nothing runs while the image is put together.
ARG RUNTIME_IMAGE=scratch

FROM ${RUST_IMAGE} AS build
WORKDIR /build

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
 && cargo build --release --locked

# Cargo compares times: without `touch` our files could look older than their stand-ins.
COPY . .
ARG COMMIT=unknown
RUN find . -name '*.rs' -not -path './target/*' -exec touch {} + \
 && BITNET_COMMIT=$COMMIT cargo build --release --locked \
 && install -D --strip target/release/bitnet-launch /image/usr/local/bin/bitnet-launch

# What the image holds: the binary and the libraries it is linked to, where its loader looks for them.
RUN cd /image \
 && ln -s bitnet-launch usr/local/bin/llama-server \
 && for file in $(ldd usr/local/bin/bitnet-launch | grep -o '/[^ ]*') /bin/sh; do install -D "$(readlink -f "$file")" ".$file"; done \
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
