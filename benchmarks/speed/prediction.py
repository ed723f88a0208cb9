"""Prediction: the same texts, sentences and whole reviews mixed, by the same MiniLM, cut at 512 tokens.

The limit is the model alone, in fp32, on batches that are made beforehand: sorted by length, at most 4096 tokens each. `pipeline` gets the texts as they
come, and once sorted by hand. `difference` is the largest between a probability and the limit's; `other label` counts the texts whose label is not the limit's.
`int8` is for CPUs; on a GPU `fp16` has its place."""
import tempfile
from functools import partial

import numpy as np
from transformers import pipeline

from .common import alternate, device, ideal_batches, ideal_probs, medians, ratio_row, reviewer, reviews, timed

MAX_LENGTH = 512

def run(
    predict, # A function of texts that returns texts x classes
    texts:list, # What to predict
    reference, # What the limit says of them
    i:int, # The round
) -> dict: # Numbers
    "Predict all texts"
    seconds,probs = timed(predict, texts)
    probs = np.asarray(probs)
    return {'examples/s': len(texts)/seconds, 'difference': np.abs(probs - reference).max(),
            'other label': (probs.argmax(-1) != reference.argmax(-1)).sum()}

def by_learner(learn, texts, precision):
    "`hf_predict`"
    return [o['probs'] for o in learn.hf_predict(texts, precision=precision)]

def by_pipeline(pipe, labels, texts, batch_size):
    "`pipeline`, with the scores of all labels"
    kwargs = dict(top_k=None, truncation=True, max_length=MAX_LENGTH, batch_size=batch_size)
    scores = [{o['label']: o['score'] for o in row} for row in pipe(texts, **kwargs)]
    return [[o[l] for l in labels] for o in scores]

def by_sorted_pipeline(pipe, labels, texts, batch_size):
    "`pipeline`, with texts sorted by hand and their answers put back in order"
    order = np.argsort([len(o) for o in texts], kind='stable')
    return np.array(by_pipeline(pipe, labels, [texts[i] for i in order], batch_size))[order.argsort()]

def contestants(
    learn, # A learner
    pipe, # A pipeline with its model
    texts:list, # What to predict
) -> dict:
    "All of them"
    labels = list(learn.dls.vocab)
    batches = ideal_batches(learn.dls.hf_block.hf_tokenizer, texts, MAX_LENGTH)
    ideal = lambda _: ideal_probs(learn.model.eval(), batches)
    predicts = {
        'ideal batches, fp32': ideal,
        **{f'pipeline, batch_size={o}': partial(by_pipeline, pipe, labels, batch_size=o) for o in (1, 8, 32)},
        'pipeline, batch_size=32, sorted by hand': partial(by_sorted_pipeline, pipe, labels, batch_size=32),
        **{f'hf_predict, {o}': partial(by_learner, learn, precision=o) for o in ('fp32', 'bf16', 'int8' if device().type=='cpu' else 'fp16')}}
    reference = ideal(texts).numpy()
    return {k: partial(run, f, texts, reference) for k,f in predicts.items()}

def figures(
    results:dict, # From `alternate`
) -> list[dict]:
    "The rows that have targets"
    best = max((k for k in results if k.startswith('pipeline') and 'sorted' not in k), key=lambda k: results[k]['examples/s'].median())
    def row(over, under, target='', close=False):
        diff = results[over].difference.max()
        return ratio_row(f'{over} over {under}', results[over]['examples/s'], results[under]['examples/s'], target,
                         {'difference <= 1e-5': diff <= 1e-5} if close else None,
                         difference=f'{diff:.1e}', **{'other label': int(results[over]['other label'].max())})
    return [row('hf_predict, fp32', best, '>= 3.0', close=True), row('hf_predict, bf16', best, '>= 4.5'),
            row('hf_predict, int8', best, '>= 6') if 'hf_predict, int8' in results else row('hf_predict, fp16', best),
            row('hf_predict, fp32', 'ideal batches, fp32', '>= 0.95'),
            row('hf_predict, fp32', 'pipeline, batch_size=32, sorted by hand')]

def measure(
    rounds:int, # How often each contestant predicts all texts
    texts:int, # How many
    train:int, # Sentences that the model has seen
) -> dict: # Captions, and rows of tables
    "The tables of this section"
    learn = reviewer(train, max_length=MAX_LENGTH)
    rows = reviews('mixed', texts).text.tolist()
    with tempfile.TemporaryDirectory() as folder: pipe = pipeline('text-classification', model=str(learn.save_pretrained(folder)), device=device())
    alternate(contestants(learn, pipe, rows[:8]), 1, warmup=0)
    results = alternate(contestants(learn, pipe, rows), rounds, warmup=0)
    return {f"{texts} texts. `pipeline` stands for its fastest batch size of 1, 8 and 32, of texts as they come.": figures(results), 'Each contestant.': medians(results)}
