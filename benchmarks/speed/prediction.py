"""Prediction: the same MiniLM classifies the same sentences and whole reviews, truncated to 512 tokens.

The reference is the model alone in fp32, on batches made in advance: sorted by length, at most 4096 tokens each,
or 16,384 on a GPU.
`pipeline` receives the texts in their original order, and in one more run sorted by length. `difference` is the
largest difference from the reference's probabilities; `other label` counts the texts whose label differs from the
reference's. `int8` runs on CPUs only; on a GPU, `fp16` is measured instead. `bf16` is measured where the hardware has
its arithmetic. `hf_embed` returns vectors of the same texts; its `difference` is that from the mean of the states of
each text alone."""
import tempfile
from functools import partial

import numpy as np
import torch
from transformers import pipeline

from .common import (
    alternate,
    batch_sizes,
    by_device,
    device,
    ideal_batches,
    ideal_probs,
    medians,
    native_precisions,
    ratio_row,
    reviewer,
    reviews,
    timed,
)

MAX_LENGTH = 512

def run(
    predict, # Function of texts that returns probabilities of shape texts x classes
    texts:list, # The texts to predict
    reference, # Probabilities of the reference
    i:int, # The round
) -> dict: # Numbers
    "Predict all texts"
    seconds,probs = timed(predict, texts)
    probs = np.asarray(probs)
    return {'examples/s': len(texts)/seconds, 'difference': np.abs(probs - reference).max(),
            'other label': (probs.argmax(-1) != reference.argmax(-1)).sum()}

def embed(
    learn, # A learner
    texts:list, # The texts to embed
    reference, # The vector of the first text, of shape hidden
    i:int, # The round
) -> dict: # Numbers
    "Embed all texts"
    seconds,vectors = timed(learn.hf_embed, texts)
    return {'examples/s': len(texts)/seconds, 'difference': np.abs(vectors[0] - reference).max(), 'other label': 0}

def mean_state(learn, text):
    "Return the mean of the states of a text's tokens"
    tokenizer = learn.dls.hf_block.hf_tokenizer
    enc = tokenizer(text, truncation=True, max_length=MAX_LENGTH, return_tensors='pt').to(device())
    with torch.inference_mode(): return learn.model.eval().base_model(**enc).last_hidden_state[0].mean(0).cpu().numpy()

def by_learner(learn, texts, precision):
    "Return the probabilities of `hf_predict`"
    return [o['probs'] for o in learn.hf_predict(texts, precision=precision)]

def by_pipeline(pipe, labels, texts, batch_size):
    "Return the scores of `pipeline` for all labels"
    kwargs = dict(top_k=None, truncation=True, max_length=MAX_LENGTH, batch_size=batch_size)
    scores = [{o['label']: o['score'] for o in row} for row in pipe(texts, **kwargs)]
    return [[o[l] for l in labels] for o in scores]

def by_sorted_pipeline(pipe, labels, texts, batch_size):
    "Sort the texts by length, run `pipeline`, and restore the original order"
    order = np.argsort([len(o) for o in texts], kind='stable')
    return np.array(by_pipeline(pipe, labels, [texts[i] for i in order], batch_size))[order.argsort()]

def contestants(
    learn, # A learner
    pipe, # A pipeline with the learner's model
    texts:list, # The texts to predict
) -> dict:
    "Return the contestants"
    labels,largest = list(learn.dls.vocab),max(batch_sizes())
    batches = ideal_batches(learn.dls.hf_block.hf_tokenizer, texts, MAX_LENGTH)
    ideal = lambda _: ideal_probs(learn.model.eval(), batches)
    precisions = [*native_precisions(), 'int8' if device().type=='cpu' else 'fp16']
    predicts = {
        'ideal batches, fp32': ideal,
        **{f'pipeline, batch_size={o}': partial(by_pipeline, pipe, labels, batch_size=o) for o in batch_sizes()},
        f'pipeline, batch_size={largest}, sorted texts':
            partial(by_sorted_pipeline, pipe, labels, batch_size=largest),
        **{f'hf_predict, {o}': partial(by_learner, learn, precision=o) for o in precisions}}
    reference = ideal(texts).numpy()
    runs = {k: partial(run, f, texts, reference) for k,f in predicts.items()}
    return runs | {'hf_embed, fp32': partial(embed, learn, texts, mean_state(learn, texts[0]))}

def figures(
    results:dict, # From `alternate`
) -> list[dict]:
    "Return the comparisons"
    pipelines = [k for k in results if k.startswith('pipeline') and 'sorted' not in k]
    best = max(pipelines, key=lambda k: results[k]['examples/s'].median())
    def row(over, under, target='', close=False):
        diff = results[over].difference.max()
        return ratio_row(f'{over} over {under}', results[over]['examples/s'], results[under]['examples/s'], target,
                         {'difference <= 1e-5': diff <= 1e-5} if close else None,
                         difference=f'{diff:.1e}', **{'other label': int(results[over]['other label'].max())})
    faster = {'hf_predict, bf16': '>= 4.5', 'hf_predict, int8': '>= 2.0', 'hf_predict, fp16': ''}
    return [row('hf_predict, fp32', best, by_device('>= 3.0', '>= 2.0'), close=True),
            *(row(k, best, target) for k,target in faster.items() if k in results),
            row('hf_predict, fp32', 'ideal batches, fp32', '>= 0.95'),
            row('hf_predict, fp32', f'pipeline, batch_size={max(batch_sizes())}, sorted texts'),
            row('hf_embed, fp32', 'hf_predict, fp32', '>= 0.95', close=True)]

def measure(
    rounds:int, # Number of rounds
    texts:int, # Number of texts
    train:int, # Number of sentences to train the model on
) -> dict: # Captions mapped to rows
    "Return the tables of this section"
    learn = reviewer(train, max_length=MAX_LENGTH)
    rows = reviews('mixed', texts).text.tolist()
    with tempfile.TemporaryDirectory() as folder:
        pipe = pipeline('text-classification', model=str(learn.save_pretrained(folder)), device=device())
    alternate(contestants(learn, pipe, rows[:8]), 1, warmup=0)
    results = alternate(contestants(learn, pipe, rows), rounds, warmup=0)
    caption = f'{texts} texts. `pipeline` uses its fastest batch size, without sorting.'
    return {caption: figures(results), 'Each contestant.': medians(results)}
