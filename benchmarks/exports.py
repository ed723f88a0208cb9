"""What an export costs and gains: probabilities, accuracy, size and speed of a model of reviews, in PyTorch and in onnxruntime.

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

from blurlike.all import HFTextDataLoaders, hf_learner, load_hf_learner, minilm_checkpoint, load_movie_reviews


@call_parse
def main(
    model:str=None, # A saved model that tells reviews apart; one is trained if not given
    rows:int=6000, # Reviews, of which those marked for validation are asked about
    rounds:int=5, # How often each model predicts all of them, in turn
):
    "Print a table: a row for PyTorch, one for the export, one for the export with weights of 8 bits"
    df = load_movie_reviews(rows)
    if model is None:
        set_seed(0)
        learn = hf_learner(HFTextDataLoaders.from_df(df, minilm_checkpoint(), valid_col='is_valid', max_length=128, seed=0))
        with learn.no_bar(): learn.fit_one_cycle(1, slice(2e-5, 2e-4))
    else: learn = load_hf_learner(model)
    valid = df[df.is_valid]
    texts,labels = valid.text.tolist(),valid.label.to_numpy()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        paths = [learn.save_pretrained(folder/'torch'), learn.export_onnx(folder/'fp32'), learn.export_onnx(folder/'int8', precision='int8')]
        learners = {o.name: load_hf_learner(o) for o in paths}
        sizes = {o.name: sum(f.stat().st_size for f in o.rglob('*') if f.suffix in ('.onnx', '.safetensors')) for o in paths}
        preds,seconds = {},{o: [] for o in learners}
        for i in range(rounds+1): # the first warms up
            for name,o in learners.items():
                start = time.perf_counter()
                preds[name] = o.hf_predict(texts)
                if i: seconds[name].append(time.perf_counter() - start)
    probs = {k: np.array([o['probs'] for o in v]) for k,v in preds.items()}
    def row(name):
        diff,ratios = np.abs(probs[name] - probs['torch']),[a/b for a,b in zip(seconds['torch'], seconds[name], strict=True)]
        return {'model': name, 'MB': round(sizes[name]/1e6, 1), 'accuracy': round(float(np.mean([o['label'] for o in preds[name]]==labels)), 4),
                'other label': int(sum(a['label'] != b['label'] for a,b in zip(preds[name], preds['torch'], strict=True))),
                'largest difference': f'{diff.max():.1e}', 'mean difference': f'{diff.mean():.1e}',
                'speed over PyTorch': f'{median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})'}
    print(f'{len(texts)} texts')
    print(pd.DataFrame(map(row, learners)).to_string(index=False))
