"""Scoring a dataset: `score` with a tiny BERT (2 layers of 32 units, random weights) on Parquet files of reviews.

The tiny model makes reading, tokenizing and writing count. The peak is that of the anonymous memory of the process,
which excludes memory-mapped files, above its memory before the call, each in a process of its own. Ray has as many
processors as the machine; its figures include the time to start it, and its memory is that of the driver alone. Peak
RSS is that of the whole process, with the libraries."""
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from blurlike.all import load_hf_learner, minilm_checkpoint

from .common import figure_row, proc_line, reviews
from .first_batch import Peak, anonymous_mb

WAYS = ('local', 'ray', 'hf_predict')

def make_model(
    folder, # Where to save it
):
    "Save a tiny BERT with MiniLM's tokenizer"
    tokenizer = AutoTokenizer.from_pretrained(minilm_checkpoint())
    config = AutoConfig.for_model('bert', vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2,
                                  num_attention_heads=2, intermediate_size=48, num_labels=2)
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)

def make_data(
    path, # A Parquet file
    rows:int, # Number of rows
):
    "Write sentences, repeated, in row groups of 10,000"
    texts = reviews('short', 2000).text.tolist()
    pd.DataFrame(dict(id=range(rows), text=(texts*(rows//len(texts)+1))[:rows])).to_parquet(path, row_group_size=10_000)

def score_once(
    way:str, # One of `WAYS`
    data, # A Parquet file
    model, # The saved model
    out, # The folder to write
) -> dict: # Numbers
    "Measure the seconds and the memory of a run in this process"
    from blurlike.scale import score
    if way=='hf_predict': learn = load_hf_learner(model)
    before,start = anonymous_mb(),time.perf_counter()
    with Peak() as peak:
        if way=='hf_predict': learn.hf_predict(pd.read_parquet(data).text)
        else: score(data, model, out, engine=way)
    seconds,rss = time.perf_counter() - start,proc_line('/proc/self/status', 'VmHWM') or 'nan'
    return dict(seconds=seconds, peak=peak.mb - before, rss=float(rss.split()[0])/2**10)

def in_process(
    way:str, # One of `WAYS`
    rows:int, # Number of rows
    folder, # Where the model is, and data and scores are written
) -> dict: # Numbers
    "Measure a run in a new process"
    data,out = folder/f'{rows}.parquet',tempfile.mkdtemp(dir=folder) # an earlier run would be continued
    if not data.exists(): make_data(data, rows)
    args = [str(o) for o in (way, data, folder/'model', out)]
    code = f'import json; from benchmarks.speed.scale import score_once; print(json.dumps(score_once(*{args!r})))'
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, check=True)
    print(way, rows, done.stdout.splitlines()[-1], file=sys.stderr)
    return json.loads(done.stdout.splitlines()[-1])

def measure(
    rounds:int, # Not used: a run is long
    few:int, # Rows of the small dataset
    many:int, # Rows of the large one
    others:int, # Rows for comparing engines
) -> dict: # Captions and tables
    "Compare memory for few and many rows, and engines"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder/'model')
        small,large = (in_process('local', o, folder) for o in (few, many))
        ways = {o: in_process(o, others, folder) for o in WAYS}
    table = [dict(way=k, rows=others, **{'rows/s': f'{others/o["seconds"]:.0f}', 'peak, MB': f'{o["peak"]:.0f}'})
             for k,o in ways.items()]
    growth = figure_row(f'peak of {many:,} rows over {few:,}, local', [large['peak']/small['peak']], '<= 1.5',
                        **{'peak, MB': f'{large["peak"]:.0f} / {small["peak"]:.0f}',
                           'peak RSS, MB': f'{large["rss"]:.0f} / {small["rss"]:.0f}',
                           'rows/s': f'{many/large["seconds"]:.0f}'})
    return {'Memory.': [growth], 'One run each.': table}
