#!/bin/sh
# Checks what lies in deploy/ with the tools that are there, and says what it skipped:
#
#     deploy/check.sh
#
# kubectl or kustomize and kubernetes-validate (from PyPI), promtool (Debian: prometheus), haproxy (2.4 or later), docker or podman-compose, python3.
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

have() {
    command -v "$1" >/dev/null || { echo "skipped: $2; $1 is missing"; return 1; }
}

render() {
    if command -v kustomize >/dev/null; then kustomize build "$1"; else kubectl kustomize "$1"; fi
}

if command -v kustomize >/dev/null || have kubectl "Kubernetes manifests"; then
    for part in base overlays/2b-4t; do
        render "deploy/kubernetes/$part" >"$work/manifests.yaml"
        grep -c '^kind:' "$work/manifests.yaml" | sed "s|^|deploy/kubernetes/$part: objects: |"
        if have kubernetes-validate "their schemas"; then
            kubernetes-validate --strict --quiet "$work/manifests.yaml"
        fi
    done
    # Operators' own kinds have no schema here, so they are only rendered.
    for part in hpa keda servicemonitor; do
        mkdir -p "$work/$part"
        cp -r "deploy/kubernetes/components/$part" "$work/$part/component"
        printf 'components: [component]\n' >"$work/$part/kustomization.yaml"
        render "$work/$part" >"$work/manifests.yaml"
        if [ "$part" = hpa ] && command -v kubernetes-validate >/dev/null; then
            kubernetes-validate --strict --quiet "$work/manifests.yaml"
        fi
    done
fi
if have promtool "Prometheus configuration and alerts"; then
    promtool check config deploy/monitoring/prometheus.yml
    promtool test rules deploy/monitoring/alerts_test.yml
fi
if have haproxy "HAProxy configuration"; then
    haproxy -c -f deploy/haproxy/haproxy.cfg
fi
if docker compose version >/dev/null 2>&1; then
    docker compose --profile n8n --profile monitoring config --quiet
elif have podman-compose "docker-compose.yml"; then
    podman-compose --profile n8n --profile monitoring config >/dev/null 2>&1
fi
if have python3 "the dashboard's metrics"; then
    # Every metric that dashboard and alerts ask for is one that the server writes.
    python3 - <<'EOF'
import pathlib, re
asked = pathlib.Path("deploy/monitoring/grafana/dashboards/bitnet.json").read_text() + pathlib.Path("deploy/monitoring/alerts.yml").read_text()
names = {re.sub(r"_(bucket|count|sum)$", "", name) for name in re.findall(r"\b(?:bitnet|llamacpp)[_:][a-z_]+", asked)}
source = "".join(path.read_text() for path in pathlib.Path("engine/server/src").rglob("metrics*/*.rs")) + pathlib.Path("engine/server/src/metrics.rs").read_text()
missing = sorted(name for name in names if f'"{name.removeprefix("llamacpp:")}"' not in source)
assert not missing, f"no such metric: {missing}"
print(f"dashboard and alerts: {len(names)} metrics, all written by the server")
EOF
fi
