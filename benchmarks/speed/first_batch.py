"What a first batch takes from one source; `data` asks for it in a process that does nothing else"
import time
from threading import Event, Thread

import pandas as pd
from datasets import DatasetDict, IterableDatasetDict, load_from_disk

from blurlike.all import HFTextDataLoaders, minilm_checkpoint

from .common import proc_line

SOURCES = ('DataFrame', 'mapped', 'stream')
VALID = 64 # Rows to validate on

def source_of(
    kind:str, # One of `SOURCES`
    rows:int, # How many
    folder:str, # Of rows on disk
):
    "The rows as a user would have them"
    ds = load_from_disk(folder)
    if kind=='DataFrame':
        df = ds.select(range(rows)).to_pandas()
        return df.assign(label=pd.Categorical.from_codes(df.label, ds.features['label'].names))
    train,valid = ds.select(range(rows)),ds.select(range(VALID))
    return DatasetDict(train=train, validation=valid) if kind=='mapped' else IterableDatasetDict(train=train.to_iterable_dataset(), validation=valid)

def loaders_of(
    source, # From `source_of`
    rows:int, # How many
):
    "The loaders of `source`"
    if isinstance(source, pd.DataFrame): return HFTextDataLoaders.from_df(source, minilm_checkpoint(), max_length=128, valid_pct=VALID/rows, seed=0)
    stream = dict(n=rows) if isinstance(source, IterableDatasetDict) else {}
    return HFTextDataLoaders.from_dataset(source, minilm_checkpoint(), max_length=128, seed=0, **stream)

def anonymous_mb(
) -> float: # NaN where the system does not tell
    "The memory that this process holds itself, mapped files aside"
    kb = proc_line('/proc/self/status', 'RssAnon')
    return int(kb.split()[0])/2**10 if kb else float('nan')

class Peak:
    "The highest anonymous memory during a `with`, looked at every few milliseconds"
    def __init__(self): self.mb,self.done,self.thread = 0.,Event(),Thread(target=self.watch)
    def __enter__(self):
        self.thread.start()
        return self
    def __exit__(self, *_):
        self.done.set()
        self.thread.join()
    def watch(self):
        while not self.done.wait(0.005): self.mb = max(self.mb, anonymous_mb())

def first_batch(
    kind:str, # One of `SOURCES`
    rows:int, # How many
    folder:str, # Of rows on disk
) -> dict: # Numbers
    "Seconds until a batch is there, and memory"
    with Peak() as peak:
        source = source_of(kind, rows, folder)
        before,start = anonymous_mb(),time.perf_counter()
        next(iter(loaders_of(source, rows).train))
        seconds = time.perf_counter() - start
    return {'first batch, s': seconds, 'before, MB': before, 'peak, MB': peak.mb}
