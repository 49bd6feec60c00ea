#!/bin/sh
# The requests of the project this one replaces: its documents' curl lines, its web page, its monitor and its speed test.
#   tests/clients/old.sh URL
set -eu
url=$1
failed=0

# check NAME PATTERN TEXT
check() {
    if printf '%s' "$3" | grep -Eq "$2"; then
        echo "ok     $1"
    else
        echo "FAILED $1: $3"
        failed=1
    fi
}

check "curl /health" '"status":"ok"' "$(curl -fs "$url/health")"
check "curl /completion" '"content":"[^"]' "$(curl -fs "$url/completion" -H 'Content-Type: application/json' \
    -d '{"prompt":"Hello","max_tokens":20,"temperature":0.7,"top_k":40,"top_p":0.9,"repeat_penalty":1.1,"n_ctx":2048,"n_batch":512,"n_threads":4}')"
check "curl /chat/completions" '"content":"[^"]' "$(curl -fs "$url/chat/completions" -H 'Content-Type: application/json' \
    -d '{"messages":[{"role":"system","content":"You are helpful."},{"role":"user","content":"Hello"}],"max_tokens":20,"temperature":0.7}')"
check "curl, a stream" '\[DONE\]' "$(curl -fsN "$url/chat/completions" -d '{"messages":[{"role":"user","content":"Hello"}],"max_tokens":8,"stream":true}')"
check "an error has error.message" '"error":\{.*"message":".*"type":"invalid_request_error"' "$(curl -s "$url/chat/completions" -d '{"messages":3}')"

# The page was opened from a file: origin null, a preflight, then JSON.
check "web page: preflight" '[Aa]ccess-[Cc]ontrol-[Aa]llow-[Oo]rigin: null' "$(curl -si -X OPTIONS "$url/completion" -H 'Origin: null' \
    -H 'Access-Control-Request-Method: POST' -H 'Access-Control-Request-Headers: content-type')"
check "web page: /completion" '"content":"[^"]' "$(curl -fs "$url/completion" -H 'Origin: null' -H 'Content-Type: application/json' \
    -d '{"prompt":"Hello","temperature":0.7,"n_predict":16,"stream":false}')"

# The monitor reads /slots with grep.
slots=$(curl -fs "$url/slots")
for part in '"state":[0-9]*' '"id_task":' '"n_ctx":[0-9]*' '"n_decoded":[0-9]*'; do
    check "monitor: /slots has $part" "$part" "$slots"
done

# The speed test counts characters, not bytes, for Content-Length.
check "speed test: /chat/completions" '"completion_tokens":[0-9]' "$(curl -fs "$url/chat/completions" -H 'Content-Type: application/json' \
    -d '{"messages":[{"role":"user","content":"Hello"}],"max_tokens":16,"temperature":0.7,"top_p":0.9,"stream":false}')"
check "speed test: a length too short" '"code":400' "$(curl -s -m 10 "$url/chat/completions" -H 'Content-Type: application/json' \
    -H 'Content-Length: 50' -d '{"messages":[{"role":"user","content":"Grüße, für Zoë"}],"max_tokens":16}')"

# The custom workflow node sends max_tokens to the native route, and its own extras.
check "workflow node: /completion" '"content":"[^"]' "$(curl -fs "$url/completion" -H 'Content-Type: application/json' \
    -d '{"model":"/models/x.gguf","prompt":"Hello","temperature":0.7,"max_tokens":12,"top_p":0.9,"top_k":40,"stream":false,"stop":[],"n_threads":4,"n_gpu_layers":0,"n_ctx":2048,"n_batch":512}')"
check "workflow node: /tokenize" '"tokens":\[[0-9]' "$(curl -fs "$url/tokenize" -H 'Content-Type: application/json' -d '{"content":"Hello"}')"
check "workflow node: /v1/embeddings" '"embedding":\[-?[0-9]' "$(curl -s "$url/v1/embeddings" -d '{"model":"x","input":"Hello"}')"
exit $failed
