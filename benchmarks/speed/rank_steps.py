"The training that `ranks` times: `python -m benchmarks.speed.rank_steps ROWS BS`, or the same under torchrun"
import sys
import time
from contextlib import nullcontext

from fastai.callback.core import Callback, CancelValidException
from fastai.torch_core import num_distrib, rank_distrib

from blurlike.all import HFTextDataLoaders, hf_learner, minilm_checkpoint

from .common import reviews


class Epochs(Callback):
    "Time each epoch's training, and leave out its validation"
    def before_fit(self): self.seconds = []
    def before_train(self): self.start = time.perf_counter()
    def after_train(self): self.seconds.append(time.perf_counter() - self.start)
    def before_validate(self): raise CancelValidException

def steps_per_second(
    rows:int, # Number of rows to train on
    bs:int, # Rows in a batch of one process
) -> float:
    "Train two epochs, and return the speed of the second"
    df = reviews('short', rows + bs)
    dls = HFTextDataLoaders.from_df(df, minilm_checkpoint(), bs=bs, max_length=64, seed=0,
                                    splits=(range(rows), range(rows, len(df))))
    learn,cb = hf_learner(dls),Epochs()
    with learn.distrib_ctx(in_notebook=False) if num_distrib() else nullcontext(): learn.fit(2, 5e-5, cbs=cb)
    return len(learn.recorder.losses)/2/cb.seconds[1]

if __name__=='__main__':
    speed = steps_per_second(*map(int, sys.argv[1:]))
    if not rank_distrib(): print(speed)
