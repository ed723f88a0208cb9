"""Measure what `hf_learner(compile=True)` gains: training and prediction with MiniLM, on texts of mixed length.

    python -m benchmarks.compiled
"""
from functools import partial
from statistics import median

from blurlike.all import HFTextDataLoaders, hf_learner, minilm_checkpoint

from .speed.common import alternate, machine, markdown, native_precisions, reviews, timed

ROWS,BS,MAX_LENGTH = 2000,32,256

def learners(
    precision:str, # Of the training
) -> dict: # By name
    "Return a learner, and one whose model is compiled"
    df = reviews('mixed', ROWS + BS)
    df['is_valid'] = df.index >= ROWS
    def make(compile):
        dls = HFTextDataLoaders.from_df(df, minilm_checkpoint(), valid_col='is_valid', bs=BS, max_length=MAX_LENGTH,
                                        seed=0)
        return hf_learner(dls, precision=precision, compile=compile)
    return {'eager': make(False), 'compiled': make(True)}

def train(learn, i):
    "Train for an epoch"
    with learn.no_bar(), learn.no_logging(): return {'seconds': timed(learn.fit_linear, 1, 1e-5)[0]}

def predict(learn, texts, precision, i):
    "Predict all texts"
    return {'seconds': timed(learn.hf_predict, texts, precision=precision)[0]}

def rows(name, precision, results):
    "Return the rows of a table: the first round includes the compilation"
    seconds = {k: o.seconds.tolist() for k,o in results.items()}
    ratios = [a/b for a,b in zip(seconds['eager'][1:], seconds['compiled'][1:], strict=True)]
    ranges = f'{median(ratios):.3g} ({min(ratios):.3g} to {max(ratios):.3g})'
    return [{'work': name, 'precision': precision, 'model': k, 'first round, s': f'{v[0]:.3g}',
             'later rounds, s': f'{median(v[1:]):.3g}', 'speedup': ranges if k=='compiled' else ''}
            for k,v in seconds.items()]

def main(rounds=4):
    "Print a table"
    table,texts = [],reviews('mixed', ROWS).text.tolist()
    for precision in native_precisions()[::-1]:
        both = learners(precision)
        trained = alternate({k: partial(train, o) for k,o in both.items()}, rounds, warmup=0)
        table += rows(f'an epoch of {ROWS:,} texts', precision, trained)
        runs = {k: partial(predict, o, texts, precision) for k,o in both.items()}
        table += rows(f'hf_predict of {ROWS:,} texts', precision, alternate(runs, rounds, warmup=0))
        print(markdown(table), flush=True)
    print(machine())

if __name__ == '__main__': main()
