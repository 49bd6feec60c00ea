#!/bin/sh
# Starts docker-compose.yml as it is, from a folder of its own: without a model, then with one in ./models. Each time it has to become healthy,
# answer, run the scripts of earlier images, and end within its grace period.
#
#     docker compose build && tests/compose.sh
#
# Without compose it says "skipped: ..." and ends with 0; so it does where a container named bitnet-server is there already.
#
# COMPOSE         default "docker compose"; or podman-compose, which may hold options
# ENGINE          docker or podman, for logs and states; may hold options
# IMAGE           default bitnet-launch:latest
# PORT            port on this machine, default 18082
# OVERRIDE        a second compose file, for what only this machine needs
set -eu

compose=${COMPOSE:-docker compose}
engine=${ENGINE:-docker}
export PORT="${PORT:-18082}"
url=http://127.0.0.1:$PORT
here=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
chmod 755 "$work"

main() {
    command -v ${compose%% *} >/dev/null && $compose version >/dev/null 2>&1 || skip "no $compose here"
    ! $engine inspect bitnet-server >/dev/null 2>&1 || skip "a container named bitnet-server is there"
    trap finish EXIT
    trap 'exit 130' INT TERM
    mkdir "$work/models"
    sed "s|image: bitnet-launch:latest|image: ${IMAGE:-bitnet-launch:latest}|" "$here/docker-compose.yml" >"$work/docker-compose.yml"
    # Older podmans don't know it.
    case $compose in podman*) sed -i /start_interval/d "$work/docker-compose.yml" ;; esac
    cd "$work"
    check "no model" bitnet-demo.gguf
    cp "$here/engine/model/tests/data/hf_bitnet.gguf" models/test.gguf
    chmod -R a+rX models
    check "a model in ./models" test.gguf
    echo ok
}

# check TITLE MODEL
check() {
    files up -d --no-build bitnet >"$work/log" 2>&1 || fail "$1: $(cat "$work/log")"
    for _ in $(seq 150); do
        curl -sf --max-time 2 "$url/health" >"$work/health" && break
        sleep 0.2
    done
    grep -q "\"model\":\"$2\"" "$work/health" || fail "$1: /health says $(cat "$work/health")"
    curl -sS --max-time 60 "$url/completion" -d '{"prompt":"Once upon a time","n_predict":8}' | grep -q '"content":' || fail "$1: no answer"
    for script in detect_cpu select_kernel; do
        $engine exec bitnet-server /app/scripts/$script.sh >"$work/log" 2>&1 || fail "$1: $script.sh: $(cat "$work/log")"
    done
    $engine exec bitnet-server /app/scripts/benchmark.sh -p 16 -n 8 --rounds 1 >"$work/log" 2>&1 || fail "$1: benchmark.sh: $(cat "$work/log")"
    [ "$($engine inspect -f '{{.HostConfig.RestartPolicy.Name}}' bitnet-server)" = unless-stopped ] || fail "$1: no restart policy"
    began=$(date +%s)
    files down >/dev/null 2>&1
    [ $(($(date +%s) - began)) -le 14 ] || fail "$1: it took longer than its grace period to end"
    echo "passed: $1"
}

# files ARGUMENTS: compose with its file, and the override
files() {
    $compose -f docker-compose.yml ${OVERRIDE:+-f "$OVERRIDE"} "$@"
}

finish() {
    status=$?
    [ $status = 0 ] || $engine logs bitnet-server 2>&1 | tail -n 40 || true
    files down >/dev/null 2>&1 || true
    rm -rf "$work"
    exit $status
}

skip() {
    rm -rf "$work"
    echo "skipped: $1"
    exit 0
}

fail() {
    echo "FAILED: $1" >&2
    exit 1
}

main
