#!/bin/sh
# Tries a real llama-server behind this program: start, tokens, streams, crashes, standing still, reload, drain, sleep, --exec.
#
#   cargo build --release && tests/external.sh LLAMA_SERVER MODEL.gguf
#
# LLAMA_SERVER: bitnet.cpp's, llama.cpp's or ik_llama.cpp's. MODEL: a file it can run; for llama.cpp for example one made by
# `bitnet-launch convert FILE --outtype tq2_0 -o MODEL.gguf`. Needs curl. BITNET_LAUNCH names another binary of this program.
set -eu

if [ $# -ne 2 ]; then
    sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
engine=$1
model=$2
launch=${BITNET_LAUNCH:-$(dirname "$0")/../target/release/bitnet-launch}
work=$(mktemp -d)
log=$work/log
server=

cleanup() {
    if [ -n "$server" ]; then kill -9 "$server" 2>/dev/null || true; fi
    rm -rf "$work"
}
trap cleanup EXIT

fail() {
    echo "FAILED: $*" >&2
    tail -n 40 "$log" >&2
    exit 1
}

ok() { echo "ok: $*"; }

start() {
    : >"$log"
    echo 'temp = 0.5' >"$work/bitnet.toml"
    "$launch" --config "$work/bitnet.toml" --engine "$engine" -m "$model" --port 0 --ctx-size 1024 --parallel 2 --drain-timeout 60 "$@" 2>"$log" &
    server=$!
    for _ in $(seq 600); do
        port=$(sed -n 's/.*hostname: 127.0.0.1, port: \([0-9]*\).*/\1/p' "$log" | head -n 1)
        if [ -n "$port" ] && [ "$(curl -s -o /dev/null -w '%{http_code}' "http://127.0.0.1:$port/health")" = 200 ]; then
            url=http://127.0.0.1:$port
            return 0
        fi
        kill -0 "$server" 2>/dev/null || fail "it ended before it was ready"
        sleep 0.2
    done
    fail "not ready after two minutes"
}

engines() { sed -n 's/.*engine process \([0-9]*\) started.*/\1/p' "$log"; }

complete() {
    curl -s "$url/completion" -d "{\"prompt\": \"Once upon a time\", \"n_predict\": $1, \"seed\": 1, \"temperature\": 0}"
}

"$launch" --engine "$engine" -m "$model" --check || fail "the plan"
ok "the plan"

start
complete 8 | grep -q '"content"' || fail "no completion"
ok "completion"
curl -s "$url/v1/chat/completions" -d '{"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8}' |
    grep -q '"choices"' || fail "no chat"
ok "chat"
curl -sN "$url/completion" -d '{"prompt": "Once", "n_predict": 12, "stream": true}' >"$work/stream"
[ "$(grep -c '^data: ' "$work/stream")" -ge 3 ] || fail "no stream: $(cat "$work/stream")"
ok "stream"
curl -s "$url/metrics" >"$work/metrics"
grep -q '^bitnet_ready 1' "$work/metrics" || fail "our metrics"
grep -q '^llamacpp:' "$work/metrics" && ok "metrics, the engine's too" || ok "metrics, the engine has none"

curl -s "$url/completion" -d '{"prompt": "Once", "n_predict": 400, "ignore_eos": true, "stream": true}' >"$work/broken" &
client=$!
sleep 0.5
kill -9 "$(engines | tail -n 1)"
wait "$client" || true
if grep -q '"stop":true' "$work/broken"; then
    ok "the stream was done before the engine was killed"
else
    tail -n 2 "$work/broken" | grep -q '"error"' || fail "a broken stream has no error: $(tail -c 300 "$work/broken")"
    ok "a broken stream ends with an error"
fi
complete 8 | grep -q '"content"' || fail "no completion after a kill"
[ "$(engines | wc -l)" = 2 ] || fail "no second engine"
ok "kill -9 of the engine: another one serves, the next request waited"

complete 200 >"$work/waiting" &
client=$!
sleep 0.3
kill -9 "$(engines | tail -n 1)"
wait "$client"
grep -q '"content"' "$work/waiting" || fail "a request that waits was lost: $(cat "$work/waiting")"
ok "kill -9 while an answer is computed: it is computed again"

kill -HUP "$server"
for _ in $(seq 300); do
    grep -q 'reload: nothing has changed' "$log" && break
    sleep 0.2
done
[ "$(engines | wc -l)" = 3 ] || fail "SIGHUP replaced an engine although nothing had changed"
echo 'temp = 0.75' >"$work/bitnet.toml"
for _ in $(seq 300); do
    grep -q 'reload: the new engine serves' "$log" && break
    sleep 0.2
done
[ "$(engines | wc -l)" = 4 ] || fail "no reload"
complete 8 | grep -q '"content"' || fail "no completion after the reload"
ok "a changed settings file: another engine serves"

curl -sN "$url/completion" -d '{"prompt": "Once", "n_predict": 60, "ignore_eos": true, "stream": true}' >"$work/drained" &
client=$!
sleep 0.3
kill "$server"
wait "$client" || fail "the stream was cut"
grep -q '"stop":true' "$work/drained" || fail "the stream has no end: $(tail -c 300 "$work/drained")"
code=0
wait "$server" || code=$?
server=
[ "$code" = 0 ] || fail "exit code $code"
for pid in $(engines); do
    if kill -0 "$pid" 2>/dev/null; then fail "engine $pid is still there"; fi
done
ok "SIGTERM: the answer was finished, exit code 0, no engine left"

start --sleep-idle-seconds 2 --hang-timeout 4
kill -STOP "$(engines | tail -n 1)"
complete 8 | grep -q '"content"' || fail "no completion after the engine stood still"
[ "$(engines | wc -l)" = 2 ] || fail "the engine that stood still was not replaced"
ok "SIGSTOP of the engine: another one serves, the request waited"
for _ in $(seq 100); do
    curl -s "$url/readyz" | grep -q '"is_sleeping":true' && break
    sleep 0.2
done
curl -s "$url/readyz" | grep -q '"is_sleeping":true' || fail "it does not sleep"
curl -s "$url/props" | grep -q '"is_sleeping":true' || fail "nobody remembers /props"
[ "$(engines | wc -l)" = 2 ] || fail "a look at /props woke it"
complete 8 | grep -q '"content"' || fail "no completion after sleep"
[ "$(engines | wc -l)" = 3 ] || fail "nobody woke"
kill "$server"
wait "$server" || fail "exit code after sleep"
server=
ok "sleep, and waking on request"

port=$((20000 + $$ % 20000))
"$launch" --engine "$engine" -m "$model" --exec --port "$port" --ctx-size 1024 --parallel 1 2>"$log" &
server=$!
url=http://127.0.0.1:$port
for _ in $(seq 300); do
    [ "$(curl -s -o /dev/null -w '%{http_code}' "$url/health")" = 200 ] && break
    sleep 0.2
done
complete 4 | grep -q '"content"' || fail "--exec"
[ "$(readlink -f "/proc/$server/exe")" = "$(readlink -f "$engine")" ] || ok "--exec ran a script"
kill -9 "$server"
wait "$server" 2>/dev/null || true
server=
ok "--exec"
echo "all passed"
