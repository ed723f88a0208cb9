"Code that the sections share: alternating contestants, per-round ratios, texts, ideal batches, and the results file"
import gc
import operator
import os
import platform
import re
import sys
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median

import pandas as pd
import torch
from fastai.torch_basics import to_device
from fastai.torch_core import set_seed

from blurlike.all import HFTextDataLoaders, best_precision, hf_learner, load_movie_reviews, minilm_checkpoint
from blurlike.text.batching import token_batches

# --- Time

def device(
) -> torch.device:
    "Return the GPU if there is one, else the CPU"
    return torch.device('cuda' if torch.cuda.is_available() else 'cpu')

def by_device(
    cpu, # The value for a CPU
    gpu, # The value for a GPU
):
    "Return the value for the device of this process"
    return cpu if device().type=='cpu' else gpu

def batch_sizes(
) -> tuple[int, ...]: # Rows
    "Return the batch sizes that `pipeline` is measured with"
    return by_device((1, 8, 32), (1, 8, 32, 128))

def native_precisions(
) -> list[str]: # "fp32", and "bf16" where it is not emulated
    "Return the precisions that are worth measuring on this device: emulated bf16 is ten times slower than fp32"
    return ['fp32', 'bf16'] if best_precision(device())=='bf16' else ['fp32']

def timed(
    f, # The function to time
    *args,
    **kwargs
) -> tuple: # Seconds, and the return value of `f`
    "Call `f` and wait for the GPU to finish"
    sync = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    gc.collect()
    sync()
    start = time.perf_counter()
    result = f(*args, **kwargs)
    sync()
    return time.perf_counter() - start, result

def alternate(
    contestants:dict, # Names mapped to functions that take the round's number and return a dict of numbers
    rounds:int, # Number of turns of each contestant
    warmup:int=1, # Number of earlier rounds whose results are dropped
) -> dict[str, pd.DataFrame]: # For each name, one row per round
    "Run the contestants in turn, reversing their order every other round"
    results = {o: [] for o in contestants}
    for i in range(-warmup, rounds):
        for name in list(contestants)[::-1 if i%2 else 1]:
            results[name].append(contestants[name](i))
            numbers = ', '.join(f'{k} {v:.4g}' for k,v in results[name][-1].items())
            print(f"{f'round {i+1}' if i >= 0 else 'warmup'}, {name}: {numbers}", file=sys.stderr)
    return {k: pd.DataFrame(v[warmup:]) for k,v in results.items()}

# --- Figures

_COMPARE = {'>=': operator.ge, '<=': operator.le}

def figure_row(
    figure:str, # Name of the figure
    values, # One value per round
    target:str='', # Condition on the median, such as ">= 2.0"; "" for none
    also:dict=None, # Further conditions of the target, and whether each holds
    **beside # Further columns
) -> dict: # A row of a table
    "Return the median and the range of a figure, and whether it reaches its target"
    values,also = list(values),also or {}
    row = {'figure': figure, 'median': f'{median(values):.3g}', 'range': f'{min(values):.3g} to {max(values):.3g}',
           'target': ', '.join([target, *also]), 'reached': ''}
    if target:
        compare,bound = target.split()
        row['reached'] = 'yes' if _COMPARE[compare](median(values), float(bound)) and all(also.values()) else 'no'
    return row | beside

def ratio_row(
    figure:str, # Name of the comparison
    over, # Numbers of one contestant, one per round
    under, # Numbers of the contestant to divide by
    target:str='', # See `figure_row`
    also:dict=None, # See `figure_row`
    unit:str='examples/s', # Unit of the numbers; heads the column of their medians
    **beside # Further columns
) -> dict: # A row of a table
    "Return the ratio of two contestants, computed round by round"
    over,under = list(over),list(under)
    ratios = [a/b for a,b in zip(over, under, strict=True)]
    return figure_row(figure, ratios, target, also, **{unit: f'{median(over):.4g} / {median(under):.4g}'}, **beside)

def medians(
    results:dict, # From `alternate`
) -> list[dict]: # One row per contestant
    "Return the median over the rounds of each number"
    return [{'contestant': k} | {c: f'{v:.4g}' for c,v in df.median().items()} for k,df in results.items()]

# --- Texts and models

