"""Trains the demo model on a CPU, with quantisation on from the first step.

The run has a length in minutes, so the number of tokens depends on the machine. Data come from seeds: shard i
is always the same. State is saved to build/checkpoint.pt every few minutes, and a second start goes on from it.
Matrices are trained with Muon (orthogonalised momentum), embedding and norms with AdamW; the learning
rate warms up, stays, and then falls linearly to zero.
"""

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import corpus
import tokenizer as tokens
from model import BitNet, Config

BUILD = Path(__file__).parent / "build"
CHECKPOINT = BUILD / "checkpoint.pt"
SEED = 1
HELD_OUT_SEED = 777_777
HELD_OUT_DOCUMENTS = 400
SHARD_DOCUMENTS = 16_000
ROW = 512
ROWS_PER_STEP = 16
ROWS_PER_PASS = 2
OPEN_ROWS = 32
WARM_UP, DECAY = 0.01, 0.45  # shares of the run
MUON_LR, ADAM_LR = 0.02, 0.004
MUON_MOMENTUM, WEIGHT_DECAY, CLIP = 0.95, 0.02, 1.0
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
SAVE_SECONDS, EVAL_SECONDS, LOG_STEPS = 150, 300, 20


def pack(encoded, length, pad):
    """Puts whole documents into rows of `length` tokens -> ids [R, length], weights [R, length].

    A token's weight sits at its own position; the loss shifts it. First fit over a few open rows;
    the rare document longer than a row is left out.
    """
    finished, rows = [], []
    for ids, weights in encoded:
        if len(ids) > length:
            continue
        room = next((row for row in rows if row[0] + len(ids) <= length), None)
        if room is None:
            room = [0, []]
            rows.append(room)
        room[0] += len(ids)
        room[1].append((ids, weights))
        if len(rows) > OPEN_ROWS:
            finished.append(rows.pop(0))
    finished += rows
    ids = np.full((len(finished), length), pad, np.int32)
    weights = np.zeros((len(finished), length), np.float32)
    for r, (used, documents) in enumerate(finished):
        ids[r, :used] = np.concatenate([d[0] for d in documents])
        weights[r, :used] = np.concatenate([d[1] for d in documents])
    return torch.from_numpy(ids).long(), torch.from_numpy(weights)


def rows_of(bpe, seed, count):
    encoded = tokens.encode_documents(bpe, corpus.documents(seed, count))
    return pack(encoded, ROW, bpe.token_to_id(corpus.END))


def batches(bpe, shard, position):
    """Endless (shard, next position, ids, weights) from a place in the stream."""
    while True:
        ids, weights = rows_of(bpe, SEED + shard, SHARD_DOCUMENTS)
        order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(shard))
        while position + ROWS_PER_STEP <= len(ids):
            chosen = order[position:position + ROWS_PER_STEP]
            position += ROWS_PER_STEP
            yield shard, position, ids[chosen], weights[chosen]
        shard, position = shard + 1, 0


def passes(ids, weights):
    """Cuts one step's rows into small passes; the first pass joins its rows into one long row.

    Small passes stay in the cache. The long row teaches distances up to ROWS_PER_PASS * ROW tokens.
    """
    for i in range(0, len(ids), ROWS_PER_PASS):
        part = ids[i:i + ROWS_PER_PASS], weights[i:i + ROWS_PER_PASS]
        yield tuple(x.reshape(1, -1) for x in part) if i == 0 else part


def weighted_loss(model, ids, weights):
    """Sum of weighted token losses of [B, T] rows."""
    logits = model(ids[:, :-1])
    loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return (loss * weights[:, 1:].flatten()).sum()


def orthogonalised(stack):
    """Newton-Schulz iteration towards the nearest orthogonal matrices. stack: [n, M, K], M <= K."""
    x = stack.to(torch.bfloat16)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.float()


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised; matrices of equal shape are handled together."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            shapes = {}
            for p in group["params"]:
                shapes.setdefault(tuple(p.shape), []).append(p)
            for params in shapes.values():
                self._update(params, group["lr"])

    def _update(self, params, lr):
        updates = []
        for p in params:
            state = self.state[p]
            momentum = state.setdefault("momentum", torch.zeros_like(p))
            momentum.lerp_(p.grad, 1 - MUON_MOMENTUM)
            updates.append(p.grad.lerp(momentum, MUON_MOMENTUM))
        stack = torch.stack(updates)
        tall = stack.shape[1] > stack.shape[2]
        direction = orthogonalised(stack.transpose(1, 2) if tall else stack)
        direction = direction.transpose(1, 2) if tall else direction
        factor = max(1.0, stack.shape[1] / stack.shape[2]) ** 0.5
        for p, d in zip(params, direction):
            p.mul_(1 - lr * WEIGHT_DECAY)
            p.add_(d, alpha=-lr * factor)


