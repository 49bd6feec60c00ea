"""Files that `convert --outtype tq2_0` (or tq1_0) wrote, read by upstream llama.cpp: tokens of both programs side by side.

    python llama_cpp.py BITNET_LAUNCH LLAMA_SERVER

Tiny random models of Transformers (architectures `llama` and `bitnet`) are converted, served by both programs, and asked for the
probabilities of the next token and some greedy tokens. llama.cpp rounds scales to f16 and quantizes activations by blocks of 256, with another
rounding than BitNet's training, so its numbers differ a little and a greedy choice may go another way later on: the log-probabilities of the
whole vocabulary must go together. Prompts whose first token is no text by itself are left out: llama.cpp tells no probabilities of those.
Nothing here is part of the tests: it needs llama.cpp.
"""

import os

os.environ["TORCHDYNAMO_DISABLE"] = "1"

import argparse
import json
import pathlib
import random
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

import numpy as np
import torch

import hf_convert
import hf_logits

MODELS = {
    "packed_llama": dict(seed=21, arch="llama", act="silu", d=256, ff=512, layers=2, heads=4, kv=2, theta=1000042.0, eps=1e-6),
    "packed": dict(seed=22, arch="bitnet", act="silu", d=256, ff=512, layers=2, heads=4, kv=2, theta=1e4, eps=1e-5),
}
PROMPTS = [[hf_logits.N_VOCAB - hf_logits.N_SPECIAL, *random.Random(seed).choices(range(256), k=4 + seed % 5)] for seed in range(20)]
N_PREDICT = 12
LEAST_PROMPTS = 3
LEAST_NUMBERS = 20
LEAST_CORRELATION = 0.99
WAIT_S = 60


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bitnet_launch")
    parser.add_argument("llama_server")
    parser.add_argument("--outtype", default="tq2_0")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        for name, spec in MODELS.items():
            source, file = pathlib.Path(scratch) / name, pathlib.Path(scratch) / f"{name}.gguf"
            hf_convert.save(hf_convert.make(spec, name), spec, name, source)
            subprocess.run([args.bitnet_launch, "convert", source, "-o", file, "--outtype", args.outtype], check=True, stdout=subprocess.DEVNULL)
            ours = answers([args.bitnet_launch, "-m", file, "--threads", "1"])
            theirs = answers([args.llama_server, "-m", file, "-t", "1", "-c", "512", "--no-warmup"])
            compare(spec["arch"], ours, theirs)


def answers(command):
    """Tokens and the first one's probability, for each prompt."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tempfile.TemporaryFile()
    server = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)], stdout=log, stderr=log)
    try:
        wait(server, port, log)
        return [ask(port, prompt) for prompt in PROMPTS]
    finally:
        server.terminate()
        server.wait()


def wait(server, port, log):
    for _ in range(WAIT_S * 10):
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).read()
        except (urllib.error.URLError, OSError):
            if server.poll() is not None:
                break
            time.sleep(0.1)
    log.seek(0)
    raise SystemExit(f"no server: {log.read().decode(errors='replace')[-2000:]}")


def ask(port, prompt):
    """Greedy tokens, and the log-probabilities of all tokens in the place of the first; `None` if the first is no text by itself."""
    body = {"prompt": prompt, "n_predict": N_PREDICT, "temperature": 0, "n_probs": hf_logits.N_VOCAB, "return_tokens": True, "ignore_eos": True, "cache_prompt": False}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/completion", json.dumps(body).encode(), {"content-type": "application/json"})
    reply = json.load(urllib.request.urlopen(request, timeout=60))
    first = next(iter(reply.get("completion_probabilities", [])), {"id": None})
    if first["id"] != reply["tokens"][0]:
        return reply["tokens"], None
    return reply["tokens"], {entry["id"]: entry["logprob"] for entry in first["top_logprobs"]}


def compare(arch, ours, theirs):
    found = 0
    for (tokens, chances), (others, other_chances) in zip(ours, theirs):
        if chances is None or other_chances is None:
            continue
        found += 1
        same = next((i for i, (a, b) in enumerate(zip(tokens, others)) if a != b), len(tokens))
        ids = [i for i in chances.keys() & other_chances.keys() if min(chances[i], other_chances[i]) > -1e30]
        a, b = (np.array([of[i] for i in ids]) for of in (chances, other_chances))
        print(f"{arch}: {same} of {len(tokens)} tokens the same", end="")
        if len(ids) < LEAST_NUMBERS:
            # The probabilities of all others are zero in one of the programs.
            print(f", {len(ids)} log-probabilities are finite")
            assert same > 0, f"{arch}: {tokens} and {others}"
            continue
        together = np.corrcoef(a, b)[0, 1]
        print(f", {len(ids)} log-probabilities correlate by {together:.5f}")
        assert together > LEAST_CORRELATION
    assert found >= LEAST_PROMPTS, f"{arch}: {found} prompts can be compared"


if __name__ == "__main__":
    main()
