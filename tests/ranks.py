"""What tests/test_distributed.py runs on several processes: `torchrun tests/ranks.py FOLDER NAME...` calls functions of
this module in each process, and writes what they return to FOLDER."""
import os
import random
import signal
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from conftest import make_objects, make_texts
from datasets import Dataset
from fastai.callback.core import Callback
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
from fastai.callback.training import GradientAccumulation
from fastai.losses import LabelSmoothingCrossEntropyFlat
from fastai.metrics import AccumMetric, mae
from fastai.optimizer import SGD
from fastai.torch_core import num_distrib, rank_distrib, set_seed
from test_losses import TASKS, loaders, make_model

from blurlike.all import (
    HFCheckpoint,
    HFLoss,
    HFTextDataLoaders,
    HFTracker,
    find_batch_size,
    hf_learner,
    load_hf_learner,
)
from blurlike.train.cross_validation import fold_numbers
from blurlike.train.memory import process_memory

EXACT = [*((o, False) for o in TASKS), ('sequence-classification', True), ('causal-lm', True), ('masked-lm', True)]
ROWS = make_texts(23, seed=5)
LOADERS = {
    'rows': dict(bs=3), 'seeded': dict(bs=3, seed=1), 'dropped': dict(bs=3, drop_last=True), 'one': dict(bs=11),
    'tokens': dict(batch_tokens=96), 'pools': dict(bs=2, pool=2, precompute_lengths=False),
    'workers': dict(bs=3, num_workers=2), 'pooled_workers': dict(bs=2, pool=2, precompute_lengths=False, num_workers=2),
    'stream': dict(bs=2, pool=2)}


def together(learn, **kwargs):
    "`distrib_ctx` if there are several processes"
    return learn.distrib_ctx(in_notebook=False, **kwargs) if num_distrib() else nullcontext()


class Gradients(Callback):
    "The gradients and the losses of all steps"
    order = 10
    def __init__(self): self.gradients,self.seen = [],[]
    def before_step(self):
        found = [p.grad.flatten() for p in self.learn.model.parameters() if p.grad is not None]
        self.gradients.append(torch.cat(found))
    def after_batch(self):
        if self.training: self.seen.append(self.learn.loss.item())


def weights(learn): return torch.cat([o.detach().flatten() for o in learn.model.parameters()])


def largest_error(pred, targ): return (pred-targ).abs().max()


def exact(task, own_loss=False, bs=3, cbs=(), **kwargs):
    "Train two epochs on 19 rows, validate and predict"
    dls = loaders(task, bs=bs, seed=0)
    dls.train,dls.valid = dls.train.new(n=19),dls.valid.new(bs=3, n=19)
    cb,loss = Gradients(),HFLoss() if own_loss else None
    # The rank correlation of equal texts depends on how their predictions are rounded
    metrics = [mae, AccumMetric(largest_error, flatten=False)] if task=='regression' else None
    learn = hf_learner(dls, make_model(dls), loss, opt_func=SGD, metrics=metrics, cbs=[cb, *cbs], **kwargs)
    with learn.no_logging(), together(learn):
        before = list(learn.validate())
        learn.fit(2, 1e-2)
        preds = learn.get_preds(with_loss=True)
        again = learn.get_preds(dl=dls.train.new(bs=5, shuffle=False))
    return dict(gradients=cb.gradients, seen=cb.seen, before=before, values=list(map(list, learn.recorder.values)),
                preds=preds, again=again, after=learn.get_preds(with_loss=True), weights=weights(learn),
                run=learn.hf.runs[-1])


def exact_all(bs=3): return {o: exact(*o, bs=bs) for o in EXACT}


def accumulated(bs=2, n_acc=8):
    "The steps of accumulated gradients with class weights; batches have very different numbers of targets"
    return exact('token-classification', bs=bs, cbs=[GradientAccumulation(n_acc)], class_weight='balanced')


UNUSED = { # models with parameters that are never used, or not by each text
    'xlnet': dict(summary_last_dropout=0., dropout=0.), 'mixtral': {}}


def unused(name):
    hf = make_objects(name, **UNUSED[name])
    df = ROWS.assign(is_valid=[False]*18 + [True]*5)
    dls = HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', bs=3*(2-min(1, num_distrib())), seed=0, device='cpu')
    learn,cb = hf_learner(dls, hf.model, opt_func=SGD),Gradients()
    with together(learn):
        for _ in range(2): learn.fit(1, 1e-2, cbs=cb)
    return cb.gradients,weights(learn)


def all_unused(): return {o: unused(o) for o in UNUSED}


class Rows(Callback):
    "The texts of each training step, and their shape"
    def __init__(self): self.epochs = []
    def before_train(self): self.epochs.append([])
    def before_batch(self):
        if not self.training or self.dl.spare: return
        x = self.xb[0]
        self.epochs[-1].append((self.dls.hf_block.decode(x), tuple(x['input_ids'].shape)))


