"""Compare a classifier of reviews in PyTorch and in onnxruntime: probabilities, accuracy, size and speed.

    python benchmarks/exports.py
    python benchmarks/exports.py --model my_model
"""
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
from fastai.torch_core import set_seed
from fastcore.script import call_parse

from blurlike.all import HFTextDataLoaders, hf_learner, load_hf_learner, load_movie_reviews, minilm_checkpoint


@call_parse
def main(
    model:str=None, # A saved classifier of reviews; a new one is trained if omitted
    rows:int=6000, # Number of reviews; the validation rows are predicted
    rounds:int=5, # Number of rounds in which the models alternate
):
    "Print a table with a row each for PyTorch, for the ONNX export, and for the export with int8 weights"
    df = load_movie_reviews(rows)
    if model is None:
        set_seed(0)
        dls = HFTextDataLoaders.from_df(df, minilm_checkpoint(), valid_col='is_valid', max_length=128, seed=0)
        learn = hf_learner(dls)
        with learn.no_bar(): learn.fit_one_cycle(1, slice(2e-5, 2e-4))
    else: learn = load_hf_learner(model)
    valid = df[df.is_valid]
    texts,labels = valid.text.tolist(),valid.label.to_numpy()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        paths = [learn.save_pretrained(folder/'torch'), learn.export_onnx(folder/'fp32'),
                 learn.export_onnx(folder/'int8', precision='int8')]
        learners = {o.name: load_hf_learner(o) for o in paths}
        def size(path): return sum(f.stat().st_size for f in path.rglob('*') if f.suffix in ('.onnx', '.safetensors'))
        sizes = {o.name: size(o) for o in paths}
        preds,seconds = {},{o: [] for o in learners}
        for i in range(rounds+1): # the first round is a warmup
            for name,o in learners.items():
                start = time.perf_counter()
                preds[name] = o.hf_predict(texts)
                if i: seconds[name].append(time.perf_counter() - start)
    probs = {k: np.array([o['probs'] for o in v]) for k,v in preds.items()}
    def row(name):
        diff = np.abs(probs[name] - probs['torch'])
        ratios = [a/b for a,b in zip(seconds['torch'], seconds[name], strict=True)]
        found,base = (np.array([o['label'] for o in preds[k]]) for k in (name, 'torch'))
        return {'model': name, 'MB': round(sizes[name]/1e6, 1), 'accuracy': round(float((found==labels).mean()), 4),
                'other label': int((found!=base).sum()),
                'largest difference': f'{diff.max():.1e}', 'mean difference': f'{diff.mean():.1e}',
                'speed over PyTorch': f'{median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})'}
    print(f'{len(texts)} texts')
    print(pd.DataFrame(map(row, learners)).to_string(index=False))
