"""What a new length costs on a GPU: MiniLM's training step in bf16, with PyTorch's choice of attention kernels and without cuDNN's.

    python -m benchmarks.attention
"""
from contextlib import nullcontext
from statistics import median

import torch
from transformers import AutoModelForSequenceClassification

from blurlike.core.precision import without_cudnn_attention
from blurlike.data.samples import minilm_checkpoint

from .speed.common import device, machine, markdown, timed


def step(
    model, # On a GPU
    rows:int, # Of the batch
    length:int, # Tokens of each
):
    "A forward and a backward pass, with some padding"
    ids = torch.randint(1000, 20_000, (rows, length), device=device())
    mask = torch.ones_like(ids)
    mask[0,-1] = 0
    with torch.autocast(device().type, torch.bfloat16): loss = model(input_ids=ids, attention_mask=mask).logits.float().sum()
    loss.backward()
    model.zero_grad()

def measure(
    lengths, # What no one has met before
    context, # Inside which to train
    rows:int=32, # A batch
) -> list[float]: # Milliseconds: medians of the first time and of the third
    "How long a step takes at lengths that are new, and at the same when they are not"
    model = AutoModelForSequenceClassification.from_pretrained(minilm_checkpoint()).to(device())
    with context: times = [[1000*timed(step, model, rows, o)[0] for o in lengths] for _ in range(3)]
    return [median(times[0]), median(times[2])]

def main():
    "Print a table; lengths alternate, so that neither meets what the other has warmed up"
    if not torch.cuda.is_available(): raise SystemExit('There is no GPU here.')
    for context in (nullcontext(), without_cudnn_attention()): measure([136], context)
    ways = {'as PyTorch chooses': (range(20, 60, 2), nullcontext()), "without cuDNN's": (range(21, 60, 2), without_cudnn_attention())}
    rows = [dict(zip(('attention', 'a new length, ms', 'again, ms'), (name, *(f'{o:.1f}' for o in measure(*args))), strict=True)) for name,args in ways.items()]
    print(f'{machine()}\n\n{markdown(rows)}')

if __name__ == '__main__': main()