def make_learner(cbs=(), df=None, model=None, lr=1e-2, metrics=None, **options):
    df = ROWS if df is None else df
    hf = make_objects()
    dls = HFTextDataLoaders.from_df(df.assign(is_valid=[False]*(len(df)-5) + [True]*5), hf, valid_col='is_valid',
                                    device='cpu', task='sequence-classification', **options)
    return hf_learner(dls, hf.model if model is None else model, cbs=cbs, lr=lr, metrics=metrics)


def stream_learner(cbs, **options):
    hf,data = make_objects(),Dataset.from_pandas(ROWS)
    dls = HFTextDataLoaders.from_dataset(dict(train=data.select(range(18)).to_iterable_dataset(),
                                              valid=data.select(range(18, 23))), hf, n=18, device='cpu', **options)
    return hf_learner(dls, hf.model, cbs=cbs)


def rows(name, options):
    "The rows of two epochs, and the number of steps in each"
    cb = Rows()
    learn = stream_learner([cb], **options) if name=='stream' else make_learner([cb], **options)
    with learn.no_logging(), together(learn): learn.fit(2)
    return cb.epochs,[len(learn.recorder.losses)//2]*2


def all_loaders(): return {k: rows(k, v) for k,v in LOADERS.items()}


def deciding():
    "Callbacks that watch the validation, and the file that one of them writes"
    learn = make_learner(bs=4, lr=.05)
    cbs = [EarlyStoppingCallback('accuracy', patience=2), SaveModelCallback('valid_loss', fname='best')]
    learn.path = Path(FOLDER)
    with together(learn): learn.fit(6, cbs=cbs)
    return list(map(list, learn.recorder.values)),weights(learn),(learn.path/'models'/'best.pth').exists()


def tracked():
    "What a tracker gets in two epochs, the numbers of steps, and the weights after them"
    numbers,tables,learn = [],[],make_learner(bs=3)
    tracker = HFTracker(lambda o, step: numbers.append((step, o)), log_table=tables.append)
    with learn.no_logging(), together(learn): learn.fit(2, cbs=tracker)
    return numbers,[len(o) for o in tables],len(learn.recorder.losses),weights(learn)


def lr_find():
    "What `lr_find` suggests, how many steps it takes, and the change of the weights"
    learn = make_learner(bs=4)
    learn.path,before = Path(FOLDER),weights(learn)
    with together(learn): found = learn.lr_find(num_it=12, show_plot=False, suggest_funcs=None)
    return found,len(learn.recorder.lrs),learn.recorder.lrs[-1],(weights(learn)-before).abs().max().item()


def saving():
    "Save to one folder again and again, and read it each time in each process"
    learn,path,preds = make_learner(bs=4),Path(FOLDER)/'saved',[]
    with together(learn):
        for _ in range(4):
            assert learn.save_pretrained(path)==path
            preds.append(load_hf_learner(path).hf_predict('the film dull')['score'])
            learn.save_pretrained(path)
    file = Path(FOLDER)/'file'
    learn.save('by_hand')
    if rank_distrib()==0: file.write_text('a file')
    dist.barrier()
    try: learn.save_pretrained(file)
    except FileExistsError as e: return preds,learn.hf_predict('the film dull')['score'],str(e)


def one_rank_alone():
    "The second process predicts and shows results, while the first does nothing"
    learn,res = make_learner(bs=4),[]
    with together(learn):
        learn.fit(1)
        if rank_distrib()==1:
            learn.show_results()
            res.append(learn.hf_predict(['the film dull', 'the plot warm']))
        dist.barrier()
        learn.validate()
    if rank_distrib()==1: learn.show_results()
    res.append(learn.hf_predict(['the film dull', 'the plot warm']))
    return res


def generating():
    "The second process generates a text, in the context and after it"
    dls = loaders('summarization', bs=4)
    learn = hf_learner(dls, make_model(dls))
    with together(learn): inside = learn.hf_generate('the film dull') if rank_distrib()==1 else None
    return inside,learn.hf_generate('the film dull')


def batch_size():
    "What fits, if the second process has less memory"
    learn = make_learner(bs=4, df=make_texts(60))
    memory = process_memory() + (0 if rank_distrib() else 10**9)
    try: outside = find_batch_size(learn, max_bs=16, memory=memory)
    except ValueError as e: outside = str(e)
    with together(learn): inside = find_batch_size(learn, max_bs=16, memory=process_memory() + 2*10**9)
    return outside,inside


def half_precision():
    "Autocast, and a model that is in 16 bits"
    learn = make_learner(bs=4, model=make_objects().model.bfloat16())
    with together(learn): learn.fit(1)
    other = make_learner(bs=4)
    other = hf_learner(other.dls, other.model, precision='bf16')
    with other.no_logging(), together(other): other.fit(1)
    return weights(learn),weights(other),weights(learn).dtype


def lora():
    "Adapters are trained, and nothing else"
    from peft import LoraConfig, get_peft_model
    model = get_peft_model(make_objects().model, LoraConfig(task_type='SEQ_CLS', target_modules=['query', 'value']))
    before = {k: v.clone() for k,v in model.named_parameters()}
    learn = make_learner(bs=4, model=model)
    with learn.no_logging(), together(learn): learn.fit(1)
    return {k: v.detach() for k,v in model.named_parameters() if not torch.equal(v, before[k])},learn.validate()


def dropout():
    "Random numbers in the first training step, after a script has set a seed"
    seen = []
    class See(Callback):
        def before_batch(self):
            if self.training: seen.append(torch.rand(1).item())
    learn = make_learner([See()], bs=4)
    torch.manual_seed(0)
    with learn.no_logging(), together(learn): learn.fit(1)
    return seen


def refused():
    "The messages for what does not work"
    res = []
    class Sharded:
        value = 'FSDP'
    for name,value in dict(gradient_accumulation_steps=2).items():
        learn = make_learner(bs=4)
        try:
            with together(learn, **{name: value}): learn.fit(1)
        except ValueError as e: res.append(str(e))
    learn = make_learner(bs=4)
    with learn.no_logging(), together(learn):
        type(learn.distributed_trainer.accelerator).distributed_type,old = (
            property(lambda self: Sharded), type(learn.distributed_trainer.accelerator).distributed_type)
        try: learn.fit(1)
        except ValueError as e: res.append(str(e))
        type(learn.distributed_trainer.accelerator).distributed_type = old
        learn.fit(1)
    kind,weight = LabelSmoothingCrossEntropyFlat,torch.tensor([1., 2.])
    for change in (dict(splits=([*range(rank_distrib(), 20)], [20, 21, 22])), dict(loss_func=kind(weight=weight))):
        loss = change.pop('loss_func', None)
        hf = make_objects()
        dls = HFTextDataLoaders.from_df(ROWS, hf, device='cpu', bs=4, **change)
        learn = hf_learner(dls, hf.model, loss)
        try:
            with learn.no_logging(), together(learn): learn.fit(1)
        except ValueError as e: res.append(str(e))
    few = make_learner(bs=4)
    few.dls.train = few.dls.train.new(n=1)
    try:
        with together(few): few.fit(1)
    except ValueError as e: res.append(str(e))
    return res


def splits():
    "Rows that are chosen at random without a seed"
    random.seed(); np.random.seed(); torch.seed() # as in processes that were just started
    hf = make_objects()
    made = [HFTextDataLoaders.from_df(ROWS, hf, device='cpu'),
            HFTextDataLoaders.from_dataset(Dataset.from_pandas(ROWS), hf, device='cpu')]
    return [*([o for o,_ in dls.train_ds] for dls in made), fold_numbers(ROWS, 3).tolist()]


def failing(in_training=True):
    "An error in the second process"
    class Fail(Callback):
        def before_batch(self):
            if rank_distrib()==1 and self.training==in_training and self.iter==1: raise RuntimeError('a rank failed')
    learn = make_learner([Fail()], bs=2)
    with together(learn):
        learn.validate() if not in_training else learn.fit(2)


def failing_in_validation(): failing(False)


class Kill(Callback):
    "Kill this process at a step"
    def __init__(self, at): self.at = at
    def before_batch(self):
        if self.training and self.learn.train_iter==self.at: os.kill(os.getpid(), signal.SIGKILL)


def checkpointed(at=None):
    "Runs with checkpoints and dropout, in rows, with a model in 16 bits, and in pools; the last is killed at step `at`"
    res = {}
    for name in ('rows', 'half', 'pools'):
        set_seed(1)
        cbs = [Kill(at)] if at and rank_distrib()==0 and name==LAST else []
        learn = make_learner(cbs, seed=2, **LOADERS.get(name, LOADERS['rows']))
        if name=='half': learn.model.bfloat16()
        with learn.no_logging(), together(learn):
            learn.fit_one_cycle(3, 1e-3, cbs=HFCheckpoint(Path(FOLDER)/name, every=2))
        res[name] = weights(learn),[o[:-1] for o in learn.recorder.values],torch.rand(1).item()
    return res


LAST = 'pools'
def killed_between_epochs(): return checkpointed(at=5)
def killed_in_an_epoch(): return checkpointed(at=9)
def killed_with_16_bits():
    global LAST
    LAST = 'half'
    return checkpointed(at=4)


if __name__=='__main__':
    _,FOLDER,*names = sys.argv
    results = {o: globals()[o]() for o in names}
    results['ranks'] = dist.get_world_size(),os.environ['RANK']
    torch.save(results, Path(FOLDER)/f'{rank_distrib()}.pt')
