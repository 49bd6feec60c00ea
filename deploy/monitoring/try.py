#!/usr/bin/env python3
"""A real Prometheus scrapes a real server with the configuration, alerts and dashboard of this folder.

    cargo build --release && deploy/monitoring/try.py

Answers are asked for meanwhile. Then every rule has to be evaluated without an error, every expression of the dashboard has to give numbers,
and when the server is killed BitnetDown has to be pending. Needs prometheus and promtool (Debian: prometheus); otherwise it says `skipped`
and ends with 0.

BINARY      default target/release/bitnet-launch
PROMETHEUS  folder of prometheus and promtool, default: PATH
"""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
BINARY = os.environ.get("BINARY", str(HERE.parent.parent / "target/release/bitnet-launch"))
PATH = os.environ.get("PROMETHEUS", os.environ.get("PATH"))
# Whether these are there depends on the machine: a counter of energy, a CPU quota.
MACHINES_OWN = ("bitnet_energy_joules_total", "bitnet_quota_throttled_seconds_total")
LOAD_S = 15


def ask(url, body=None):
    data = json.dumps(body).encode() if body is not None else None
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=60) as reply:
        return json.load(reply)


def query(prometheus, expression):
    reply = ask(f"{prometheus}/api/v1/query?" + urllib.parse.urlencode({"query": expression}))
    return reply["data"]["result"]


def until(what, found, seconds=60):
    deadline = time.time() + seconds
    while time.time() < deadline:
        try:
            value = found()
            if value:
                return value
        except OSError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"waited in vain for {what}")


def start_server(work):
    log = work / "server.log"
    command = [BINARY, "serve", "--port", "0", "--parallel", "2", "--max-queue", "8"]
    process = subprocess.Popen(command, stderr=open(log, "wb"))
    found = until("the server", lambda: re.search(r"listening on http://(127.0.0.1:\d+)", log.read_text()))
    return process, found[1]


def start_prometheus(work, address):
    text = (HERE / "prometheus.yml").read_text()
    text = text.replace("bitnet:8081", address).replace("_interval: 15s", "_interval: 1s")
    (work / "prometheus.yml").write_text(text)
    shutil.copy(HERE / "alerts.yml", work)
    log = work / "prometheus.log"
    command = [shutil.which("prometheus", path=PATH), f"--config.file={work}/prometheus.yml", f"--storage.tsdb.path={work}/data",
               "--web.listen-address=127.0.0.1:19090"]
    process = subprocess.Popen(command, stderr=open(log, "wb"), stdout=subprocess.DEVNULL)
    url = "http://127.0.0.1:19090"
    until("Prometheus", lambda: query(url, "up"))
    return process, url


def load(address, seconds):
    """More clients than slots, so that some wait; the same beginning, so that some of it is cached; one is refused."""
    deadline = time.time() + seconds

    def client(number):
        round_ = 0
        while time.time() < deadline:
            round_ += 1
            body = {"prompt": f"Once upon a time there was a king. {number} {round_}", "n_predict": 24, "ignore_eos": True}
            ask(f"http://{address}/completion", body)

    clients = [threading.Thread(target=client, args=(number,)) for number in range(4)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()


def expressions():
    dashboard = json.loads((HERE / "grafana/dashboards/bitnet.json").read_text())
    for panel in dashboard["panels"]:
        for inner in [panel, *panel.get("panels", [])]:
            for target in inner.get("targets", []):
                text = target["expr"].replace("$instance", ".*").replace("$__rate_interval", "10s").replace("$__interval", "10s")
                assert "$" not in text, f"not known here: {text}"
                yield inner["title"], text


def check_dashboard(prometheus):
    count = absent = 0
    for title, expression in expressions():
        result = query(prometheus, expression)
        numbers = [value for value in (series["value"][1] for series in result) if value != "NaN"]
        if not numbers and any(name in expression for name in MACHINES_OWN):
            print(f"not on this machine: {title}: {expression}")
            absent += 1
            continue
        assert numbers, f"no numbers: {title}: {expression}: {result}"
        count += 1
    print(f"passed: dashboard, {count} expressions give numbers, {absent} have none on this machine")


def check_rules(prometheus):
    groups = ask(f"{prometheus}/api/v1/rules")["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    bad = [(rule["name"], rule.get("lastError")) for rule in rules if rule["health"] != "ok"]
    assert rules and not bad, f"rules that can't be evaluated: {bad}"
    firing = [rule["name"] for rule in rules if rule["state"] != "inactive"]
    assert not firing, f"alerts of a server that is well: {firing}"
    print(f"passed: {len(rules)} alerts evaluated, none of a server that is well")


def main():
    tools = [shutil.which(tool, path=PATH) for tool in ("prometheus", "promtool")]
    if not all(tools):
        return print("skipped: prometheus or promtool is missing")
    work = pathlib.Path(tempfile.mkdtemp(prefix="monitoring-"))
    running = []
    try:
        subprocess.run([tools[1], "check", "config", str(HERE / "prometheus.yml")], check=True, stdout=subprocess.DEVNULL)
        subprocess.run([tools[1], "test", "rules", str(HERE / "alerts_test.yml")], check=True, stdout=subprocess.DEVNULL)
        server, address = start_server(work)
        running.append(server)
        prometheus, url = start_prometheus(work, address)
        running.append(prometheus)
        until("a scrape", lambda: [series for series in query(url, 'up{job="bitnet"}') if series["value"][1] == "1"])
        load(address, LOAD_S)
        time.sleep(1.5)
        check_dashboard(url)
        until("the rules", lambda: all(rule["health"] == "ok" for group in ask(f"{url}/api/v1/rules")["data"]["groups"] for rule in group["rules"]))
        check_rules(url)
        server.send_signal(signal.SIGKILL)
        until("BitnetDown", lambda: [alert for alert in ask(f"{url}/api/v1/alerts")["data"]["alerts"] if alert["labels"]["alertname"] == "BitnetDown"])
        print("passed: a killed server is noticed")
        shutil.rmtree(work)
    except BaseException:
        print(f"logs are in {work}", file=sys.stderr)
        raise
    finally:
        for process in running:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
