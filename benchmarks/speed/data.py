"""Data: what it costs to make batches, and what a learner's rows cost before the first of them.

Without a model, an epoch of `dls.train` is beside one call of the tokenizer on all texts, without padding. The first batch and the memory are those of a
process of its own, from a DataFrame, from a `datasets.Dataset` that is mapped into memory, and from a stream of its rows. Memory is anonymous memory
(`RssAnon`): what the process holds itself, at its highest, without the mapped pages of files, which the system may drop. `before` is held when the
rows are at hand and no loader is made; the seconds are from there to the first batch."""
import tempfile
from functools import partial
from multiprocessing import get_context

from datasets import ClassLabel, Dataset, Features, Value
from transformers import AutoTokenizer

from blurlike.all import HFTextDataLoaders, minilm_checkpoint, padding_share

from .common import alternate, figure_row, medians, ratio_row, reviews, timed
from .first_batch import SOURCES, first_batch

MAX_LENGTH = 128

# --- Batches without a model

def speed(
    f, # Goes through all rows
    rows:int, # How many there are
    i:int, # The round
) -> dict: # Numbers
    "How many rows a second"
    return {'examples/s': rows/timed(f)[0]}

def batches_against_tokenizer(
    kind:str, # See `reviews`
    rows:int, # How many
    rounds:int, # How often each goes through them
) -> list[dict]: # Rows of a table
    "An epoch of `dls.train` beside one call of the tokenizer, and the share of padding in it"
    df,tokenizer = reviews(kind, rows + 16),AutoTokenizer.from_pretrained(minilm_checkpoint())
    texts = df.text[:rows].tolist()
    dls = HFTextDataLoaders.from_df(df, minilm_checkpoint(), max_length=MAX_LENGTH, seed=0, splits=(range(rows), range(rows, len(df))))
    def epoch():
        for _ in dls.train: pass
    padding = figure_row(f'padding of dls.train, {kind} texts, %', [100*padding_share(dls.train) for _ in range(rounds)], '<= 2')
    once = partial(tokenizer, texts, padding=False, truncation=True, max_length=MAX_LENGTH)
    ours,theirs = alternate({'dls.train': partial(speed, epoch, rows), 'tokenizer, once': partial(speed, once, rows)}, rounds).values()
    figure = f'dls.train over one call of the tokenizer, {kind} texts'
    return [ratio_row(figure, ours['examples/s'], theirs['examples/s'], '>= 0.8'), padding | {'examples/s': ''}]

# --- The first batch

def many_rows(
    rows:int, # How many
): # Yields dicts
    "Reviews over and over, no two alike"
    df = reviews('short', 8000)
    texts,labels = df.text.tolist(),df.label.tolist()
    for i in range(rows): yield dict(text=f'{i} {texts[i%len(texts)]}', label=labels[i%len(labels)])

def save_rows(
    rows:int, # How many
    folder:str, # Where to write them
) -> str: # Where they are
    "Rows as `datasets.load_from_disk` reads them"
    features = Features(text=Value('string'), label=ClassLabel(names=['negative', 'positive']))
    ds = Dataset.from_generator(many_rows, features=features, gen_kwargs=dict(rows=rows), cache_dir=f'{folder}/cache')
    ds.save_to_disk(f'{folder}/rows')
    return f'{folder}/rows'

def fresh_processes(
): # A pool
    "A process for each task, forked from one that has imported the library and done nothing"
    context = get_context('forkserver')
    context.set_forkserver_preload([first_batch.__module__])
    return context.Pool(1, maxtasksperchild=1)

def first_batches(
    sizes:tuple, # Numbers of rows, growing
    rounds:int, # How often each has its turn
    sources:tuple=SOURCES, # Which to try
) -> dict: # From `alternate`
    "Every source at every size"
    with tempfile.TemporaryDirectory() as folder, fresh_processes() as pool:
        path = save_rows(sizes[-1], folder)
        tasks = {f'{s}, {n:,} rows': (s, n, path) for n in sizes for s in sources}
        return alternate({k: lambda i, o=o: pool.apply(first_batch, o) for k,o in tasks.items()}, rounds, warmup=0)

def first_batch_figures(
    results:dict, # From `first_batches`
    sizes:tuple, # As given there
) -> list[dict]:
    "How memory and time grow"
    small,large,sources = f'{sizes[0]:,} rows',f'{sizes[-1]:,} rows',list(dict.fromkeys(k.split(',')[0] for k in results))
    def row(column, over, under, target=''):
        unit = column.split(', ')[-1]
        return ratio_row(f'{column[:-len(unit)-2]}: {over} over {under}', results[over][column], results[under][column], target, unit='numbers') | {'unit': unit}
    return [*(row('peak, MB', f'{o}, {large}', f'{o}, {small}', '<= 1.1' if o=='mapped' else '') for o in sources),
            *(row('first batch, s', f'{o}, {large}', f'{sources[0]}, {large}') for o in sources[1:])]

def measure(
    rounds:int, # How often each has its turn
    rows:int, # Of an epoch without a model
    sizes:tuple, # Numbers of rows before a first batch, growing
) -> dict: # Captions, and rows of tables
    "The tables of this section"
    figures = [row for kind in ('short', 'mixed') for row in batches_against_tokenizer(kind, rows, rounds)]
    firsts = first_batches(sizes, rounds)
    return {f'{rows} texts, max_length {MAX_LENGTH}, batches of 16.': figures,
            'Rows before the first batch.': first_batch_figures(firsts, sizes), 'Each source.': medians(firsts)}
