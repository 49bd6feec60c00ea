#!/bin/sh
# lm-eval's own command with its `local-completions` model, against a running server:  tests/clients/lm_eval/run.sh [URL]
# LM_EVAL names the program; without it, it is installed from PyPI under the cache directory at the first run. The task is local,
# and so is the tokenizer: the server's. Exit code 1 unless all three answers are found.
set -eu
cd "$(dirname "$0")"
url=${1:-http://127.0.0.1:8081}
cache=${CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bitnet-launch-tests/lm-eval}
if [ -z "${LM_EVAL:-}" ]; then
    LM_EVAL=$cache/bin/lm_eval
    [ -x "$LM_EVAL" ] || { python3 -m venv "$cache" && "$cache/bin/pip" install --quiet 'lm_eval[api]'; }
fi
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
HF_HUB_OFFLINE=1 HF_DATASETS_CACHE=$out/data "$LM_EVAL" run --model local-completions \
    --model_args "model=bitnet,base_url=$url/v1/completions" \
    --tasks demo_choice --include_path . --output_path "$out/results.json" >"$out/log" 2>&1 || { cat "$out/log"; exit 1; }
grep '^|' "$out/log"
grep -q 'demo_choice|.*|acc *|↑ *| *1|' "$out/log" || { echo "FAILED lm-eval: not all answers were found"; exit 1; }
echo "ok     lm-eval: local-completions"
