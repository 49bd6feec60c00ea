#!/bin/sh
# Clients nobody here wrote, against a running server:  tests/clients/run.sh [URL]
# Without a URL the program named by BITNET_LAUNCH (default: the debug build) is started on a free port. The clients are
# installed from PyPI and npm under the cache directory at the first run. Prints one line per request; exit code 1 if any failed.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
cache=${CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bitnet-launch-tests/clients}
: "${BITNET_LAUNCH:=$here/../../target/debug/bitnet-launch}"
mkdir -p "$cache"

if [ ! -x "$cache/venv/bin/llm" ]; then
    python3 -m venv "$cache/venv"
    "$cache/venv/bin/pip" install --quiet openai anthropic llm requests aiohttp tqdm tenacity numpy jinja2
    # The datasets and torch behind it are not needed to send requests.
    "$cache/venv/bin/pip" install --quiet --no-deps lm-eval
fi
if [ ! -d "$cache/node_modules/openai" ]; then
    [ -f "$cache/package.json" ] || echo '{"private":true,"type":"module"}' >"$cache/package.json"
    (cd "$cache" && npm install --no-audit --no-fund openai @langchain/openai @langchain/core @anthropic-ai/sdk zod >/dev/null)
fi

url=${1:-}
if [ -z "$url" ]; then
    log=$(mktemp)
    "$BITNET_LAUNCH" --host 127.0.0.1 --port 0 2>"$log" &
    pid=$!
    trap 'kill $pid; rm -f "$log"' EXIT
    for _ in $(seq 100); do
        port=$(sed -n 's/.*hostname: 127.0.0.1, port: \([0-9]*\).*/\1/p' "$log" | head -n 1)
        [ -n "$port" ] && curl -fs "http://127.0.0.1:$port/health" >/dev/null && break
        sleep 0.1
    done
    url=http://127.0.0.1:$port
fi

failed=0
"$here/old.sh" "$url" || failed=1
"$cache/venv/bin/python" "$here/python.py" "$url" || failed=1
cp "$here/node.mjs" "$cache/node.mjs"
node "$cache/node.mjs" "$url" || failed=1
LLM_USER_PATH=$(mktemp -d)
export LLM_USER_PATH
cat >"$LLM_USER_PATH/extra-openai-models.yaml" <<YAML
- model_id: bitnet
  model_name: bitnet
  api_base: $url/v1
  api_key_name: bitnet
YAML
if answer=$("$cache/venv/bin/llm" -m bitnet --key none --no-log "Hello" 2>&1) && [ -n "$answer" ]; then
    echo "ok     llm: $answer" | head -n 1
else
    echo "FAILED llm: $answer"
    failed=1
fi
rm -rf "$LLM_USER_PATH"
exit $failed
