"What the sections share: contestants in turn, ratios by round, texts, ideal batches, and the file of results"
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

from blurlike.all import HFTextDataLoaders, hf_learner, minilm_checkpoint, load_movie_reviews
from blurlike.data.loader import token_batches

# --- Time

def device(
) -> torch.device: # Where everything runs
    "The GPU if there is one"
    return torch.device('cuda' if torch.cuda.is_available() else 'cpu')

def timed(
    f, # What to time
    *args,
    **kwargs
) -> tuple: # Seconds, and what `f` returned
    "Call `f`, and wait for the GPU"
    sync = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    gc.collect()
    sync()
    start = time.perf_counter()
    result = f(*args, **kwargs)
    sync()
    return time.perf_counter() - start, result

def alternate(
    contestants:dict, # Names, and functions of the round's number that return a dict of numbers
    rounds:int, # How often each has its turn
    warmup:int=1, # Rounds before these that are forgotten
) -> dict[str, pd.DataFrame]: # For each name a row a round
    "Let contestants take turns, in an order that is reversed every other round"
    results = {o: [] for o in contestants}
    for i in range(-warmup, rounds):
        for name in list(contestants)[::-1 if i%2 else 1]:
            results[name].append(contestants[name](i))
            print(f"{f'round {i+1}' if i >= 0 else 'warmup'}, {name}: " + ', '.join(f'{k} {v:.4g}' for k,v in results[name][-1].items()), file=sys.stderr)
    return {k: pd.DataFrame(v[warmup:]) for k,v in results.items()}

# --- Figures

_COMPARE = {'>=': operator.ge, '<=': operator.le}

def figure_row(
    figure:str, # What is measured
    values, # By round
    target:str='', # Such as ">= 2.0"; "" for none
    also:dict=None, # What else the target asks, and whether it holds
    **beside # More columns
) -> dict: # A row of a table
    "The median and the range of a figure, and whether the median is where it should be"
    values,also = list(values),also or {}
    row = {'figure': figure, 'median': f'{median(values):.3g}', 'range': f'{min(values):.3g} to {max(values):.3g}',
           'target': ', '.join([target, *also]), 'reached': ''}
    if target:
        compare,bound = target.split()
        row['reached'] = 'yes' if _COMPARE[compare](median(values), float(bound)) and all(also.values()) else 'no'
    return row | beside

def ratio_row(
    figure:str, # What is compared
    over, # A contestant's numbers, by round
    under, # Those of the one that it is compared with
    target:str='', # See `figure_row`
    also:dict=None, # See `figure_row`
    unit:str='examples/s', # Of the numbers, whose medians are shown too
    **beside # More columns
) -> dict: # A row of a table
    "The ratio of two contestants, round by round"
    over,under = list(over),list(under)
    ratios = [a/b for a,b in zip(over, under, strict=True)]
    return figure_row(figure, ratios, target, also, **{unit: f'{median(over):.4g} / {median(under):.4g}'}, **beside)

def medians(
    results:dict, # From `alternate`
) -> list[dict]: # A row a contestant
    "What each contestant measured, as medians of the rounds"
    return [{'contestant': k} | {c: f'{v:.4g}' for c,v in df.median().items()} for k,df in results.items()]

# --- Texts and models

