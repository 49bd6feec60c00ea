#!/bin/sh
# The units of deploy/systemd under a real systemd, as process 1 of a container: socket activation, readiness, watchdog, reload, ends.
#
#     cargo build --release && tests/systemd.sh
#
# CONTAINER_ENGINE   docker (default) or podman; may hold options, e.g. "podman --runtime runc"
# RUN_ARGS           more arguments of `run`, e.g. "--systemd=always --network host --ulimit nofile=1024:2048"
# IMAGE              an image with systemd and curl, whose C library is not older than this machine's
# BINARY             default target/release/bitnet-launch
# PORT               port inside the container, default 28081
set -eu

if [ "${1:-}" != inside ]; then
    engine=${CONTAINER_ENGINE:-docker}
    port=${PORT:-28081}
    here=$(cd "$(dirname "$0")/.." && pwd)
    binary=$(realpath "${BINARY:-$here/target/release/bitnet-launch}")
    name=bitnet-systemd-test-$$
    trap '$engine rm -f "$name" >/dev/null 2>&1 || true' EXIT
    trap 'exit 130' INT TERM
    units=$here/deploy/systemd
    # shellcheck disable=SC2086 # several words on purpose
    $engine run -d --name "$name" --privileged ${RUN_ARGS:-} -v "$binary:/usr/local/bin/bitnet-launch:ro" \
        -v "$units/bitnet-launch.service:/etc/systemd/system/bitnet-launch.service:ro" \
        -v "$units/bitnet-launch.socket:/etc/systemd/system/bitnet-launch.socket:ro" \
        -v "$here/tests/systemd.sh:/systemd.sh:ro" "${IMAGE:?an image with systemd and curl}" /lib/systemd/systemd >/dev/null
    for _ in $(seq 100); do
        $engine exec "$name" systemctl is-system-running 2>/dev/null | grep -q 'running\|degraded' && break
        sleep 0.2
    done
    $engine exec "$name" sh /systemd.sh inside "$port"
    exit
fi

url=http://127.0.0.1:$2

fail() {
    echo "FAILED: $1" >&2
    systemctl status bitnet-launch.service --no-pager --lines 40 >&2 || true
    exit 1
}

shown() { systemctl show -p "$1" --value bitnet-launch.service; }

# wait_for TITLE COMMAND...
wait_for() {
    title=$1
    shift
    for _ in $(seq 300); do
        "$@" && return
        sleep 0.2
    done
    fail "$title"
}

healthy() { curl -sf --max-time 20 "$url/health" >/dev/null; }
another_process() { [ "$(shown MainPID)" != "$before" ] && [ "$(shown MainPID)" != 0 ]; }

mkdir -p /etc/systemd/system/bitnet-launch.socket.d
printf '[Socket]\nListenStream=\nListenStream=127.0.0.1:%s\n' "$2" >/etc/systemd/system/bitnet-launch.socket.d/port.conf
systemctl daemon-reload
systemd-analyze verify bitnet-launch.service bitnet-launch.socket || fail "systemd-analyze verify"
systemctl start bitnet-launch.socket
[ "$(shown ActiveState)" = inactive ] || fail "it runs before anybody came"
wait_for "not healthy" healthy
wait_for "not active" systemctl -q is-active bitnet-launch.service
shown StatusText | grep -q "serving on $url" || fail "status: $(shown StatusText)"
echo "passed: the first connection starts it, READY=1 and STATUS are heard"

before=$(shown MainPID)
grep -q 'NoNewPrivs:.1' "/proc/$before/status" && grep -q 'CapEff:.0000000000000000' "/proc/$before/status" || fail "it has rights"
engine=$(cat "/proc/$before/task/$before/children" /proc/"$before"/task/*/children | tr ' ' '\n' | grep . | head -n 1)
kill -9 "$engine"
wait_for "not healthy after its engine was killed" healthy
[ "$(shown MainPID)" = "$before" ] && [ "$(shown NRestarts)" = 0 ] || fail "systemd restarted it for an engine"
systemctl reload bitnet-launch.service || fail "reload"
wait_for "not active after the reload" systemctl -q is-active bitnet-launch.service
echo "passed: no rights; a killed engine and a reload are its own business"

kill -9 "$before"
# The port stays with systemd: nobody is refused.
curl -s -o /dev/null --max-time 60 "$url/health" || fail "a client was refused while it was away"
wait_for "no restart" another_process
wait_for "not healthy after the restart" healthy
echo "passed: killed, it is started again, and its port was there all the while"

before=$(shown MainPID)
kill -STOP "$before"
wait_for "no restart by the watchdog" another_process
wait_for "not healthy after the watchdog" healthy
echo "passed: stopped, it is replaced by the watchdog"

systemctl stop bitnet-launch.socket bitnet-launch.service
[ "$(shown Result)" = success ] && [ "$(shown ExecMainStatus)" = 0 ] || fail "its end: $(shown Result)"
echo "ok: systemd $(systemctl --version | sed -n '1s/systemd \([0-9]*\).*/\1/p')"
