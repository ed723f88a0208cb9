"""How far the words that `learn.explain` finds move a prediction: MiniLM on movie reviews

    python -m benchmarks.faithfulness [reviews] [n_steps]

Masks the five words of each review with the most attribution, and five other words at random, and prints how far the
probability of the predicted class falls.
"""
import random
import re
import sys
import time

import numpy as np
from fastai.torch_core import set_seed

from blurlike.all import HFTextDataLoaders, hf_learner, load_movie_reviews, minilm_checkpoint


def mask(text, words, token):
    "Return `text` with `token` in place of each of `words`"
    for o in sorted(words, key=lambda o: -o.start): text = text[:o.start] + token + text[o.end:]
    return text


def masked_pairs(explanations, token, k=5, seed=0):
    "Return texts without the `k` words with the most attribution, and without `k` others"
    rng,best,others = random.Random(seed),[],[]
    for e in explanations:
        words = sorted([o for o in e.words if re.search(r'\w', o.text)], key=lambda o: -o.attribution)
        best.append(mask(e.texts[0], words[:k], token))
        others.append(mask(e.texts[0], rng.sample(words[k:], k), token))
    return best,others


def falls(learn, explanations, masked):
    "Return how far the probability of each predicted class falls in `masked` texts"
    preds = learn.hf_predict(masked)
    return np.array([e.prediction['score'] - o['probs'][e.prediction['index']]
                     for e,o in zip(explanations, preds, strict=True)])


def main(n=200, n_steps=20):
    set_seed(0)
    df = load_movie_reviews(4000)
    dls = HFTextDataLoaders.from_df(df, minilm_checkpoint(), valid_col='is_valid', max_length=128, bs=16, seed=0)
    learn = hf_learner(dls)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, slice(2e-5, 2e-4))
    texts = [o for o in df[df.is_valid].text if len(re.findall(r'\w+', o)) >= 12][:n]
    started = time.perf_counter()
    explanations = learn.explain(texts, n_steps=n_steps)
    took = time.perf_counter() - started
    best,others = (falls(learn, explanations, o)
                   for o in masked_pairs(explanations, dls.hf_block.hf_tokenizer.mask_token))
    errors = [abs(o.error)/abs(o.difference) for o in explanations]
    print(f'{len(texts)} reviews with n_steps={n_steps} in {took:.0f} s; completeness error {np.median(errors):.2%} of '
          f'the difference in the median, {max(errors):.1%} at most; {sum(o.is_complete for o in explanations)} within '
          'the tolerance')
    print(f'The probability falls by {best.mean():.3f} without the five words with the most attribution, by '
          f'{others.mean():.3f} without five others; by more in {(best > others).mean():.1%} of the reviews')


if __name__=='__main__': main(*map(int, sys.argv[1:]))