def reviews(
    kind:str, # "short" (sentences), "long" (whole reviews), or "mixed" (half of each)
    rows:int, # Number of reviews
) -> pd.DataFrame: # Columns `text` and `label`
    "Return shuffled movie reviews"
    if kind=='mixed':
        halves = [reviews('short', rows//2), reviews('long', rows - rows//2)]
        return pd.concat(halves).sample(frac=1, random_state=0, ignore_index=True)
    return load_movie_reviews(rows, dict(short='rotten_tomatoes', long='imdb')[kind])[['text', 'label']]

def reviewer(
    rows:int, # Number of sentences to train on
    **kwargs # Passed to `HFTextDataLoaders`
): # A learner
    "Return a learner that has trained briefly on reviews, so that its probabilities differ between texts"
    set_seed(0)
    learn = hf_learner(HFTextDataLoaders.from_df(reviews('short', rows), minilm_checkpoint(), seed=0, **kwargs))
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, 2e-4)
    return learn

def ideal_batches(
    tokenizer, # The model's tokenizer
    texts:list, # Texts to encode
    max_length:int, # Maximum number of tokens per text
    batch_tokens:int=None, # Maximum number of tokens per batch, with padding; None for 4096 on a CPU, 16,384 on a GPU
) -> list[tuple]: # Indices of the texts, and their inputs on the device
    "Encode texts in advance, in batches sorted by length"
    enc = tokenizer(texts, truncation=True, max_length=max_length)
    idxs = token_batches([len(o) for o in enc['input_ids']], batch_tokens or by_device(4096, 16_384))
    pad = lambda o: tokenizer.pad({k: [v[i] for i in o] for k,v in enc.items()}, return_tensors='pt')
    return [(o, to_device(dict(pad(o)), device())) for o in idxs]

def ideal_probs(
    model, # In evaluation mode
    batches:list, # From `ideal_batches`
) -> torch.Tensor: # Shape texts x classes, on the CPU
    "Return the probabilities that `model` predicts for `batches`, in the order of the texts"
    with torch.inference_mode(): probs = torch.cat([model(**x).logits.softmax(-1) for _,x in batches]).cpu()
    return probs[torch.cat([torch.from_numpy(o) for o,_ in batches]).argsort()]

# --- The file of results

PACKAGES = ('torch', 'transformers', 'fastai', 'tokenizers', 'datasets', 'blurlike')

def proc_line(path, key):
    "Return the value of `key` in a file of `/proc`; None on systems without that file"
    found = re.search(rf'^{key}\s*:\s*(.+)$', Path(path).read_text(), re.MULTILINE) if Path(path).exists() else None
    return found and found[1]

def machine(
) -> str: # A sentence
    "Describe the hardware and the versions of the packages"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    memory = proc_line('/proc/meminfo', 'MemTotal')
    parts = [proc_line('/proc/cpuinfo', 'model name') or platform.processor(), f'{cores} cores',
             f'{torch.get_num_threads()} torch threads',
             f'{int(memory.split()[0])/2**20:.0f} GB of memory' if memory else 'memory unknown',
             torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU']
    versions = [f'python {platform.python_version()}', *(f'{o} {version(o)}' for o in PACKAGES)]
    return ', '.join([*parts, *versions]) + '.'

def markdown(
    rows:list[dict], # Rows that all have the same keys
) -> str: # A Markdown table
    "Format `rows` as a table"
    cells = [list(rows[0]), ['---']*len(rows[0]), *(o.values() for o in rows)]
    return '\n'.join(f"| {' | '.join(map(str, o))} |" for o in cells)

def section_text(
    about:str, # Text that says what is measured, and how
    tables:dict, # Captions mapped to rows
    command:str, # Command that reproduces the section
) -> str: # Markdown
    "Format a section, with its command, its date and the machine"
    tables = [f'{caption}\n\n{markdown(rows)}' for caption,rows in tables.items()]
    return '\n\n'.join([about.strip(), f'`{command}`, {date.today()}: {machine()}', *tables])

HEADER = """# How fast is blurlike?

`python -m benchmarks.speed` writes this file, one section at a time. A figure is the ratio of two contestants that
alternate within one run: the median over the rounds, and the range. Padding is a percentage of one contestant, not a
ratio. Compare only numbers from the same run."""

def write_section(
    path, # Path of the file; created if it does not exist
    name:str, # Heading of the section
    text:str, # Body of the section
) -> None:
    "Replace a section of a Markdown file, or append it; the file is replaced atomically"
    path = Path(path)
    head,*old = re.split(r'^## ', path.read_text(encoding='utf-8') if path.exists() else HEADER, flags=re.MULTILINE)
    sections = {k: v.strip() for k,_,v in (o.partition('\n') for o in old)} | {name: text.strip()}
    new = path.with_name(f'{path.name}.{os.getpid()}')
    parts = [head.strip(), *(f'## {k}\n\n{v}' for k,v in sections.items())]
    new.write_text('\n\n'.join(parts) + '\n', encoding='utf-8')
    os.replace(new, path)
