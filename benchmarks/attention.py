"""Measure the extra time of a sequence length that is new on a GPU, with and without cuDNN's attention kernels.

A step is a forward and a backward pass of MiniLM in bf16.

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
    model, # The model, on a GPU
    rows:int, # Rows per batch
    length:int, # Tokens per row
):
    "Run a forward and a backward pass on a batch with padding"
    ids = torch.randint(1000, 20_000, (rows, length), device=device())
    mask = torch.ones_like(ids)
    mask[0,-1] = 0
    with torch.autocast(device().type, torch.bfloat16):
        loss = model(input_ids=ids, attention_mask=mask).logits.float().sum()
    loss.backward()
    model.zero_grad()

def measure(
    lengths, # Lengths that this process has not used yet
    context, # Context manager to run the steps in
    rows:int=32, # Rows per batch
) -> list[float]: # Milliseconds
    "Return the median time of a step at its first and at its third use of a length"
    model = AutoModelForSequenceClassification.from_pretrained(minilm_checkpoint()).to(device())
    with context: times = [[1000*timed(step, model, rows, o)[0] for o in lengths] for _ in range(3)]
    return [median(times[0]), median(times[2])]

def main():
    "Print a table; one setting uses even lengths and the other odd ones, so that neither warms up the other"
    if not torch.cuda.is_available(): raise SystemExit('This benchmark needs a GPU.')
    for context in (nullcontext(), without_cudnn_attention()): measure([136], context)
    settings = {'chosen by PyTorch': (range(20, 60, 2), nullcontext()),
                'without cuDNN': (range(21, 60, 2), without_cudnn_attention())}
    def row(name, *args):
        first,third = measure(*args)
        return {'attention': name, 'first use of a length, ms': f'{first:.1f}', 'third use, ms': f'{third:.1f}'}
    rows = [row(name, *args) for name,args in settings.items()]
    print(f'{machine()}\n\n{markdown(rows)}')

if __name__ == '__main__': main()
