#!/usr/bin/env python3
"""Three servers with different CPU quotas behind deploy/haproxy/haproxy.cfg, each in a network namespace of its own.

    cargo build --release && sudo tests/haproxy.py

Measures each server alone, then the share of requests each gets under load, which has to follow the measured speed; on a busy machine, where
speeds change while they are measured, up to three times. Then, with the load going on: every server is restarted in turn, an engine is killed,
a whole server is killed. No request may fail. At last conversations: they have to stay where their prompt is cached. Needs root, haproxy, ip,
nsenter and control groups; otherwise it says `skipped` and ends with 0.

BINARY     default target/release/bitnet-launch
HAPROXY    default haproxy
MODEL      a GGUF file, default the demo model
QUOTAS     CPUs of the three, default "0.15 0.3 0.6": together less than this machine has, because load and balancer need some, too
SECONDS    of each measurement, default 20
"""

import http.client
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

ROOT = pathlib.Path(__file__).resolve().parent.parent
BINARY = os.environ.get("BINARY", str(ROOT / "target/release/bitnet-launch"))
HAPROXY = os.environ.get("HAPROXY", "haproxy")
QUOTAS = [float(text) for text in os.environ.get("QUOTAS", "0.15 0.3 0.6").split()]
SECONDS = float(os.environ.get("SECONDS", "20"))
MODEL = os.environ.get("MODEL")
# What a server of this test may reach at most, so that weights have room.
FULL_SPEED = "100" if MODEL else "5000"
TAG = f"bl{os.getpid() % 100000}"
NET = "10.213.77"
PERIOD_US = 100_000
TOKENS = 48
# A share may be off by this much, in one round of so many.
TOLERANCE = 0.12
ROUNDS = 3
CLIENTS = 24


def run(*args):
    subprocess.run(args, check=True, stdout=subprocess.DEVNULL)


