#!/usr/bin/env python3
"""Times bitnet-launch, ik_llama.cpp and llama.cpp on the same weights with the same threads, in interleaved rounds.

    bench/rivals/setup.sh DIR
    cargo build --release
    bitnet-launch synth --shape 2b-4t --seed 1 -o model.gguf
    bench/rivals/compare.py --rivals DIR model.gguf [--threads 2,1] [--rounds 5] [--json FILE]

The rivals' files are made from the given I2_S file by their own quantizers, once, in DIR. Every round runs every contender once, one
after another; shown are medians (smallest-largest) in tokens per second, and the median of the ratios inside the rounds against the
first contender. What a contender refuses or crashes on is shown as such.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
TOKENS = 64
TIMEOUT_S = 1200


def main():
    args = arguments()
    rivals = Rivals(args.rivals)
    rivals.make_files(args)
    contenders = our_contenders(args) + rivals.contenders(args)
    results = {}
    for threads in args.threads:
        rounds = {name: [] for name, _ in contenders}
        for number in range(args.rounds):
            for name, measure in contenders:
                print(f"threads {threads}, round {number + 1} of {args.rounds}: {name}", file=sys.stderr)
                rounds[name].append(attempt(measure, threads))
        results[threads] = rounds
        print(table(threads, args.prompts, rounds), flush=True)
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(results, indent=1) + "\n")


def arguments():
    numbers = lambda text: [int(n) for n in text.split(",")]  # noqa: E731
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="I2_S file in the shape of 2B-4T")
    parser.add_argument("--rivals", required=True, type=pathlib.Path, help="the folder that setup.sh filled")
    parser.add_argument("--binary", default=str(HERE.parents[1] / "target/release/bitnet-launch"))
    parser.add_argument("--kernels", default="auto,i2_s/avx2,tl2/avx2", help="of bitnet-launch")
    parser.add_argument("--threads", type=numbers, default=[2])
    parser.add_argument("--prompts", type=numbers, default=[128, 512])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="contenders whose name contains this")
    parser.add_argument("--json", help="write all values to this file")
    return parser.parse_args()


def our_contenders(args):
    def contender(kernel):
        def measure(threads):
            lengths = ",".join(map(str, args.prompts))
            command = [args.binary, "bench", "-m", args.model, "--kernels", kernel, "--threads", str(threads), "-p", lengths]
            command += ["-n", str(TOKENS), "-d", "0", "--slots", "0", "--rounds", "1", "--json", "--quiet"]
            cell = json.loads(run(command))["cells"][0]
            speeds = {m["name"]: m["tok_s"]["median"] for m in cell["measured"]}
            return {**{f"prefill {n}": speeds[f"prefill {n}"] for n in args.prompts}, "decode": speeds["decode at 0"]}

        return f"bitnet-launch {kernel}", measure

    return chosen(args, [contender(kernel) for kernel in args.kernels.split(",")])


class Rivals:
    """What setup.sh installed, and the files made for it."""

    def __init__(self, folder):
        self.folder = folder.resolve()
        self.python = self.folder / "venv/bin/python"
        self.bin = self.folder / "build/bin"
        package = next((self.folder / "venv").glob("lib/python*/site-packages/ik_llama_cpp"))
        self.ik_quantize = package / "bin/llama-quantize"
        self.files = {name: self.folder / f"{name}.gguf" for name in ("iq2_bn", "iq2_bn_r4", "tq2_0", "q4_0", "f16")}

    def make_files(self, args):
        ik = [self.ik_quantize, "--allow-requantize", "--token-embedding-type", "q6_K"]
        self.make("iq2_bn", lambda target: run([*ik, args.model, target, "IQ2_BN"]))
        self.make("iq2_bn_r4", lambda target: run([*ik, args.model, target, "IQ2_BN_R4"]))
        upstream = self.folder / "upstream.gguf"
        if not all(self.files[name].exists() for name in ("tq2_0", "q4_0", "f16")):
            ternary = self.folder / "ternary.gguf"
            ternary.unlink(missing_ok=True)
            run([args.binary, "convert", args.model, "-o", ternary, "--outtype", "tq2_0"])
            run([self.python, HERE / "upstream_arch.py", ternary, upstream])
            ternary.unlink()
        quantize = [self.bin / "llama-quantize", "--allow-requantize"]
        head = ["--token-embedding-type", "q6_K"]
        self.make("tq2_0", lambda target: run([*quantize, *head, upstream, target, "TQ2_0"]))
        self.make("q4_0", lambda target: run([*quantize, *head, upstream, target, "Q4_0"]))
        self.make("f16", lambda target: run([*quantize, upstream, target, "F16"]))
        upstream.unlink(missing_ok=True)

    def make(self, name, write):
        if not self.files[name].exists():
            print(f"making {self.files[name].name}", file=sys.stderr)
            part = self.folder / f"{name}.part"
            write(part)
            part.rename(self.files[name])

    def contenders(self, args):
        ik = [
            ("ik_llama.cpp IQ2_BN, Q6_K head", "iq2_bn", ["--flash-attn"]),
            ("ik_llama.cpp IQ2_BN_R4, Q6_K head", "iq2_bn_r4", ["--flash-attn"]),
        ]
        upstream = [
            ("llama.cpp TQ2_0, Q6_K head", "tq2_0"),
            ("llama.cpp Q4_0, Q6_K head", "q4_0"),
            ("llama.cpp F16", "f16"),
        ]
        listed = [(name, lambda threads, f=file, o=options: self.ik(args, f, threads, o)) for name, file, options in ik]
        listed += [(name, lambda threads, f=file: self.llama_bench(args, f, threads)) for name, file in upstream]
        return chosen(args, listed)

    def ik(self, args, file, threads, options):
        command = [self.python, HERE / "ik_bench.py", self.files[file], "--threads", threads, "--tokens", TOKENS]
        found = json.loads(run([*command, "--prompts", ",".join(map(str, args.prompts)), *options]).splitlines()[-1])
        return {**{f"prefill {n}": found["prefill"][str(n)] for n in args.prompts}, "decode": found["decode"]}

    def llama_bench(self, args, file, threads):
        command = [self.bin / "llama-bench", "-m", self.files[file], "-t", threads, "-r", 1, "-o", "json", "-n", TOKENS]
        found = json.loads(run([*command, "-p", ",".join(map(str, args.prompts))]))
        return {f"prefill {row['n_prompt']}" if row["n_prompt"] else "decode": row["avg_ts"] for row in found}


def chosen(args, contenders):
    return [c for c in contenders if not args.only or args.only in c[0]]


def run(command):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=TIMEOUT_S, env=environment
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"{pathlib.Path(str(command[0])).name} ended with {done.returncode}: {last}")
    return done.stdout


def attempt(measure, threads):
    try:
        return measure(threads)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        print(f"  {error}", file=sys.stderr)
        return {}


def table(threads, prompts, rounds):
    columns = [f"prefill {n}" for n in prompts] + ["decode"]
    first = next(iter(rounds))
    lines = [
        f"\n{threads} thread{'s' if threads > 1 else ''}, tok/s; × is {first} against the row",
        "| | " + " | ".join(f"{column} | ×" for column in columns) + " |",
        "|---|" + "---|---|" * len(columns),
    ]
    for name, runs in rounds.items():
        cells = []
        for column in columns:
            values = [r[column] for r in runs if column in r]
            ratios = [f[column] / r[column] for f, r in zip(rounds[first], runs) if column in f and column in r]
            if values:
                cells += [f"{statistics.median(values):.1f} ({min(values):.1f}-{max(values):.1f})"]
            else:
                cells += ["failed"]
            cells += [f"{statistics.median(ratios):.2f}" if ratios else "-"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
