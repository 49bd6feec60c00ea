"""Times ik_llama.cpp through the library in the wheel `ik-llama-cpp-python`; prints one JSON object.

    ik_bench.py MODEL --threads 2 --prompts 128,512 --tokens 64 [--flash-attn] [--repack]

What is timed is what llama-bench times: a prompt of N tokens in one call with the logits of its last token, and
single-token steps with logits behind an empty cache. Nothing is sampled.
"""

import argparse
import json
import random
import time

from ik_llama_cpp import _ctypes_api as ik

BATCH_TOKENS = 512


def main():
    args = arguments()
    ik.llama_backend_init()
    model = load(args)
    context = new_context(model, args)
    tokens = random.Random(1)
    vocabulary = ik.llama_vocab_n_tokens(ik.llama_model_get_vocab(model))

    def draw(count):
        return [tokens.randrange(vocabulary // 2) for _ in range(count)]

    evaluate(context, draw(8), 0)
    evaluate(context, draw(1), 8)
    result = {"prefill": {}, "decode": None}
    for length in args.prompts:
        prompt = draw(length)
        ik.llama_kv_cache_clear(context)
        result["prefill"][str(length)] = length / seconds(lambda: evaluate(context, prompt, 0))
    answer = draw(args.tokens)
    ik.llama_kv_cache_clear(context)
    evaluate(context, draw(1), 0)
    result["decode"] = args.tokens / seconds(
        lambda: [evaluate(context, [token], 1 + i) for i, token in enumerate(answer)]
    )
    print(json.dumps(result))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--prompts", type=lambda text: [int(n) for n in text.split(",")], default=[128])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--flash-attn", action="store_true")
    parser.add_argument("--repack", action="store_true", help="row-interleaved weights, made at load")
    return parser.parse_args()


def load(args):
    params = ik.llama_model_default_params()
    params.repack_tensors = args.repack
    # Repacked weights are copies; they can't stay in the mapped file.
    params.use_mmap = not args.repack
    model = ik.llama_model_load_from_file(args.model.encode(), params)
    if not model:
        raise SystemExit(f"ik_llama.cpp can't load `{args.model}`")
    return model


def new_context(model, args):
    params = ik.llama_context_default_params()
    params.n_ctx = max(args.prompts + [args.tokens + 1]) + 64
    params.n_batch = BATCH_TOKENS
    params.n_ubatch = BATCH_TOKENS
    params.n_threads = args.threads
    params.n_threads_batch = args.threads
    params.flash_attn = args.flash_attn
    context = ik.llama_init_from_model(model, params)
    if not context:
        raise SystemExit("ik_llama.cpp can't make a context")
    return context


def evaluate(context, tokens, first_position):
    """Runs the tokens behind `first_position`; the last one's logits are computed."""
    for start in range(0, len(tokens), BATCH_TOKENS):
        part = tokens[start : start + BATCH_TOKENS]
        batch = ik.llama_batch_init(len(part), 0, 1)
        batch.n_tokens = len(part)
        for i, token in enumerate(part):
            batch.token[i] = token
            batch.pos[i] = first_position + start + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = start + i + 1 == len(tokens)
        code = ik.llama_decode(context, batch)
        ik.llama_batch_free(batch)
        if code:
            raise SystemExit(f"ik_llama.cpp failed to evaluate {len(part)} tokens: {code}")
    # Reading a logit waits for the computation, as a sampler would.
    ik.llama_get_logits_ith(context, -1)[0]


def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
