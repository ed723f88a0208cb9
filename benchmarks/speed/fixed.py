"""Fixed costs: what is paid however little there is to do. Ratios are of time, so that less is better.

An import is that of a fresh interpreter, start included. A single text goes through `hf_predict`, and through the tokenizer, the model and a softmax by
hand. A step is that of a BERT so small (2 layers of 32 numbers) that the loop shows; `hf_learner` and fastai's `Learner` tokenize on the way, as does
the second of the bare loops, which goes through the same `dls.train`."""
import subprocess
import sys
from copy import deepcopy
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from blurlike.all import HFCallback, HFObjects, HFTextDataLoaders, hf_learner, minilm_checkpoint

from .common import alternate, device, medians, ratio_row, reviewer, reviews, timed
from .training import train_bare

ROOT = Path(__file__).resolve().parents[2]
IMPORTS = {
    'import blurlike.all': 'import blurlike.all',
    'import fastai and transformers': 'from fastai.text.all import *; from transformers import AutoModelForSequenceClassification, AutoTokenizer, AutoConfig'}

def cost(
    f, # What to do
    times:int, # How often
    i:int, # The round
) -> dict: # Numbers
    "Milliseconds a time"
    return {'ms': 1000*timed(lambda: [f() for _ in range(times)])[0]/times}

# --- Imports, construction, a single text

def run_code(code):
    "Run `code` in a fresh interpreter"
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code], cwd=ROOT, check=True)

def constructions(dls) -> dict:
    "A learner, and the model in it"
    return {'hf_learner(dls)': lambda: hf_learner(dls),
            'from_pretrained': lambda: AutoModelForSequenceClassification.from_pretrained(minilm_checkpoint(), num_labels=2)}

def single_texts(
    learn, # A learner
    text:str, # What to predict
) -> dict:
    "One text, through the learner and by hand"
    tokenizer,model = learn.dls.hf_block.hf_tokenizer,learn.model.eval()
    def by_hand():
        x = tokenizer(text, truncation=True, return_tensors='pt').to(device())
        with torch.inference_mode(): return model(**x).logits.softmax(-1)[0].tolist()
    return {'hf_predict(text)': lambda: learn.hf_predict(text), 'tokenizer, model, softmax': by_hand}

# --- A step

def tiny_loaders(
    steps:int, # Training batches
    bs:int=16, # Rows a batch
) -> tuple: # `DataLoaders`, and a model
    "Sentences for a BERT of hidden size 32"
    tokenizer = AutoTokenizer.from_pretrained(minilm_checkpoint())
    config = AutoConfig.for_model('bert', vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    model = AutoModelForSequenceClassification.from_config(config)
    rows = steps*bs
    df = reviews('short', rows + bs)
    dls = HFTextDataLoaders.from_df(df, HFObjects('bert', config, tokenizer, model), bs=bs, max_length=64, seed=0, splits=(range(rows), range(rows, len(df))))
    return dls,model.to(device())

def plain(batch):
    "A batch without fastai's types"
    x,y = batch
    return dict(x),y.as_subclass(torch.Tensor)

def fit_hf(dls, model, bar):
    "`hf_learner` with its defaults"
    learn = hf_learner(dls, model)
    if bar: return partial(learn.fit, 1)
    def fit():
        with learn.no_bar(): learn.fit(1)
    return fit

def fit_fastai(dls, model):
    "fastai's `Learner` with its defaults, its bar off"
    learn = Learner(dls, model, loss_func=CrossEntropyLossFlat(), metrics=accuracy, cbs=[HFCallback])
    def fit():
        with learn.no_bar(): learn.fit(1)
    return fit

def step(
    prepare, # Returns a function that trains a model for an epoch
    model, # It is copied
    steps:int, # Of an epoch
    i:int, # The round
) -> dict: # Numbers
    "Milliseconds a step"
    return {'ms': 1000*timed(prepare(model=deepcopy(model)))[0]/steps}

def steps_of(
    steps:int, # How many
) -> dict:
    "All who train"
    dls,model = tiny_loaders(steps)
    batches = list(map(plain, dls.train))
    prepares = {
        'hf_learner, bar off': partial(fit_hf, dls, bar=False),
        'hf_learner, bar on': partial(fit_hf, dls, bar=True),
        'fastai Learner, bar off': partial(fit_fastai, dls),
        'bare loop, tokenized beforehand': lambda model: partial(train_bare, model, batches, 5e-5, steps),
        'bare loop over dls.train': lambda model: partial(train_bare, model, map(plain, dls.train), 5e-5, steps)}
    return {k: partial(step, f, model, steps) for k,f in prepares.items()}

# --- The section

def measure(
    rounds:int, # How often each has its turn
    calls:int, # Single texts a round
    steps:int, # Training steps a round
) -> dict: # Captions, and rows of tables
    "The tables of this section"
    learn = reviewer(64)
    costs = [
        ({k: partial(cost, partial(run_code, v), 1) for k,v in IMPORTS.items()}, '<= 1.1'),
        ({k: partial(cost, f, 1) for k,f in constructions(learn.dls).items()}, ''),
        ({k: partial(cost, f, calls) for k,f in single_texts(learn, reviews('short', 1).text[0]).items()}, '<= 1.15')]
    pairs = [(alternate(o, rounds), target) for o,target in costs]
    trained = alternate(steps_of(steps), rounds)
    def row(results, over, under, target=''): return ratio_row(f'{over} over {under}', results[over].ms, results[under].ms, target, unit='ms')
    ahead,same = 'bare loop, tokenized beforehand','bare loop over dls.train'
    figures = [*(row(o, *o, target) for o,target in pairs), *(row(trained, o, same, '<= 1.25') for o in ('hf_learner, bar off', 'hf_learner, bar on')),
               row(trained, 'fastai Learner, bar off', same), row(trained, 'hf_learner, bar off', ahead)]
    return {f'{calls} single texts and {steps} steps a round.': figures, 'Each contestant.': medians(dict(chain(*(o.items() for o,_ in pairs), trained.items())))}
