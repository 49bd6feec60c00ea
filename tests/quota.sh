#!/bin/sh
# What the plan's thread count is worth under a CPU quota: in real containers with several --cpus and cpusets, the threads
# chosen and the decode speed with them, beside the speed with as many threads as CPUs are visible.
#
#     cargo build --release && tests/quota.sh MODEL.gguf
#
# CONTAINER_ENGINE   docker (default) or podman; may hold options, e.g. "podman --runtime runc"
# RUN_ARGS           more arguments of `run`, e.g. "--network host --ulimit nofile=1024:2048"
# IMAGE              an image with the C library, default debian:bookworm-slim
# BINARY             default target/release/bitnet-launch
# QUOTAS, CPUSETS    default "0.5 1 1.5 2" and "0 0-1"
# BENCH_ARGS         default "-p 64 -d 0 -n 24 --slots 0 --rounds 3 --quick"
#
# Prints one line per limit. Both speeds of a line come from one run in interleaved rounds.
set -eu

model=${1:?usage: tests/quota.sh MODEL.gguf}
engine=${CONTAINER_ENGINE:-docker}
image=${IMAGE:-debian:bookworm-slim}
here=$(cd "$(dirname "$0")/.." && pwd)
binary=$(realpath "${BINARY:-$here/target/release/bitnet-launch}")
model=$(realpath "$model")
bench=${BENCH_ARGS:--p 64 -d 0 -n 24 --slots 0 --rounds 3 --quick}

# row TITLE LIMIT...
row() {
    title=$1
    shift
    # shellcheck disable=SC2086 # several words on purpose
    $engine run --rm ${RUN_ARGS:-} "$@" \
        -v "$binary:/usr/local/bin/bitnet-launch:ro" -v "$model:/model.gguf:ro" "$image" \
        bitnet-launch bench -m /model.gguf --threads auto,N $bench --csv --quiet >"$work/csv"
    awk -F, -v title="$title" '
        $4 ~ /^decode at/ && $5 == "tok/s" {
            n++
            threads[n] = $2
            speed[n] = sprintf("%.1f (%.1f-%.1f)", $6, $7, $8)
            median[n] = $6
        }
        END {
            if (n == 1) {
                threads[2] = threads[1]
                speed[2] = "the same"
                median[2] = median[1]
            }
            printf "%-22s %7d %22s %9d %22s %7.2f\n", title, threads[1], speed[1], threads[2], speed[2], median[1] / median[2]
        }' "$work/csv"
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

printf '%-22s %7s %22s %9s %22s %7s\n' limit threads 'decode tok/s' visible 'decode tok/s' ratio
for quota in ${QUOTAS:-0.5 1 1.5 2}; do
    row "--cpus $quota" --cpus "$quota"
done
for set in ${CPUSETS:-0 0-1}; do
    row "--cpuset-cpus $set" --cpuset-cpus "$set"
done
