"The time and memory that a first batch takes from one source; `data` runs it in a process of its own"
import time
from threading import Event, Thread

import pandas as pd
from datasets import DatasetDict, IterableDatasetDict, load_from_disk

from blurlike.all import HFTextDataLoaders, minilm_checkpoint

from .common import proc_line

SOURCES = ('DataFrame', 'mapped', 'stream')
VALID = 64 # Number of validation rows

def source_of(
    kind:str, # One of `SOURCES`
    rows:int, # Number of rows
    folder:str, # Path of the saved dataset
):
    "Load the rows as a user would"
    ds = load_from_disk(folder)
    if kind=='DataFrame':
        df = ds.select(range(rows)).to_pandas()
        return df.assign(label=pd.Categorical.from_codes(df.label, ds.features['label'].names))
    train,valid = ds.select(range(rows)),ds.select(range(VALID))
    if kind=='mapped': return DatasetDict(train=train, validation=valid)
    return IterableDatasetDict(train=train.to_iterable_dataset(), validation=valid)

def loaders_of(
    source, # From `source_of`
    rows:int, # Number of rows
):
    "Make the `DataLoaders` for `source`"
    kwargs = dict(max_length=128, seed=0)
    if isinstance(source, pd.DataFrame):
        return HFTextDataLoaders.from_df(source, minilm_checkpoint(), valid_pct=VALID/rows, **kwargs)
    stream = dict(n=rows) if isinstance(source, IterableDatasetDict) else {}
    return HFTextDataLoaders.from_dataset(source, minilm_checkpoint(), **kwargs, **stream)

def anonymous_mb(
) -> float: # In MB; NaN on systems without `/proc`
    "Return this process's anonymous memory, which excludes memory-mapped files"
    kb = proc_line('/proc/self/status', 'RssAnon')
    return int(kb.split()[0])/2**10 if kb else float('nan')

class Peak:
    "A context manager that records the peak of anonymous memory, sampled every five milliseconds"
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
    rows:int, # Number of rows
    folder:str, # Path of the saved dataset
) -> dict: # Numbers
    "Measure the seconds until the first batch, and the memory"
    with Peak() as peak:
        source = source_of(kind, rows, folder)
        before,start = anonymous_mb(),time.perf_counter()
        next(iter(loaders_of(source, rows).train))
        seconds = time.perf_counter() - start
    return {'first batch, s': seconds, 'before, MB': before, 'peak, MB': peak.mb}
