"""Data: the cost of making batches without a model, and the time and memory that a learner needs before its first
batch.

The first two figures compare `dls.train` with one call of the tokenizer on all texts. The call returns token ids as
lists, truncated and without padding. The first epoch includes making the loaders from a DataFrame: reading and
checking the rows, tokenizing every text, batching, padding and making tensors. Later epochs reuse the token ids of
the first, so they only shuffle, batch, pad and make tensors; the figure is the mean of several. Neither side includes
loading the tokenizer from disk.

The first batch is measured in a process of its own: from a DataFrame, from a memory-mapped `datasets.Dataset`, and
from a stream of its rows. Memory is the peak of anonymous memory (`RssAnon`), which excludes memory-mapped files,
because the system can reclaim those. `before` is the memory in use once the rows are available and before the loaders
are made; the seconds count from there to the first batch."""
import tempfile
from functools import partial
from multiprocessing import get_context

from datasets import ClassLabel, Dataset, Features, Value

from blurlike.all import (
    HFObjects,
    HFTextDataLoaders,
    load_hf_config,
    load_hf_tokenizer,
    minilm_checkpoint,
    padding_share,
)

from .common import alternate, figure_row, medians, ratio_row, reviews, timed
from .first_batch import SOURCES, first_batch

MAX_LENGTH = 128
LATER = 3 # Number of epochs after the first

# --- Batches without a model

def go_through(
    dl, # A `DataLoader`
):
    "Make every batch of an epoch"
    for _ in dl: pass

def epochs(
    make, # Function that returns `DataLoaders`
    rows:int, # Number of training rows
    i:int, # The round
) -> dict: # Numbers
    "Time the first epoch, including `make`, and the epochs after it"
    def first():
        dls = make()
        go_through(dls.train)
        return dls
    seconds,dls = timed(first)
    later = sum(timed(go_through, dls.train)[0] for _ in range(LATER))/LATER
    return {'first': rows/seconds, 'later': rows/later, 'padding, %': 100*padding_share(dls.train)}

def calls(
    tokenize, # Function that tokenizes all texts
    rows:int, # Number of texts
    i:int, # The round
) -> dict: # Numbers
    "Time one call of the tokenizer"
    return {'once': rows/timed(tokenize)[0]}

def batches_against_tokenizer(
    kind:str, # See `reviews`
    rows:int, # Number of training rows
    rounds:int, # Number of rounds
) -> list[dict]: # Rows of a table
    "Compare epochs of `dls.train` with one call of the tokenizer, and report the share of padding"
    config = load_hf_config(minilm_checkpoint())
    df,tokenizer = reviews(kind, rows + 16),load_hf_tokenizer(minilm_checkpoint(), config)
    splits,texts = (range(rows), range(rows, len(df))),df.text[:rows].tolist()
    hf = HFObjects(config.model_type, config, tokenizer, None)
    make = partial(HFTextDataLoaders.from_df, df, hf, task='sequence-classification', max_length=MAX_LENGTH, seed=0,
                   splits=splits)
    once = partial(tokenizer, texts, padding=False, truncation=True, max_length=MAX_LENGTH)
    ours,theirs = alternate({'dls.train': partial(epochs, make, rows),
                             'tokenizer, one call': partial(calls, once, rows)}, rounds).values()
    over = f'over one call of the tokenizer, {kind} texts'
    return [ratio_row(f'first epoch of dls.train {over}', ours['first'], theirs['once'], '>= 1.0'),
            ratio_row(f'later epochs of dls.train {over}', ours['later'], theirs['once'], '>= 10'),
            figure_row(f'padding of dls.train, {kind} texts, %', ours['padding, %'], '<= 2') | {'examples/s': ''}]

# --- The first batch

def many_rows(
    rows:int, # Number of rows
): # Yields dicts
    "Repeat the reviews, with a number that makes each text unique"
    df = reviews('short', 8000)
    texts,labels = df.text.tolist(),df.label.tolist()
    for i in range(rows): yield dict(text=f'{i} {texts[i%len(texts)]}', label=labels[i%len(labels)])

def save_rows(
    rows:int, # Number of rows
    folder:str, # Folder to write to
) -> str: # Path of the saved dataset
    "Save rows for `datasets.load_from_disk`"
    features = Features(text=Value('string'), label=ClassLabel(names=['negative', 'positive']))
    ds = Dataset.from_generator(many_rows, features=features, gen_kwargs=dict(rows=rows), cache_dir=f'{folder}/cache')
    ds.save_to_disk(f'{folder}/rows')
    return f'{folder}/rows'

def fresh_processes(
): # A pool
    "Return a pool that runs each task in a new process, in which the library is already imported"
    context = get_context('forkserver')
    context.set_forkserver_preload([first_batch.__module__])
    return context.Pool(1, maxtasksperchild=1)

def first_batches(
    sizes:tuple, # Numbers of rows, in increasing order
    rounds:int, # Number of rounds
    sources:tuple=SOURCES, # Kinds of sources to measure
) -> dict: # Result of `alternate`
    "Measure the first batch from every source at every size"
    with tempfile.TemporaryDirectory() as folder, fresh_processes() as pool:
        path = save_rows(sizes[-1], folder)
        tasks = {f'{s}, {n:,} rows': (s, n, path) for n in sizes for s in sources}
        return alternate({k: lambda i, o=o: pool.apply(first_batch, o) for k,o in tasks.items()}, rounds, warmup=0)

def first_batch_figures(
    results:dict, # From `first_batches`
    sizes:tuple, # The sizes that were measured
) -> list[dict]: # Rows of a table
    "Compare memory and time between sizes and between sources"
    small,large = f'{sizes[0]:,} rows',f'{sizes[-1]:,} rows'
    sources = list(dict.fromkeys(k.split(',')[0] for k in results))
    def row(column, over, under, target=''):
        name,unit = column.rsplit(', ', 1)
        figure,numbers = f'{name}: {over} over {under}',(results[over][column], results[under][column])
        return ratio_row(figure, *numbers, target, unit='numbers') | {'unit': unit}
    flat = lambda source: '<= 1.1' if source=='mapped' else ''
    return [*(row('peak, MB', f'{o}, {large}', f'{o}, {small}', flat(o)) for o in sources),
            *(row('first batch, s', f'{o}, {large}', f'{sources[0]}, {large}') for o in sources[1:])]

def measure(
    rounds:int, # Number of rounds
    rows:int, # Number of training rows in an epoch without a model
    sizes:tuple, # Numbers of rows before a first batch, in increasing order
) -> dict: # Captions mapped to rows
    "Return the tables of this section"
    figures = [row for kind in ('short', 'mixed') for row in batches_against_tokenizer(kind, rows, rounds)]
    firsts = first_batches(sizes, rounds)
    return {f'{rows} texts, max_length {MAX_LENGTH}, batches of 16.': figures,
            'The first batch.': first_batch_figures(firsts, sizes), 'Each source.': medians(firsts)}