def optimizers(model):
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return Muon(matrices, MUON_LR), torch.optim.AdamW(others, ADAM_LR, betas=(0.9, 0.98), weight_decay=0.0)


def rate(progress):
    """Share of the full learning rate at a share of the run."""
    return max(0.0, min(1.0, progress / WARM_UP + 0.01, (1.0 - progress) / DECAY))


@torch.no_grad()
def held_out_loss(loss_fn, ids, weights):
    whole = len(ids) - len(ids) % ROWS_PER_PASS
    total = sum(loss_fn(ids[i:i + ROWS_PER_PASS], weights[i:i + ROWS_PER_PASS]).item() for i in range(0, whole, ROWS_PER_PASS))
    return total / weights[:whole, 1:].sum().item()


def save(model, opts, state):
    BUILD.mkdir(exist_ok=True)
    part = CHECKPOINT.with_suffix(".part")
    torch.save({"config": model.config.to_dict(), "model": model.state_dict(), "optimizers": [o.state_dict() for o in opts], "state": state}, part)
    os.replace(part, CHECKPOINT)


def start(resume):
    """-> (model, optimizers, state), fresh or from the checkpoint."""
    torch.manual_seed(SEED)
    model = BitNet(Config(vocab_size=tokens.VOCAB_SIZE))
    opts = optimizers(model)
    state = {"step": 0, "tokens": 0, "seconds": 0.0, "shard": 0, "position": 0, "train_loss": None, "held_out_loss": None}
    if resume and CHECKPOINT.exists():
        saved = torch.load(CHECKPOINT, weights_only=False)
        model.load_state_dict(saved["model"])
        for opt, values in zip(opts, saved["optimizers"]):
            opt.load_state_dict(values)
        state = saved["state"]
    return model, opts, state


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=65.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--fresh", action="store_true", help="ignore an existing checkpoint")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    bpe = tokens.load()
    model, opts, state = start(not args.fresh)
    loss_fn = torch.compile(lambda ids, weights: weighted_loss(model, ids, weights), dynamic=False)
    held_out = rows_of(bpe, HELD_OUT_SEED, HELD_OUT_DOCUMENTS)
    budget, began = args.minutes * 60.0, time.monotonic() - state["seconds"]
    print(f"{sum(p.numel() for p in model.parameters())} parameters, from step {state['step']}", flush=True)
    last_save = last_eval = time.monotonic()
    recent, recent_began, recent_tokens = [], time.monotonic(), 0
    for shard, position, ids, weights in batches(bpe, state["shard"], state["position"]):
        progress = (time.monotonic() - began) / budget
        if progress >= 1.0:
            break
        total = weights[:, 1:].sum()
        loss = 0.0
        for part_ids, part_weights in passes(ids, weights):
            part = loss_fn(part_ids, part_weights) / total
            part.backward()
            loss += part.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        for opt, base in zip(opts, (MUON_LR, ADAM_LR)):
            opt.param_groups[0]["lr"] = base * rate(progress)
            opt.step()
            opt.zero_grad()
        recent.append(loss)
        recent_tokens += ids.numel()
        state.update(step=state["step"] + 1, tokens=state["tokens"] + ids.numel(), shard=shard, position=position, seconds=time.monotonic() - began)
        if state["step"] % LOG_STEPS == 0:
            state["train_loss"] = sum(recent) / len(recent)
            speed = recent_tokens / (time.monotonic() - recent_began)
            print(f"step {state['step']} tokens {state['tokens']} progress {progress:.3f} loss {state['train_loss']:.4f} tok/s {speed:.0f}", flush=True)
            recent, recent_began, recent_tokens = [], time.monotonic(), 0
        if time.monotonic() - last_eval > EVAL_SECONDS:
            state["held_out_loss"] = held_out_loss(loss_fn, *held_out)
            print(f"step {state['step']} held-out loss {state['held_out_loss']:.4f}", flush=True)
            last_eval = time.monotonic()
        if time.monotonic() - last_save > SAVE_SECONDS:
            save(model, opts, state)
            last_save = time.monotonic()
    state["held_out_loss"] = held_out_loss(loss_fn, *held_out)
    save(model, opts, state)
    print(f"done: step {state['step']} tokens {state['tokens']} held-out loss {state['held_out_loss']:.4f}", flush=True)


if __name__ == "__main__":
    main()