class Group:
    """A control group with a CPU quota, version 1 or 2."""

    def __init__(self, name, cpus):
        v1 = pathlib.Path("/sys/fs/cgroup/cpu")
        self.path = (v1 if v1.is_dir() else pathlib.Path("/sys/fs/cgroup")) / f"{TAG}-{name}"
        self.path.mkdir()
        quota = int(cpus * PERIOD_US)
        if v1.is_dir():
            (self.path / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (self.path / "cpu.cfs_quota_us").write_text(str(quota))
        else:
            (self.path / "cpu.max").write_text(f"{quota} {PERIOD_US}")

    def enter(self):
        (self.path / "cgroup.procs").write_text(str(os.getpid()))

    def remove(self):
        for _ in range(50):
            try:
                return self.path.rmdir()
            except OSError:
                time.sleep(0.1)


class Server:
    """One launcher in a namespace."""

    def __init__(self, number, cpus, work):
        self.name = f"b{number}"
        self.cpus = cpus
        self.space = f"{TAG}-{self.name}"
        self.address = f"{NET}.{10 + number}"
        self.log = open(work / f"{self.name}.log", "ab")
        self.group = Group(self.name, cpus)
        self.process = None
        veth = f"{TAG}{self.name}"
        run("ip", "netns", "add", self.space)
        run("ip", "link", "add", veth, "type", "veth", "peer", "name", "eth0", "netns", self.space)
        run("ip", "link", "set", veth, "master", TAG, "up")
        for command in (["addr", "add", f"{self.address}/24", "dev", "eth0"], ["link", "set", "eth0", "up"], ["link", "set", "lo", "up"]):
            run("ip", "-n", self.space, *command)

    def start(self):
        model = ["-m", MODEL] if MODEL else []
        # `ip netns exec` would mount another /sys, without the control groups from which threads are chosen.
        command = ["nsenter", f"--net=/run/netns/{self.space}", BINARY, "serve", *model, "--host", self.address, "--agent-check-port", "8082",
                   "--full-speed", FULL_SPEED, "--parallel", "4", "--ctx-size", "4096", "--drain-notice", "3", "--drain-timeout", "30"]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log, preexec_fn=self.group.enter, start_new_session=True)

    def wait_ready(self):
        for _ in range(600):
            try:
                if request(self.address, "GET", "/health")[0] == 200:
                    return
            except OSError:
                pass
            assert self.process.poll() is None, f"{self.name} ended, see its log"
            time.sleep(0.1)
        raise AssertionError(f"{self.name} is not ready after 60 s")

    def engine(self):
        for children in pathlib.Path(f"/proc/{self.process.pid}/task").glob("*/children"):
            for pid in children.read_text().split():
                if b"engine" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                    return int(pid)
        raise AssertionError(f"{self.name} has no engine process")

    def end(self):
        """As a service manager ends it."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=60)
        assert code == 0, f"{self.name} ended with {code}"

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def close(self):
        if self.process and self.process.poll() is None:
            self.kill()
        run("ip", "netns", "del", self.space)
        self.group.remove()


def request(host, method, path, body=None, headers=None, port=8081):
    connection = http.client.HTTPConnection(host, port, timeout=200)
    try:
        connection.request(method, path, json.dumps(body) if body is not None else None, headers or {})
        reply = connection.getresponse()
        return reply.status, reply.read(), reply.headers
    finally:
        connection.close()


class Load:
    """Clients that ask for one answer after another."""

    def __init__(self, host, port, clients):
        self.host, self.port = host, port
        self.lock = threading.Lock()
        self.going = True
        self.served, self.failed = {}, []
        self.threads = [threading.Thread(target=self.client, args=(i,), daemon=True) for i in range(clients)]
        for thread in self.threads:
            thread.start()

    def client(self, number):
        round_ = 0
        while self.going:
            round_ += 1
            body = {"prompt": f"Client {number} asks for the {round_}th time:", "n_predict": TOKENS, "ignore_eos": True, "seed": 1, "cache_prompt": False}
            try:
                status, text, headers = request(self.host, "POST", "/completion", body, port=self.port)
                problem = None if status == 200 and json.loads(text)["tokens_predicted"] == TOKENS else f"{status}: {text[:200]}"
            except (OSError, http.client.HTTPException, ValueError) as error:
                headers, problem = {}, repr(error)
            with self.lock:
                if problem:
                    self.failed.append(problem)
                else:
                    by = headers.get("x-served-by", "")
                    self.served[by] = self.served.get(by, 0) + 1

    def count(self):
        with self.lock:
            return dict(self.served)

    def during(self, seconds):
        before = self.count()
        time.sleep(seconds)
        after = self.count()
        return {name: after[name] - before.get(name, 0) for name in after}

    def stop(self):
        self.going = False
        for thread in self.threads:
            thread.join()
        assert not self.failed, f"{len(self.failed)} requests failed, the first: {self.failed[0]}"
        return sum(self.served.values())


def balancer(servers, work):
    """The configuration of the repository with our addresses and ports."""
    text = (ROOT / "deploy/haproxy/haproxy.cfg").read_text()
    for number, server in enumerate(servers, 1):
        text = text.replace(f"192.0.2.1{number}:8081", f"{server.address}:8081")
    text = text.replace("bind :8081", f"bind {NET}.1:8081").replace("bind 127.0.0.1:8404", f"bind {NET}.1:8404")
    text = re.sub(r"stats socket \S+", f"stats socket {work}/admin.sock", text)
    (work / "haproxy.cfg").write_text(text)
    run(HAPROXY, "-c", "-q", "-f", str(work / "haproxy.cfg"))
    log = open(work / "haproxy.log", "ab")
    return subprocess.Popen([HAPROXY, "-db", "-f", str(work / "haproxy.cfg")], stdout=log, stderr=log)


def until_up(front, servers):
    """All servers are in use."""
    for _ in range(300):
        text = request(front, "GET", "/;csv", port=8404)[1].decode()
        rows = [line.split(",") for line in text.splitlines()]
        status = rows[0].index("status")
        up = [row for row in rows[1:] if row[0] == "bitnet" and row[1].startswith("b") and row[status].startswith("UP")]
        if len(up) == len(servers):
            return
        time.sleep(0.1)
    raise AssertionError("not all servers are up after 30 s")


def share_against_speed(front, servers):
    """One round: each server alone, then all behind the balancer. How far a share is from that of the speed, and the requests asked."""
    alone = {}
    for server in servers:
        load = Load(server.address, 8081, 4)
        time.sleep(2)
        alone[server.name] = sum(load.during(SECONDS / 2).values()) / (SECONDS / 2)
        load.stop()
    load = Load(front, 8081, CLIENTS)
    time.sleep(5)
    served = load.during(SECONDS)
    asked = load.stop()
    total, speed = sum(served.values()), sum(alone.values())
    off = 0
    print(f"{'server':8}{'CPUs':>6}{'alone, answers/s':>18}{'expected share':>16}{'share':>8}")
    for server in servers:
        expected, share = alone[server.name] / speed, served.get(server.name, 0) / total
        print(f"{server.name:8}{server.cpus:>6}{alone[server.name]:>18.2f}{expected:>16.2f}{share:>8.2f}")
        off = max(off, abs(share - expected))
    print(f"together {total / SECONDS:.2f} answers/s of {speed:.2f}", flush=True)
    return off, asked


def main():
    missing = [tool for tool in (HAPROXY, "ip", "nsenter") if not shutil.which(tool)]
    if os.geteuid() != 0 or missing:
        return print(f"skipped: needs root, and {' and '.join(missing) or 'nothing else'}")
    work = pathlib.Path(tempfile.mkdtemp(prefix="haproxy-test-"))
    front, servers, proxy = f"{NET}.1", [], None
    try:
        run("ip", "link", "add", TAG, "type", "bridge")
        run("ip", "addr", "add", f"{front}/24", "dev", TAG)
        run("ip", "link", "set", TAG, "up")
        for number, cpus in enumerate(QUOTAS, 1):
            servers.append(Server(number, cpus, work))
            servers[-1].start()
        for server in servers:
            server.wait_ready()

        proxy = balancer(servers, work)
        time.sleep(1)
        until_up(front, servers)
        requests = 0
        for _ in range(ROUNDS):
            off, asked = share_against_speed(front, servers)
            requests += asked
            if off <= TOLERANCE:
                break
        assert off <= TOLERANCE, f"in {ROUNDS} rounds the shares were not within {TOLERANCE} of the speeds, in the last one off by {off:.2f}"
        print(f"passed: share follows speed; {requests} requests, none failed")

        load = Load(front, 8081, CLIENTS)
        for server in servers:
            time.sleep(2)
            server.end()
            server.start()
            server.wait_ready()
            until_up(front, servers)
        time.sleep(2)
        print(f"passed: rolling restart; {load.stop()} requests, none failed")

        load = Load(front, 8081, CLIENTS)
        time.sleep(2)
        os.kill(servers[2].engine(), signal.SIGKILL)
        time.sleep(4)
        print(f"passed: kill -9 of an engine; {load.stop()} requests, none failed")

        load = Load(front, 8081, CLIENTS)
        time.sleep(2)
        servers[1].kill()
        time.sleep(4)
        servers[1].start()
        servers[1].wait_ready()
        until_up(front, servers)
        time.sleep(2)
        print(f"passed: kill -9 of a server; {load.stop()} requests, none failed")

        stayed = asked = 0
        homes = {}
        for turn in range(4):
            for talk in range(6):
                body = {"prompt": f"Talk {talk}. " + "Once upon a time there was a king. " * (turn + 2), "n_predict": 4, "user": f"talk-{talk}"}
                headers = {"X-Session-Id": f"talk-{talk}"} if talk % 2 else {}
                status, _, reply = request(front, "POST", "/completion", body, headers)
                assert status == 200
                if turn:
                    asked += 1
                    stayed += homes[talk] == reply["x-served-by"]
                homes[talk] = reply["x-served-by"]
        assert stayed == asked, f"{stayed} of {asked} requests went where their conversation was"
        print(f"passed: conversations stay; {asked} of {asked}, on {len(set(homes.values()))} servers")
        shutil.rmtree(work)
    except BaseException:
        print(f"logs are in {work}", file=sys.stderr)
        raise
    finally:
        if proxy:
            proxy.terminate()
            proxy.wait()
        for server in servers:
            server.close()
        subprocess.run(["ip", "link", "del", TAG], check=False, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
