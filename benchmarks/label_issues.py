"""How many of 100 flipped labels are among the first 100 rows of `find_label_issues`: MiniLM on 2,000 movie reviews

    python -m benchmarks.label_issues [folds] [epochs] [seed]
"""
import sys
import time

from fastai.torch_core import set_seed

from blurlike.all import (
    HFTextDataLoaders,
    cross_val_preds,
    find_label_issues,
    hf_learner,
    load_movie_reviews,
    minilm_checkpoint,
)


def make_learner(df):
    "Return a new learner for the rows of a fold"
    dls = HFTextDataLoaders.from_df(df, minilm_checkpoint(), valid_col='is_valid', bs=16, max_length=64, seed=0)
    return hf_learner(dls)


def main(k=5, epochs=2, seed=0, rows=2000, share=.05):
    df = load_movie_reviews(rows)
    flipped = df.sample(frac=share, random_state=seed).index
    df.loc[flipped, 'label'] = df.label[flipped].map(dict(negative='positive', positive='negative'))
    set_seed(seed)
    started = time.perf_counter()
    res = cross_val_preds(df, make_learner, k, fit=lambda learn: learn.fine_tune(epochs, 5e-4), seed=seed)
    issues = find_label_issues(res)
    found = [issues.index[:n].isin(flipped).sum() for n in (20, 50, 100)]
    accuracy = (res.preds.argmax(1)==res.targets).mean()
    flagged = issues[issues.is_issue].index
    print(f'{found[2]} of the first 100 rows are flips ({found[0]} of 20, {found[1]} of 50); '
          f'{len(flagged)} rows are flagged, {flagged.isin(flipped).sum()} of them flips; '
          f'accuracy {accuracy:.3f}, {time.perf_counter() - started:.0f} s')


if __name__=='__main__': main(*map(int, sys.argv[1:]))
