"""Fixed costs: the time that every import, learner, text and training step takes, however small the work. Ratios are
of time, so less is better.

Imports are timed in a new interpreter, including its start. A single text is predicted with `hf_predict`, and with
the tokenizer, the model and a softmax. Training steps use a BERT with 2 layers of hidden size 32, so small that the
training loop dominates the step. `hf_learner`, fastai's `Learner` and the bare loop over `dls.train` include making
the batches; the bare loop over ready batches does not. `hf_learner` also validates one batch per epoch, and updates
its progress bar where the bar is on."""
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
    'import fastai and transformers': 'from fastai.text.all import *; '
        'from transformers import AutoModelForSequenceClassification, AutoTokenizer, AutoConfig'}

def cost(
    f, # The function to time
    times:int, # Number of calls
    i:int, # The round
) -> dict: # Numbers
    "Measure the milliseconds per call"
    return {'ms': 1000*timed(lambda: [f() for _ in range(times)])[0]/times}

# --- Imports, construction, a single text

def run_code(code):
    "Run `code` in a new interpreter"
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code], cwd=ROOT, check=True)

def constructions(dls) -> dict:
    "Return functions that make a learner, and load its model alone"
    load = AutoModelForSequenceClassification.from_pretrained
    return {'hf_learner(dls)': lambda: hf_learner(dls),
            'from_pretrained': lambda: load(minilm_checkpoint(), num_labels=2)}

def single_texts(
    learn, # A learner
    text:str, # The text to predict
) -> dict:
    "Return functions that predict one text with the learner, and without it"
    tokenizer,model = learn.dls.hf_block.hf_tokenizer,learn.model.eval()
    def by_hand():
        x = tokenizer(text, truncation=True, return_tensors='pt').to(device())
        with torch.inference_mode(): return model(**x).logits.softmax(-1)[0].tolist()
    return {'hf_predict(text)': lambda: learn.hf_predict(text), 'tokenizer, model, softmax': by_hand}

# --- A step

def tiny_loaders(
    steps:int, # Number of training batches
    bs:int=16, # Rows per batch
) -> tuple: # `DataLoaders`, and a model
    "Return sentences, and a BERT of hidden size 32"
    tokenizer = AutoTokenizer.from_pretrained(minilm_checkpoint())
    config = AutoConfig.for_model('bert', vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2,
                                  num_attention_heads=2, intermediate_size=64)
    model = AutoModelForSequenceClassification.from_config(config)
    rows = steps*bs
    df = reviews('short', rows + bs)
    dls = HFTextDataLoaders.from_df(df, HFObjects('bert', config, tokenizer, model), bs=bs, max_length=64, seed=0,
                                    splits=(range(rows), range(rows, len(df))))
    return dls,model.to(device())

def plain(batch):
    "Return a batch as a dict and a plain tensor"
    x,y = batch
    return dict(x),y.as_subclass(torch.Tensor)

def fit_hf(dls, model, bar):
    "Return a function that trains with `hf_learner` and its defaults"
    learn = hf_learner(dls, model)
    if bar: return partial(learn.fit, 1)
    def fit():
        with learn.no_bar(): learn.fit(1)
    return fit

def fit_fastai(dls, model):
    "Return a function that trains with fastai's `Learner` and its defaults, without a progress bar"
    learn = Learner(dls, model, loss_func=CrossEntropyLossFlat(), metrics=accuracy, cbs=[HFCallback])
    def fit():
        with learn.no_bar(): learn.fit(1)
    return fit

def step(
    prepare, # Function of a model that returns a function, which trains it for an epoch
    model, # The model, which is copied
    steps:int, # Steps per epoch
    i:int, # The round
) -> dict: # Numbers
    "Measure the milliseconds per training step"
    return {'ms': 1000*timed(prepare(model=deepcopy(model)))[0]/steps}

def steps_of(
    steps:int, # Steps per epoch
) -> dict:
    "Return the contestants that train"
    dls,model = tiny_loaders(steps)
    batches = list(map(plain, dls.train))
    prepares = {
        'hf_learner, bar off': partial(fit_hf, dls, bar=False),
        'hf_learner, bar on': partial(fit_hf, dls, bar=True),
        'fastai Learner, bar off': partial(fit_fastai, dls),
        'bare loop over ready batches': lambda model: partial(train_bare, model, batches, 5e-5, steps),
        'bare loop over dls.train': lambda model: partial(train_bare, model, map(plain, dls.train), 5e-5, steps)}
    return {k: partial(step, f, model, steps) for k,f in prepares.items()}

# --- The section

def measure(
    rounds:int, # Number of rounds
    calls:int, # Single texts per round
    steps:int, # Training steps per round
) -> dict: # Captions mapped to rows
    "Return the tables of this section"
    learn = reviewer(64)
    costs = [
        ({k: partial(cost, partial(run_code, v), 1) for k,v in IMPORTS.items()}, '<= 1.1'),
        ({k: partial(cost, f, 1) for k,f in constructions(learn.dls).items()}, ''),
        ({k: partial(cost, f, calls) for k,f in single_texts(learn, reviews('short', 1).text[0]).items()}, '<= 1.15')]
    pairs = [(alternate(o, rounds), target) for o,target in costs]
    trained = alternate(steps_of(steps), rounds)
    def row(results, over, under, target=''):
        return ratio_row(f'{over} over {under}', results[over].ms, results[under].ms, target, unit='ms')
    ready,same = 'bare loop over ready batches','bare loop over dls.train'
    figures = [*(row(o, *o, target) for o,target in pairs),
               row(trained, 'hf_learner, bar on', same, '<= 1.2'), row(trained, 'hf_learner, bar off', same),
               row(trained, 'fastai Learner, bar off', same), row(trained, 'hf_learner, bar off', ready)]
    return {f'{calls} single texts and {steps} training steps per round.': figures,
            'Each contestant.': medians(dict(chain(*(o.items() for o,_ in pairs), trained.items())))}
