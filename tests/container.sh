#!/bin/sh
# Checks a container image from outside, on one CPU and 512 MB:
#
#     docker build -t bitnet-launch . && tests/container.sh bitnet-launch
#
# First without a model (the demo answers), then with a GGUF mounted at /app/models, then at /models as earlier compose files do,
# then called as llama-server.
# Each time: healthy within 30 s, the health check inside the container and the scripts of earlier images answer, the log tells of the CPU
# quota, it serves the model that was mounted, /completion answers, and SIGTERM ends it with exit code 0 within 5 s.
# Then health states (healthy, and unhealthy while it drains), and a restart policy after SIGKILL. Without a container engine it says
# "skipped: ..." and ends with 0.
#
# CONTAINER_ENGINE   docker (default) or podman; may hold options, e.g. "podman --runtime runc"
# RUN_ARGS           more arguments of `run`, e.g. "--network host -e HOST=127.0.0.1"
# PORT               port on this machine, default 18081
# HOST               address to listen on for the run as llama-server, default 0.0.0.0
# MODEL              a GGUF file to mount, default a tiny one from this repository
set -eu

image=${1:?usage: tests/container.sh IMAGE}
engine=${CONTAINER_ENGINE:-docker}
port=${PORT:-18081}
url=http://127.0.0.1:$port
name=bitnet-container-test-$$
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
chmod 755 "$work"

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

main() {
    # shellcheck disable=SC2086 # may hold options
    command -v ${engine%% *} >/dev/null || {
        echo "skipped: no ${engine%% *} here"
        exit 0
    }
    mkdir "$work/models"
    cp "${MODEL:-$here/../engine/model/tests/data/hf_bitnet.gguf}" "$work/models/test.gguf"
    chmod -R a+rX "$work/models"
    check "no model: the demo answers"
    check "a model at /app/models" -v "$work/models:/app/models:ro"
    check "a model at /models, named" -v "$work/models:/models:ro" -e MODEL_PATH=/models/test.gguf
    check "called as llama-server" -v "$work/models:/app/models:ro" --entrypoint llama-server \
        -- -m /app/models/test.gguf --host "${HOST:-0.0.0.0}" --port "$port" -c 256
    check_refusal
    check_health_states
    check_restart
    check_size
    echo "ok: $image"
}

# check TITLE [RUN ARGUMENTS] [-- PROGRAM ARGUMENTS]
check() {
    title=$1
    shift
    start "$@"
    wait_healthy
    $engine exec "$name" bitnet-launch health >/dev/null || fail "$title: the health check inside the container failed"
    $engine logs "$name" >"$work/log" 2>&1
    check_scripts
    grep -qi quota "$work/log" || fail "$title: the log does not mention the CPU quota"
    grep -q "Auto-configured threads: 1 " "$work/log" || fail "$title: not one thread on one CPU"
    if [ $# -gt 0 ]; then
        curl -sS --max-time 5 "$url/health" | grep -q '"model":"test.gguf"' || fail "$title: it serves another model"
    fi
    curl -sS --max-time 60 "$url/completion" -d '{"prompt":"Once upon a time","n_predict":8}' >"$work/answer"
    grep -q '"content":' "$work/answer" || fail "$title: /completion answered $(cat "$work/answer")"
    stop
    echo "passed: $title"
}

# Called as the old documents do.
check_scripts() {
    $engine exec "$name" /app/scripts/detect_cpu.sh >"$work/script" 2>&1 || fail "$title: detect_cpu.sh: $(cat "$work/script")"
    $engine exec "$name" /app/scripts/select_kernel.sh >"$work/script" 2>&1 || fail "$title: select_kernel.sh: $(cat "$work/script")"
    grep -q "Auto-selected kernel" "$work/script" || fail "$title: select_kernel.sh said $(cat "$work/script")"
    $engine exec "$name" /app/scripts/benchmark.sh --help >/dev/null || fail "$title: benchmark.sh"
    $engine exec "$name" /app/scripts/setup_model.sh --help >/dev/null || fail "$title: setup_model.sh"
    $engine exec "$name" /app/scripts/start.sh --version >/dev/null || fail "$title: start.sh"
}

check_health_states() {
    title="health states"
    start --health-interval 1s --health-retries 2 --health-start-period 1s
    wait_healthy
    wait_state healthy
    curl -sS -X POST --max-time 5 "$url/drain" >/dev/null
    wait_state unhealthy
    $engine rm -f "$name" >/dev/null
    echo "passed: $title: healthy, and unhealthy while it drains"
}

# Podman has no timer of its own without systemd, and older ones keep to the image's times: what its check says now is its state.
wait_state() {
    for _ in $(seq 60); do
        case $engine in
        podman*) if $engine healthcheck run "$name" >/dev/null 2>&1; then state=healthy; else state=unhealthy; fi ;;
        *) state=$($engine inspect -f '{{.State.Health.Status}}' "$name") ;;
        esac
        [ "$state" = "$1" ] && return
        sleep 0.5
    done
    fail "$title: not $1 after 30 s; podman and buildah keep the image's HEALTHCHECK with \`--format docker\` only"
}

