"""Trains the demo model on a CPU, with quantisation on from the first step.

The run has a length in minutes, so the number of tokens depends on the machine. Data come from seeds: shard i
is always the same. State is saved to build/checkpoint.pt every few minutes, and a second start goes on from it.
Matrices are trained with Muon (orthogonalised momentum), embedding and norms with AdamW; the learning
rate warms up, stays, and then falls linearly to zero.

Under torchrun each process takes its share of every step and the gradients are summed. Processes of one thread
lose less than one process of several threads when a machine is busy: they wait once per step, not once per operation.
"""

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
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
ROWS_PER_STEP = 8
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


def rank_and_size():
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def sum_over_processes(tensor):
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


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


def shared_work(function, stack):
    """function(stack), each process computing its part of the first dimension."""
    rank, size = rank_and_size()
    if size == 1 or len(stack) % size:
        return function(stack)
    part = function(stack.chunk(size)[rank].contiguous()).contiguous()
    parts = [torch.empty_like(part) for _ in range(size)]
    dist.all_gather(parts, part)
    return torch.cat(parts)


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
        direction = shared_work(orthogonalised, stack.transpose(1, 2) if tall else stack)
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
    rank, size = rank_and_size()
    whole = len(ids) - len(ids) % (ROWS_PER_PASS * size)
    starts = range(rank * ROWS_PER_PASS, whole, ROWS_PER_PASS * size)
    total = sum(loss_fn(ids[i:i + ROWS_PER_PASS], weights[i:i + ROWS_PER_PASS]) for i in starts)
    return sum_over_processes(total).item() / weights[:whole, 1:].sum().item()


def gradient_step(model, loss_fn, ids, weights, progress):
    """Leaves the step's summed gradients in the model -> (loss, progress averaged over processes)."""
    rank, size = rank_and_size()
    total, loss = weights[:, 1:].sum(), 0.0
    for part_ids, part_weights in list(passes(ids, weights))[rank::size]:
        part = loss_fn(part_ids, part_weights) / total
        part.backward()
        loss += part.item()
    params = list(model.parameters())
    flat = torch.cat([p.grad.flatten() for p in params] + [torch.tensor([loss, progress / size])])
    sum_over_processes(flat)
    for p, grad in zip(params, flat.split([p.numel() for p in params] + [2])):
        p.grad.copy_(grad.view_as(p))
    return flat[-2].item(), flat[-1].item()


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


def report(line):
    if rank_and_size()[0] == 0:
        print(line, flush=True)


def run(model, opts, state, minutes):
    """Trains until the time is used up, saving and reporting on the way."""
    bpe = tokens.load()
    loss_fn = torch.compile(lambda ids, weights: weighted_loss(model, ids, weights), dynamic=False)
    held_out = rows_of(bpe, HELD_OUT_SEED, HELD_OUT_DOCUMENTS)
    budget, began = minutes * 60.0, time.monotonic() - state["seconds"]
    next_save, next_eval = state["seconds"] + SAVE_SECONDS, state["seconds"] + EVAL_SECONDS
    losses, logged = [], (state["seconds"], state["tokens"])
    for shard, position, ids, weights in batches(bpe, state["shard"], state["position"]):
        loss, progress = gradient_step(model, loss_fn, ids, weights, (time.monotonic() - began) / budget)
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        for opt, base in zip(opts, (MUON_LR, ADAM_LR)):
            opt.param_groups[0]["lr"] = base * rate(progress)
            opt.step()
            opt.zero_grad()
        seconds = progress * budget
        state.update(step=state["step"] + 1, tokens=state["tokens"] + ids.numel(), shard=shard, position=position, seconds=seconds)
        losses.append(loss)
        if state["step"] % LOG_STEPS == 0:
            state["train_loss"] = sum(losses) / len(losses)
            speed = (state["tokens"] - logged[1]) / (seconds - logged[0])
            report(f"step {state['step']} tokens {state['tokens']} progress {progress:.3f} loss {state['train_loss']:.4f} tok/s {speed:.0f}")
            losses, logged = [], (seconds, state["tokens"])
        if progress >= 1.0 or seconds > next_eval:
            state["held_out_loss"] = held_out_loss(loss_fn, *held_out)
            report(f"step {state['step']} held-out loss {state['held_out_loss']:.4f}")
            next_eval = seconds + EVAL_SECONDS
        if progress >= 1.0 or seconds > next_save:
            if rank_and_size()[0] == 0:
                save(model, opts, state)
            next_save = seconds + SAVE_SECONDS
        if progress >= 1.0:
            break


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=65.0)
    parser.add_argument("--threads", type=int, default=1, help="per process")
    parser.add_argument("--fresh", action="store_true", help="ignore an existing checkpoint")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    model, opts, state = start(not args.fresh)
    run(model, opts, state, args.minutes)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
