#!/bin/sh
# Compiles for AArch64 and runs the tests of kernels and model under qemu's user-mode emulation, on an x86-64 Linux machine:
#
#     tests/aarch64.sh            # kernels on three CPU models, the model on `max`, which has every instruction set
#     tests/aarch64.sh --serve    # and the demo model, served: the same tokens as on this machine
#     tests/aarch64.sh --install  # first the tools, by apt and rustup: Debian, as root
#
# Emulation tells whether results are right, not how fast anything is. Says "skipped: ..." when a tool is missing.
#
# CARGO_TARGET_DIR   where to build, default target/
set -eu

target=aarch64-unknown-linux-gnu
cd "$(dirname "$0")/.."
PATH=$PATH:$HOME/.cargo/bin
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=qemu-aarch64

main() {
    serve=no
    for argument in "$@"; do
        case $argument in
        --install) install ;;
        --serve) serve=yes ;;
        *)
            echo "usage: tests/aarch64.sh [--install] [--serve]" >&2
            exit 2
            ;;
        esac
    done
    check_tools
    tables=tl1/neon,tl1/scalar,tl2/neon,tl2/scalar
    kernels max "i2_s/neon_i8mm,i2_s/neon_dotprod,i2_s/neon,i2_s/scalar,$tables"
    kernels neoverse-n1 "i2_s/neon_dotprod,i2_s/neon,i2_s/scalar,$tables"
    kernels cortex-a72 "i2_s/neon,i2_s/scalar,$tables"
    echo "== the model on max"
    QEMU_CPU=max cargo test -q --target $target -p bitnet-model
    if [ $serve = yes ]; then
        serve_demo
    fi
    echo "ok"
}

install() {
    dpkg --add-architecture arm64
    apt-get update
    if command -v rustup >/dev/null; then
        rust=
        rustup target add $target
    else
        rust="rustc-web cargo-web libstd-rust-web-dev:arm64"
    fi
    # shellcheck disable=SC2086
    apt-get install -y --no-install-recommends \
        qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross libc6:arm64 $rust
}

check_tools() {
    command -v qemu-aarch64 >/dev/null || skip "no qemu-aarch64"
    command -v aarch64-linux-gnu-gcc >/dev/null || skip "no aarch64-linux-gnu-gcc"
    command -v cargo >/dev/null || skip "no cargo"
    # The C library of the cross compiler's sysroot hangs in qemu 7.2 at the first thread.
    [ -e /lib/ld-linux-aarch64.so.1 ] || skip "no AArch64 C library"
    [ -d "$(rustc --target $target --print target-libdir)" ] || skip "no Rust standard library for $target"
}

skip() {
    echo "skipped: $1; \`tests/aarch64.sh --install\` installs it on Debian"
    exit 0
}

# kernels CPU-MODEL KERNELS-IT-SHOULD-GET
kernels() {
    echo "== kernels on $1: $2"
    # The two left out count rows of screened heads, over tens of millions of random numbers: many minutes here, and nothing that
    # depends on the instruction set.
    EXPECTED_KERNELS=$2 QEMU_CPU=$1 cargo test -q --target $target -p bitnet-kernels -- \
        --skip no_row_of_the_top_k_is_missed --skip few_rows_are_left_of_many
}

# The server starts its engine by running its own file, which only works where the system knows what to do with an AArch64
# program: a namespace of our own is told.
serve_demo() {
    echo "== the demo model, served on max"
    command -v curl >/dev/null || skip "no curl"
    # shellcheck disable=SC2016
    told='mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc && printf %s "$0" >/proc/sys/fs/binfmt_misc/register && exec "$@"'
    head='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
    mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
    rule=":qemu-aarch64:M::$head:$mask:$(command -v qemu-aarch64):"
    if ! unshare -Umr sh -c "$told" "$rule" true 2>/dev/null; then
        echo "skipped: no namespace with binfmt_misc"
        return
    fi
    cargo build -q --bin bitnet-launch
    cargo build -q --target $target --bin bitnet-launch
    build=${CARGO_TARGET_DIR:-target}
    here=$(tokens "$build/debug/bitnet-launch")
    there=$(QEMU_CPU=max tokens unshare -Umr sh -c "$told" "$rule" "$build/$target/debug/bitnet-launch")
    echo "here:     $here"
    echo "emulated: $there"
    [ "$here" = "$there" ] || fail "the tokens differ"
}

# tokens COMMAND: what the demo model says when the server is started so, as token ids
tokens() {
    log=$(mktemp)
    "$@" --host 127.0.0.1 --port 0 >/dev/null 2>"$log" &
    server=$!
    url=
    for _ in $(seq 300); do
        url=$(sed -n 's/.*listening on \(http:[0-9.:/]*\).*/\1/p' "$log" | head -n 1)
        [ -n "$url" ] && curl -sf -o "$log.health" "$url/health" && break
        kill -0 $server 2>/dev/null || break
        sleep 0.2
    done
    grep -o 'Auto-selected kernel.*' "$log" >&2 || true
    request='{"prompt": "Once upon a time", "n_predict": 48, "temperature": 0, "return_tokens": true}'
    curl -sf "$url/completion" -d "$request" | grep -o '"tokens":\[[0-9,]*\]' || {
        cat "$log" >&2
        kill $server
        fail "no answer"
    }
    kill $server
    wait $server || true
    rm -f "$log" "$log.health"
}

fail() {
    echo "failed: $1" >&2
    exit 1
}

main "$@"
