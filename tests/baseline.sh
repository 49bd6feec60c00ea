#!/bin/sh
# One x86-64 binary for every machine: runs it under qemu's user-mode emulation on CPUs that lack what this one may have.
#
#     cargo build --release && tests/baseline.sh
#
# Nehalem is x86-64-v2 (SSE4.2, no AVX): the scalar kernel; Haswell is x86-64-v3: AVX2. The perplexity of the demo model on a short text must
# be the same as here, to the last digit. Says "skipped: ..." when qemu-x86_64 (Debian: qemu-user) is missing, or elsewhere than on x86-64.
#
# BINARY   default target/release/bitnet-launch
set -eu
cd "$(dirname "$0")/.."
binary=${BINARY:-target/release/bitnet-launch}

skip() {
    echo "skipped: $1"
    exit 0
}

[ "$(uname -m)" = x86_64 ] || skip "no x86-64 machine"
command -v qemu-x86_64 >/dev/null || skip "no qemu-x86_64"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for _ in $(seq 60); do printf 'Once upon a time there was a king. '; done >"$work/text"

# perplexity COMMAND: the number and the kernel
perplexity() {
    "$@" perplexity demo/bitnet-demo.gguf "$work/text" --ctx 64 --chunks 2 2>/dev/null |
        sed -n 's/^perplexity \([0-9.]*\) .* scored, \([^,]*\),.*/\1 \2/p'
}

here=$(perplexity "$binary")
echo "here:    $here"
for pair in Nehalem:i2_s/scalar Haswell:i2_s/avx2; do
    cpu=${pair%%:*}
    found=$(perplexity qemu-x86_64 -cpu "$cpu" "$binary")
    echo "$cpu: $found"
    [ "$found" = "${here%% *} ${pair##*:}" ] || {
        echo "failed: expected ${here%% *} ${pair##*:}" >&2
        exit 1
    }
done
echo ok
