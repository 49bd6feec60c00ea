#!/bin/sh
# A real container that runs out of memory while an answer is on its way: the kernel ends the engine, the log says so by the
# control group's counter, the stream goes on with the same text, and the server is the process it was.
#
#     cargo build --release && tests/oom.sh
#
# CONTAINER_ENGINE   docker (default) or podman; may hold options, e.g. "podman --runtime runc"
# RUN_ARGS           more arguments of `run`, e.g. "--network host --ulimit nofile=1024:2048"
# IMAGE              an image with the C library, default debian:bookworm-slim
# BINARY             default target/release/bitnet-launch
# PORT               port on this machine, default 18082
#
# Memory is filled by a file in the container's /dev/shm, which counts as the container's and can't be written elsewhere,
# until the engine is gone. The file is removed after a second, as if another program had ended.
set -eu

engine=${CONTAINER_ENGINE:-docker}
image=${IMAGE:-debian:bookworm-slim}
port=${PORT:-18082}
url=http://127.0.0.1:$port
here=$(cd "$(dirname "$0")/.." && pwd)
binary=$(realpath "${BINARY:-$here/target/release/bitnet-launch}")
name=bitnet-oom-test-$$
work=$(mktemp -d)

finish() {
    status=$?
    if [ $status != 0 ]; then
        $engine logs "$name" 2>&1 | tail -n 40 || true
    fi
    $engine rm -f "$name" >/dev/null 2>&1 || true
    rm -rf "$work"
    exit $status
}
trap finish EXIT
trap 'exit 130' INT TERM

# In the container: grows the file while the engine $1 lives, in steps far smaller than what its end sets free.
fill='head -c 160M /dev/zero >/dev/shm/fill
while grep -q "State:.[RSD]" /proc/$1/status 2>/dev/null; do head -c 256K /dev/zero >>/dev/shm/fill || break; done
sleep 1
rm -f /dev/shm/fill'

main() {
    # shellcheck disable=SC2086 # several words on purpose
    $engine run -d --name "$name" ${RUN_ARGS:-} --memory 256m --memory-swap 256m --shm-size 512m \
        -p "127.0.0.1:$port:$port" -v "$binary:/usr/local/bin/bitnet-launch:ro" "$image" \
        bitnet-launch --host 0.0.0.0 --port "$port" --threads 1 --parallel 1 >/dev/null
    for _ in $(seq 150); do
        curl -sf --max-time 2 "$url/health" >/dev/null && break
        sleep 0.2
    done
    undisturbed=$(ask)
    [ ${#undisturbed} -gt 500 ] || fail "no answer: $undisturbed"

    for round in 1 2 3; do
        for _ in $(seq 12); do ask; done >"$work/answers" &
        client=$!
        pid=$($engine logs "$name" 2>&1 | sed -n 's/.*engine process \([0-9]*\) started.*/\1/p' | tail -n 1)
        $engine exec "$name" sh -c "$fill" fill "$pid"
        wait $client
        [ "$(sort -u "$work/answers")" = "$undisturbed" ] || fail "round $round: other answers: $(cat "$work/answers")"
        [ "$(wc -l <"$work/answers")" = 12 ] || fail "round $round: an answer is missing"
    done

    $engine logs "$name" >"$work/log" 2>&1
    kills=$(grep -c 'ended: .*SIGKILL' "$work/log" || true)
    [ "$kills" -gt 0 ] || fail "no engine was killed"
    grep -q 'ended: signal SIGKILL, out of memory: the kernel killed [1-9][0-9]* of this control group' "$work/log" ||
        fail "the log does not say why, by the control group's counter"
    [ "$($engine inspect -f '{{.State.Running}}' "$name")" = true ] || fail "the server ended"
    curl -sf --max-time 5 "$url/health" >/dev/null || fail "it is not healthy"
    $engine stop -t 5 "$name" >/dev/null
    code=$($engine inspect -f '{{.State.ExitCode}}' "$name")
    [ "$code" = 0 ] || fail "exit code $code after SIGTERM"
    echo "ok: the kernel ended $kills engines for want of memory; all answers as undisturbed"
}

# A long answer, its text alone, on one line.
ask() {
    curl -sS --max-time 60 "$url/completion" -d '{"prompt":"Once upon a time","n_predict":900,"seed":5,
        "ignore_eos":true,"cache_prompt":false,"response_fields":["content"]}'
    echo
}

fail() {
    echo "FAILED: $1" >&2
    exit 1
}

main
