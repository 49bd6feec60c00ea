#!/bin/sh
# The page in a real browser:  tests/browser/run.sh [part of a test's name]
# BITNET_LAUNCH names the program (default: the debug build), CHROMIUM the browser. playwright-core is installed from npm under
# the cache directory at the first run; NO_INSTALL=1 skips the test instead.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
: "${BITNET_LAUNCH:=$here/../../target/debug/bitnet-launch}"
: "${CHROMIUM:=$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)}"
: "${PLAYWRIGHT:=${XDG_CACHE_HOME:-$HOME/.cache}/bitnet-launch-tests/browser}"
skip() { echo "skipped: $1"; exit 0; }
[ -n "$CHROMIUM" ] || skip "no chromium here (CHROMIUM names another place)"
command -v node >/dev/null || skip "no node here"
if [ ! -d "$PLAYWRIGHT/node_modules/playwright-core" ]; then
    [ -z "${NO_INSTALL:-}" ] || skip "no playwright-core here (tests/browser/run.sh installs it)"
    mkdir -p "$PLAYWRIGHT"
    (cd "$PLAYWRIGHT" && npm install --no-save --no-audit --no-fund --prefix . playwright-core >/dev/null)
fi
[ -f "$PLAYWRIGHT/package.json" ] || echo '{"private":true}' >"$PLAYWRIGHT/package.json"
export BITNET_LAUNCH CHROMIUM PLAYWRIGHT
exec node "$here/page.mjs" "$@"
