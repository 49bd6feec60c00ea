# syntax=docker/dockerfile:1
# Builds bitnet-launch and puts the one binary on a small Debian. It picks its kernels when it starts, so one image fits every
# x86-64 (or arm64) machine. Models are mounted, not baked in; without one it serves the demo model inside the binary.
#
#     docker build -t bitnet-launch .
#     docker run --rm -p 8081:8081 -v ./models:/app/models:ro bitnet-launch

ARG RUST_IMAGE=rust:1-bookworm
ARG RUNTIME_IMAGE=debian:bookworm-slim

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
RUN find . -name '*.rs' -not -path './target/*' -exec touch {} + \
 && cargo build --release --locked \
 && install -D target/release/bitnet-launch /image/usr/local/bin/bitnet-launch \
 && strip --strip-debug /image/usr/local/bin/bitnet-launch \
 && ln -s bitnet-launch /image/usr/local/bin/llama-server \
 && mkdir -p /image/app/models \
 && ln -s app/models /image/models

# Nothing runs in this stage, so any image with glibc and libgcc will do, one without a shell included.
FROM ${RUNTIME_IMAGE}
LABEL org.opencontainers.image.title="bitnet-launch" \
      org.opencontainers.image.description="Runs BitNet b1.58 language models on CPUs behind llama-server's HTTP API" \
      org.opencontainers.image.licenses="MIT"
COPY --from=build /image /
COPY LICENSE /usr/share/doc/bitnet-launch/

# /models, where earlier compose files mount their models, leads to /app/models.
ENV HOST=0.0.0.0 \
    PORT=8081 \
    MODEL_PATH=/app/models
EXPOSE 8081
USER 10001:10001
WORKDIR /app
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 CMD ["bitnet-launch", "health"]
ENTRYPOINT ["bitnet-launch"]