def reviews(
    kind:str, # "short" (sentences), "long" (whole reviews), or "mixed" (half of each)
    rows:int, # How many
) -> pd.DataFrame: # Columns `text`, `label`
    "Movie reviews, shuffled"
    if kind=='mixed':
        halves = [reviews('short', rows//2), reviews('long', rows - rows//2)]
        return pd.concat(halves).sample(frac=1, random_state=0, ignore_index=True)
    return load_movie_reviews(rows, dict(short='rotten_tomatoes', long='imdb')[kind])[['text', 'label']]

def reviewer(
    rows:int, # Sentences to train on
    **kwargs # Passed to `HFTextDataLoaders`
): # A learner
    "A learner that has seen some reviews, so that its probabilities are not all alike"
    set_seed(0)
    learn = hf_learner(HFTextDataLoaders.from_df(reviews('short', rows), minilm_checkpoint(), seed=0, **kwargs))
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, 2e-4)
    return learn

def ideal_batches(
    tokenizer, # Of the model
    texts:list, # What to encode
    max_length:int, # Tokens a text, at most
    batch_tokens:int=4096, # Tokens a batch, padding included
) -> list[tuple]: # Positions of texts, and their inputs on the device
    "Batches of texts sorted by length, encoded beforehand"
    enc = tokenizer(texts, truncation=True, max_length=max_length)
    idxs = token_batches([len(o) for o in enc['input_ids']], batch_tokens)
    pad = lambda o: tokenizer.pad({k: [v[i] for i in o] for k,v in enc.items()}, return_tensors='pt')
    return [(o, to_device(dict(pad(o)), device())) for o in idxs]

def ideal_probs(
    model, # In evaluation mode
    batches:list, # From `ideal_batches`
) -> torch.Tensor: # Texts x classes, on the CPU
    "What `model` says of `batches`, in the order of the texts"
    with torch.inference_mode(): probs = torch.cat([model(**x).logits.softmax(-1) for _,x in batches]).cpu()
    return probs[torch.cat([torch.from_numpy(o) for o,_ in batches]).argsort()]

# --- The file of results

PACKAGES = ('torch', 'transformers', 'fastai', 'tokenizers', 'datasets', 'blurlike')

def proc_line(path, key):
    "What a file of `/proc` says of `key`; None where there is no such file"
    found = re.search(rf'^{key}\s*:\s*(.+)$', Path(path).read_text(), re.MULTILINE) if Path(path).exists() else None
    return found and found[1]

def machine(
) -> str: # A sentence
    "What this runs on, and with which versions"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    memory = proc_line('/proc/meminfo', 'MemTotal')
    parts = [proc_line('/proc/cpuinfo', 'model name') or platform.processor(), f'{cores} cores', f'{torch.get_num_threads()} threads of torch',
             f'{int(memory.split()[0])/2**20:.0f} GB of memory' if memory else 'memory unknown',
             torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU']
    return ', '.join([*parts, f'python {platform.python_version()}', *(f'{o} {version(o)}' for o in PACKAGES)]) + '.'

def markdown(
    rows:list[dict], # With the same keys
) -> str: # A table
    "A table of `rows`"
    cells = [list(rows[0]), ['---']*len(rows[0]), *(o.values() for o in rows)]
    return '\n'.join(f"| {' | '.join(map(str, o))} |" for o in cells)

def section_text(
    about:str, # What is measured, and how
    tables:dict, # Captions, and rows
    command:str, # What made it
) -> str: # Markdown
    "What a section says, with the command, the date and the machine"
    tables = [f'{caption}\n\n{markdown(rows)}' for caption,rows in tables.items()]
    return '\n\n'.join([about.strip(), f'`{command}`, {date.today()}: {machine()}', *tables])

HEADER = ("# How fast is blurlike?\n\nWritten by `python -m benchmarks.speed`, a section at a time. A figure is the ratio of two contestants that took "
          "turns in one run (padding, a share, is that of one): the median of the rounds, and their range. Numbers of different runs do not compare.")

def write_section(
    path, # The file, which need not exist
    name:str, # The section's heading
    text:str, # What stands below it
) -> None:
    "Replace a section of a markdown file, or append it; whoever reads meanwhile sees the old file or the new one"
    path = Path(path)
    head,*old = re.split(r'^## ', path.read_text(encoding='utf-8') if path.exists() else HEADER, flags=re.MULTILINE)
    sections = {k: v.strip() for k,_,v in (o.partition('\n') for o in old)} | {name: text.strip()}
    new = path.with_name(f'{path.name}.{os.getpid()}')
    new.write_text('\n\n'.join([head.strip(), *(f'## {k}\n\n{v}' for k,v in sections.items())]) + '\n', encoding='utf-8')
    os.replace(new, path)
