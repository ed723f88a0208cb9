"""The cost of checkpoints at the default interval: MiniLM on movie reviews

    python -m benchmarks.checkpoints [rows]
"""
import sys
import tempfile
import time
from pathlib import Path

from blurlike.all import HFCheckpoint, HFTextDataLoaders, hf_learner, load_movie_reviews, minilm_checkpoint


def main(rows=4000):
    df = load_movie_reviews(rows)
    dls = HFTextDataLoaders.from_df(df, minilm_checkpoint(), valid_col='is_valid', max_length=128, bs=16, seed=0)
    learn,checkpoint = hf_learner(dls),HFCheckpoint(tempfile.mkdtemp())
    started = time.perf_counter()
    with learn.no_bar(): learn.fit_one_cycle(2, 1e-4, cbs=checkpoint)
    took = time.perf_counter() - started
    size = sum(o.stat().st_size for o in Path(checkpoint.kept[-1]).iterdir())
    print(f'{took:.0f} s, of which {checkpoint.spent:.2f} s ({checkpoint.spent/took:.1%}) for '
          f'checkpoints of {size/1e6:.0f} MB, of which {len(checkpoint.kept)} are kept; the last took '
          f'{checkpoint.last:.2f} s')


if __name__=='__main__': main(*map(int, sys.argv[1:]))