check_restart() {
    title="restart policy"
    start --restart unless-stopped
    wait_healthy
    pid=$($engine inspect -f '{{.State.Pid}}' "$name")
    if ! kill -9 "$pid" 2>/dev/null; then
        echo "skipped: $title: process $pid of the container can't be killed from here"
    else
        for _ in $(seq 100); do
            [ "$($engine inspect -f '{{.RestartCount}}' "$name")" = 0 ] || break
            sleep 0.2
        done
        wait_healthy
        [ "$($engine inspect -f '{{.RestartCount}}' "$name")" -ge 1 ] || fail "$title: not started again after SIGKILL"
        echo "passed: $title: serves again after SIGKILL"
    fi
    $engine rm -f "$name" >/dev/null
}

check_size() {
    bytes=$($engine image inspect -f '{{.Size}}' "$image")
    [ "$bytes" -lt 30000000 ] || fail "the image has $bytes bytes"
    echo "passed: the image has $bytes bytes"
}

check_refusal() {
    title="a path that does not exist is refused"
    code=0
    run --rm -e MODEL_PATH=/app/models/none.gguf "$image" >"$work/log" 2>&1 || code=$?
    [ "$code" = 1 ] || fail "$title: exit code $code"
    grep -q "none.gguf" "$work/log" || fail "$title: the message does not name the file: $(cat "$work/log")"
    echo "passed: $title"
}

start() {
    before=
    while [ $# -gt 0 ] && [ "$1" != -- ]; do
        before="$before $1"
        shift
    done
    [ $# -eq 0 ] || shift
    # shellcheck disable=SC2086 # no argument above holds a blank
    run -d --name "$name" --cpus 1 --memory 512m --read-only --cap-drop ALL --security-opt no-new-privileges \
        -p "127.0.0.1:$port:$port" -e PORT="$port" $before "$image" "$@" >/dev/null
}

# shellcheck disable=SC2086 # both may hold several words
run() {
    $engine run ${RUN_ARGS:-} "$@"
}

wait_healthy() {
    for _ in $(seq 150); do
        if curl -sf --max-time 2 "$url/health" >/dev/null; then
            return
        fi
        [ "$($engine inspect -f '{{.State.Running}}' "$name")" = true ] || fail "$title: it ended"
        sleep 0.2
    done
    fail "$title: not healthy after 30 s"
}

stop() {
    $engine stop -t 5 "$name" >/dev/null
    code=$($engine inspect -f '{{.State.ExitCode}}' "$name")
    [ "$code" = 0 ] || fail "$title: exit code $code after SIGTERM (137: it took longer than 5 s)"
    $engine rm "$name" >/dev/null
}

fail() {
    echo "FAILED: $1" >&2
    exit 1
}

main
