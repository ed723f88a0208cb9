"find_batch_size finds a batch that fits, errors name a batch that does not, and neither changes the learner."
import gc
import multiprocessing
import random
import re
import subprocess
import sys
import threading
import weakref
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import psutil
import pytest
import torch
from conftest import make_objects, make_texts, mentions
from fastai.callback.training import GradientAccumulation
from fastai.text.all import (
    Adam,
    Callback,
    CancelTrainException,
    CategoryBlock,
    ColReader,
    ColSplitter,
    CSVLogger,
    DataBlock,
    DataLoaders,
    Learner,
    SaveModelCallback,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from blurlike.all import HFCallback, HFDataLoader, HFLoss, HFTextBlock, HFTextDataLoaders, find_batch_size, hf_learner
from blurlike.core.compat import autocast_depth
from blurlike.train import memory
from blurlike.train.callback import take_dict
from blurlike.train.memory import (
    largest_size,
    longest_samples,
    memory_limit,
    peak_memory,
    process_memory,
    with_room,
    worst_batch,
)


class Device:
    "Refuses batches of more than `limit` tokens in the forward pass, the backward pass or the optimizer's step"
    def __init__(self, learn, limit, at='forward', error=torch.OutOfMemoryError):
        self.limit,self.error,self.seen,self.tokens = limit,error,[],0
        module = learn.model.bert.encoder.layer[0]
        module.register_forward_pre_hook(self.forward)
        self.check_forward = at=='forward'
        if at=='backward': module.register_full_backward_hook(lambda *_: self.check())
        if at=='step':
            if not learn.opt: learn.create_opt()
            learn.opt.opt.register_step_pre_hook(lambda *_: self.check())

    def forward(self, module, args):
        self.tokens = args[0].shape[0]*args[0].shape[1]
        self.seen.append(self.tokens)
        if self.check_forward: self.check()

    def check(self):
        if self.tokens <= self.limit: return
        raise self.error("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")


class Disturbance(Callback):
    "Changes weights and its own state, and draws from every source of chance"
    def __init__(self): self.seen,self.log,self.average = 0,[],torch.nn.Linear(2, 2)
    def after_batch(self):
        self.seen += 1
        self.log.append(random.random() + np.random.rand() + self.learn.dls.train.rng.random() + torch.rand(1).item())
        with torch.no_grad():
            for p in (*self.learn.model.parameters(), *self.average.parameters()): p.add_(1.)


def longest(dl): return worst_batch(dl, longest_samples(dl, 1)[0], 1)[0]['input_ids'].shape[1]


def state(learn):
    "Everything that the next steps of a learner depend on"
    moments = [t for o in learn.opt.opt.state.values() for t in o.values()] if learn.opt else []
    weights = [*learn.model.parameters(), *learn.model.buffers()]
    grads = [p.grad for p in learn.model.parameters() if p.grad is not None]
    tensors = [*weights, *moments, torch.get_rng_state(), *grads]
    changing = 'learn', 'loss', 'smooth_loss', 'start_epoch'
    recorder = {k: v for k,v in vars(learn.recorder).items() if k not in changing}
    rest = dict(modes=[m.training for m in learn.model.modules()], hooks=len(learn.model._forward_pre_hooks),
                rng=(random.getstate(), np.random.get_state()[1].tolist()), loader=learn.dls.train.rng.getstate(),
                dls=id(learn.dls), cbs=[id(o) for o in learn.cbs], names=sorted(vars(learn)),
                hypers=str(learn.opt.hypers) if learn.opt else None, recorder=str(recorder),
                smooth=str(vars(learn.recorder.smooth_loss)), runs=deepcopy(learn.hf.runs),
                iters=vars(learn).get('train_iter'))
    return [t.detach().clone() for t in tensors],rest


def assert_same(a, b):
    assert a[1] == b[1]
    assert len(a[0]) == len(b[0])
    assert all(torch.equal(x, y) for x,y in zip(a[0], b[0], strict=True))


@given(limit=st.integers(0, 5000), most=st.integers(1, 5000))
def test_the_largest_size_fits_and_one_an_eighth_larger_does_not(limit, most):
    tried = []
    found = largest_size(lambda n: tried.append(n) or n <= limit, most)
    assert found <= min(limit, most)
    assert found==most or found + max(1, found//8) > limit
    assert max(tried) <= most
    assert len(tried) <= 2*13


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.integers(1, 36), at=st.sampled_from(['forward', 'backward', 'step']))
def test_the_batch_size_uses_the_memory_within_any_limit(dls, rows, at):
    learn = hf_learner(dls, make_objects().model, metrics=[])
    width = longest(dls.train)
    Device(learn, rows*width, at)
    found = find_batch_size(learn, max_bs=30, show=False)
    assert with_room(found) <= rows
    assert found==30 or with_room(found + max(1, found//8)) > rows


def test_a_row_that_does_not_fit_raises(learn):
    Device(learn, 3)
    before = state(learn)
    with pytest.raises(torch.OutOfMemoryError, match=mentions(1, longest(learn.dls.train), 'max_length')):
        find_batch_size(learn, show=False)
    assert_same(state(learn), before)


@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
@pytest.mark.parametrize('trained', [False, True])
@pytest.mark.parametrize('limit', [None, 400])
def test_the_learner_is_unchanged(dls, hf, precision, trained, limit):
    learn = hf_learner(dls, hf.model, precision=precision, cbs=[GradientAccumulation(8), Disturbance()])
    mine,average = learn.disturbance,learn.disturbance.average
    def my_state(): return [mine.seen, list(mine.log), mine.average.weight.tolist()]
    if trained:
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    learn.model.bert.embeddings.eval()
    if limit: Device(learn, limit)
    before,my_own,outputs = state(learn),my_state(),vars(learn).get('hf_outputs')
    find_batch_size(learn, max_bs=16, show=False)
    assert_same(state(learn), before)
    assert my_state() == my_own
    assert mine.average is average
    assert vars(learn).get('hf_outputs') is outputs
    assert (learn.opt is not None) == trained
    with learn.no_bar(): assert learn.get_preds()[0].shape == (40, 2)
    assert learn.progress in learn.cbs


def test_gradients_and_other_optimizers_are_kept_too(dls, hf):
    learn = hf_learner(dls, hf.model, opt_func=Adam)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3)
        for p in learn.model.parameters(): p.grad = torch.ones_like(p)
        before = deepcopy(learn.opt.state_dict()['state'])
        hypers = str(learn.opt.hypers)
        find_batch_size(learn, max_bs=4, show=False)
    assert all((p.grad==1).all() for p in learn.model.parameters())
    after = learn.opt.state_dict()['state']
    for a,b in zip(after, before, strict=True):
        assert all(torch.equal(v, a[k]) if torch.is_tensor(v) else v==a[k] for k,v in b.items())
    assert str(learn.opt.hypers) == hypers


def test_another_error_is_raised_and_leaves_the_learner_unchanged(learn):
    learn.fit(1, 1e-3)
    Device(learn, 400, 'backward', error=ZeroDivisionError)
    before = state(learn)
    with pytest.raises(ZeroDivisionError): find_batch_size(learn, show=False)
    assert_same(state(learn), before)


def test_training_continues_as_without_the_search(dls):
    def losses(find):
        torch.manual_seed(0)
        fresh = dls.train.new(seed=1)
        model = make_objects(hidden_dropout_prob=0.1).model
        learn = hf_learner(HFTextDataLoaders(fresh, dls.valid, device='cpu'), model)
        with learn.no_bar(), learn.no_logging():
            if find: find_batch_size(learn, show=False)
            learn.fit(2, 1e-3)
        return [float(o) for o in learn.recorder.losses]
    assert losses(True) == losses(False)


def test_callbacks_write_no_files(learn, tmp_path):
    learn.path = tmp_path
    learn.add_cbs([SaveModelCallback(monitor='train_loss', every_epoch=True), CSVLogger()])
    find_batch_size(learn, max_bs=4, show=False)
    assert not [o for o in tmp_path.rglob('*') if o.is_file()]


def test_the_objects_of_callbacks_stay_in_place_and_see_no_trial(learn):
    seen = []
    class Keep(Callback):
        def __init__(self): self.seen = seen
        def after_batch(self): self.seen.append(self.training)
    learn.add_cb(Keep())
    find_batch_size(learn)
    assert seen == []
    assert learn.keep.seen is seen
    learn.fit(1)
    assert seen


def test_the_rows_that_are_tried_are_the_longest(learn):
    device,width = Device(learn, 10**9),longest(learn.dls.train)
    find_batch_size(learn, max_bs=4, show=False)
    assert device.seen == [o*width for o in (1, 1, 3, 3, 5, 5)]


def test_the_longest_target_is_in_the_worst_batch(df):
    hf = make_objects('bart', auto_model=AutoModelForSeq2SeqLM)
    texts = make_texts(20).text.sort_values(key=lambda o: o.str.len()).tolist()
    data = df[:20].assign(text=texts[::-1], target=texts) # the longest text has the shortest target
    dls = HFTextDataLoaders.from_df(data, hf, label_col='target', task='summarization', valid_pct=0.1, bs=4,
                                    max_length=64, device='cpu')
    samples,_ = longest_samples(dls.train, 3)
    rows = [dls.train.do_item(i) for i in range(dls.train.n)]
    assert samples[0][0] == max((o[0] for o in rows), key=lambda o: len(o.split()))
    assert len(str(samples[1][1]).split()) == max(len(str(o[1]).split()) for o in rows)
    learn = hf_learner(dls, hf.model)
    with learn.no_bar(), learn.no_logging(): assert find_batch_size(learn, max_bs=2, show=False) == 2


def test_a_stream_is_measured_by_its_first_rows(df, hf):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self): return ((t, torch.tensor(int(l=='good'))) for t,l in zip(df.text, df.label, strict=True))
    block = HFTextBlock(*hf, task='sequence-classification')
    train = HFDataLoader(Stream(), hf_block=block, bs=8, device='cpu')
    samples,longest_of_all = longest_samples(train, 3)
    width = max(block.token_lengths(df.text.tolist()))
    assert longest_of_all == width
    assert worst_batch(train, samples, 5)[0]['input_ids'].shape == (5, width)
    assert len(next(iter(train))[0]['input_ids']) == 8


def test_a_budget_of_tokens_is_found_in_tokens(learn):
    learn.dls.train.batch_tokens = 100
    width = longest(learn.dls.train)
    Device(learn, 9*width)
    assert find_batch_size(learn, show=False) == 8*width


class SmallMachine:
    "A CPU with memory for `rows` rows of a million bytes each, and for the optimizer's state after the first step"
    def __init__(self, learn, rows):
        self.grads,self.rows,self.used = sum(p.nbytes for p in learn.model.parameters()),0,10**9
        self.size = 10**9 + 5*10**7 + self.grads + rows*10**6
        learn.model.bert.register_forward_pre_hook(self.forward, with_kwargs=True)
    def forward(self, model, args, kwargs): self.rows,self.used = len(kwargs['attention_mask']),10**9 + 5*10**7
    def process_memory(self): return self.used
    def memory_limit(self, device): return self.size

    @contextmanager
    def peak_memory(self, device):
        yield lambda: self.used + self.grads + self.rows*10**6
        assert self.used + self.grads + self.rows*10**6 <= self.size, 'the kernel would have ended the process'


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.integers(1, 36))
def test_no_batch_beyond_the_memory_is_tried_on_a_cpu(dls, rows):
    learn = hf_learner(dls, make_objects().model, metrics=[])
    machine = SmallMachine(learn, rows)
    with pytest.MonkeyPatch.context() as m:
        for o in ('peak_memory', 'process_memory', 'memory_limit'): m.setattr(memory, o, getattr(machine, o))
        found = find_batch_size(learn, max_bs=30, show=False)
    assert with_room(found) <= rows
    assert found==30 or with_room(found + max(1, found//8)) > rows


def test_a_memory_limit_holds_on_a_real_cpu(learn, capsys):
    found = find_batch_size(learn, memory=process_memory() + 60_000_000)
    lines = capsys.readouterr().out.splitlines()
    assert f'{found:>12}{with_room(found):>12}' in '\n'.join(o for o in lines if o.endswith('yes'))
    with pytest.raises(ValueError, match=mentions(longest(learn.dls.train), 'memory=1000', 'max_length')):
        find_batch_size(learn, memory=1000, show=False)


@pytest.mark.parametrize(('name', 'value'), [('max_bs', 0), ('memory', '8GB')])
def test_invalid_options_raise(learn, name, value):
    with pytest.raises(ValueError, match=mentions(f'{name}={value!r}')): find_batch_size(learn, **{name: value})


@pytest.mark.parametrize(('used', 'limit'), [(5, 5 + 9*10**8), (5*10**9, 36*10**8)])
def test_the_memory_limit_leaves_a_tenth_of_the_memory(used, limit, monkeypatch):
    monkeypatch.setattr(psutil, 'virtual_memory', lambda: SimpleNamespace(available=10**9, total=4*10**9))
    monkeypatch.setattr(memory, 'process_memory', lambda: used)
    assert memory_limit(torch.device('cpu')) == limit
    assert memory_limit(torch.device('cuda')) == float('inf')


def test_the_peak_includes_memory_that_was_released():
    threads = threading.active_count()
    with peak_memory(torch.device('cpu')) as peak:
        before = peak()
        torch.ones(75_000_000)
    assert 200e6 < peak() - before < 600e6
    assert threading.active_count()==threads


@pytest.mark.parametrize('reports', [True, False])
def test_the_peak_of_a_gpu_is_its_own(monkeypatch, reports):
    calls,device = [],SimpleNamespace(type='fake')
    gpu = SimpleNamespace(empty_cache=lambda: calls.append('empty'))
    if reports: gpu.reset_peak_memory_stats,gpu.max_memory_reserved = lambda o: calls.append(('reset', o)),lambda o: 7
    monkeypatch.setattr(torch, 'fake', gpu, raising=False)
    with peak_memory(device) as peak: assert peak() == (7 if reports else 0)
    assert calls == (['empty', ('reset', device), 'empty'] if reports else ['empty', 'empty'])


# Out-of-memory errors


@pytest.mark.parametrize('at', ['forward', 'backward', 'step'])
@pytest.mark.parametrize('error', [torch.OutOfMemoryError, RuntimeError])
def test_an_out_of_memory_error_names_the_batch_and_the_remedies(learn, at, error):
    width = longest(learn.dls.train)
    Device(learn, 100, at, error)
    with pytest.raises(error) as e: learn.fit(1, 1e-3)
    assert type(e.value) is error
    facts = 8, width, 'bs', 'find_batch_size', 'GradientAccumulation', 'max_length', 'precision', 'bf16'
    assert re.search(mentions(*facts), str(e.value))
    assert "can't allocate memory" in str(e.value.__cause__)


def test_remedies_already_in_use_are_not_suggested(dls, hf):
    learn = hf_learner(dls, hf.model, precision='bf16', cbs=GradientAccumulation(8))
    Device(learn, 100)
    with learn.no_bar(), learn.no_logging(), pytest.raises(torch.OutOfMemoryError) as e: learn.fit(1)
    assert re.search(mentions('bs', 'find_batch_size', 'max_length'), str(e.value))
    assert not re.search('GradientAccumulation|precision', str(e.value))
    dls.train.batch_tokens = 500
    by_tokens = pytest.raises(torch.OutOfMemoryError, match=mentions('batch_tokens', 500))
    with learn.no_bar(), learn.no_logging(), by_tokens: learn.fit(1)


@pytest.mark.parametrize('act', [lambda learn: learn.validate(), lambda learn: learn.get_preds(with_input=True)])
def test_validation_and_prediction_name_the_batch_too(learn, act):
    Device(learn, 100)
    facts = mentions(8, longest(learn.dls.valid), 'bs', 'max_length')
    with pytest.raises(torch.OutOfMemoryError, match=facts): act(learn)


def test_windows_are_counted(df):
    hf = make_objects()
    dls = HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', bs=8, max_length=16, windows=True, device='cpu')
    learn = hf_learner(dls, hf.model)
    Device(learn, 100)
    counts = pytest.raises(torch.OutOfMemoryError, match=r'\b8 rows\b.*\b\d\d windows\b.*\b16 tokens\b')
    with learn.no_bar(), learn.no_logging(), counts: learn.fit(1)


@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
@pytest.mark.parametrize('at', ['forward', 'backward', 'step'])
@pytest.mark.parametrize('error', [torch.OutOfMemoryError, ZeroDivisionError, KeyboardInterrupt])
def test_a_failed_batch_leaves_nothing_behind(dls, hf, precision, at, error):
    learn = hf_learner(dls, hf.model, HFLoss(), precision=precision)
    device = Device(learn, 100, at, error)
    with learn.no_bar(), learn.no_logging():
        with pytest.raises(error): learn.fit(1, 1e-3)
        assert list(learn.model._forward_pre_hooks.values()) == [take_dict]
        assert all(p.grad is None for p in learn.model.parameters())
        assert autocast_depth() == 0
        assert not torch.is_autocast_enabled('cpu')
        assert 'all_batches' not in vars(learn)
        assert learn.loss is learn.pred is learn.loss_grad is learn.loss_func.model_loss is None
        device.limit = 10**9
        learn.fit_one_cycle(4, 1e-2)
    assert learn.validate()[0] < 0.3


def test_a_kept_error_does_not_keep_the_memory_of_its_batch(learn):
    held = []
    def keep(module, args, output): held.append(weakref.ref(output))
    def refuse(module, args): raise torch.OutOfMemoryError('CUDA out of memory.')
    learn.model.bert.pooler.register_forward_hook(keep)
    learn.model.classifier.register_forward_pre_hook(refuse)
    with pytest.raises(torch.OutOfMemoryError) as e: learn.fit(1)
    gc.collect()
    assert e.value.__cause__.__traceback__
    assert held[0]() is None


def test_a_callback_may_end_an_epoch(learn):
    class Enough(Callback):
        def after_batch(self):
            if self.training: raise CancelTrainException
    learn.fit(1, cbs=Enough())
    assert len(learn.recorder.values) == 1
    assert learn.recorder.values[0][-1] > 0 # it went on to validate


REAL = """
import resource, sys
sys.path.insert(0, {tests!r})
from conftest import make_objects, make_texts
from blurlike.all import HFTextDataLoaders, find_batch_size, hf_learner
df = make_texts(40)
df['text'] = df.text*10
df['is_valid'] = df.index >= 20
hf = make_objects(max_position_embeddings=512)
dls = HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', bs=20, max_length=256, device='cpu')
learn = hf_learner(dls, hf.model)
with learn.no_bar(), learn.no_logging():
    learn.fit(1)
    used = int(open('/proc/self/statm').read().split()[0])*resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 3_000_000, -1))
    hungry = learn.model.bert.encoder.layer[0].register_forward_hook(lambda m, i, o: hold.append(o.repeat(40, 1, 1)))
    hold = []
    try: learn.fit(1)
    except RuntimeError as e: print(type(e).__name__, '|', e, '|', e.__cause__)
    hungry.remove()
    hold.clear()
    resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
    learn.fit(1)
    print('went on')
"""


def test_training_goes_on_after_a_real_lack_of_memory():
    code = REAL.format(tests=str(Path(__file__).parent))
    run = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    assert re.search(mentions('RuntimeError', 20, 256, 'bs'), run.stdout), run.stderr
    assert "can't allocate memory" in run.stdout
    assert run.stdout.rstrip().endswith('went on')


# Objects that cannot be sent to worker processes


@pytest.fixture
def spawn():
    old = multiprocessing.get_start_method()
    multiprocessing.set_start_method('spawn', force=True)
    yield
    multiprocessing.set_start_method(old, force=True)


def loaders(df, hf, get_x, **kwargs):
    block = DataBlock(blocks=(HFTextBlock(*hf), CategoryBlock), get_x=get_x, get_y=ColReader('label'),
                      splitter=ColSplitter(), **kwargs)
    return block.dataloaders(df, bs=8, num_workers=1, device='cpu')


@pytest.mark.parametrize('options', [dict(get_x=lambda o: o['text']),
                                     dict(get_x=ColReader('text'), item_tfms=[lambda o: o])])
def test_a_lambda_for_spawned_workers_raises(df, hf, spawn, options):
    with pytest.raises(ValueError, match=mentions('num_workers=1')): next(iter(loaders(df, hf, **options).train))


def test_other_objects_that_cannot_be_pickled_raise(df, hf, spawn):
    dl = loaders(df, hf, ColReader('text')).train
    dl.dataset.handle = threading.Lock()
    with pytest.raises(ValueError, match=mentions('num_workers=1')): next(iter(dl))


def test_forked_workers_accept_lambdas_and_raise_their_own_errors(df, hf):
    dl = loaders(df, hf, lambda o: o['text'], item_tfms=[lambda o: o]).train
    assert sum(len(b[0]['input_ids']) for b in dl) == 80
    dl.rows,dl.create_item = None,lambda i: i.nothing
    with pytest.raises(AttributeError, match='nothing'): next(iter(dl))


def test_a_stream_shorter_than_a_pool_is_measured_whole(df, hf):
    stream = datasets.Dataset.from_pandas(df[['text', 'label']]).to_iterable_dataset()
    streams = dict(train=stream.skip(40), valid=stream.take(40))
    learn = hf_learner(HFTextDataLoaders.from_dataset(streams, hf, n=60, bs=8, device='cpu'), hf.model)
    assert find_batch_size(learn, max_bs=4, memory=10**12, show=False) == 4


def test_something_other_than_a_learner_raises(dls):
    with pytest.raises(ValueError, match=mentions('learn=DataLoaders', 'Learner')): find_batch_size(dls)


def test_a_loader_without_lengths_is_named(hf, dls):
    batches = torch.utils.data.DataLoader([dict(input_ids=torch.ones(4, dtype=int), labels=torch.tensor(0))]*8)
    learn = Learner(DataLoaders(batches, batches), hf.model, HFLoss(), cbs=[HFCallback])
    with pytest.raises(ValueError, match=mentions('learn', 'DataLoader')): find_batch_size(learn)


# predictions on a device with little memory

class LittleMemory:
    "Makes a model raise the error of a full device for large batches; keeps the sizes that fit"
    def __init__(self, model, tokens):
        self.tokens,self.sizes = tokens,[]
        model.register_forward_pre_hook(self.check, with_kwargs=True)
    def check(self, module, args, kwargs):
        size = kwargs['input_ids'].numel()
        if size > self.tokens: raise torch.OutOfMemoryError('CUDA out of memory.')
        self.sizes.append(size)


def test_predictions_continue_with_smaller_batches(learn, capsys):
    texts = [f'the film {i}' + ' good'*(i%7) for i in range(60)]
    expected = learn.hf_predict(texts)
    limit = LittleMemory(learn.model, 100)
    assert [o['score'] for o in learn.hf_predict(texts)] == pytest.approx([o['score'] for o in expected], abs=1e-6)
    lines = capsys.readouterr().out.splitlines()
    assert 1 <= len(lines) <= 6
    assert min(limit.sizes[:-1]) > 25
    limit.tokens = 2
    with pytest.raises(torch.OutOfMemoryError): learn.hf_predict(texts)


def test_generation_continues_with_smaller_batches():
    hf = make_objects('gpt2', auto_model=AutoModelForCausalLM)
    dls = HFTextDataLoaders.from_df(make_texts(40), hf, task='causal-lm', block_size=16, bs=8, seed=0, device='cpu')
    learn = hf_learner(dls, hf.model)
    texts = [f'the film {i}' for i in range(30)]
    expected = learn.hf_generate(texts, max_new_tokens=3)
    limit = LittleMemory(hf.model, 40)
    assert learn.hf_generate(texts, max_new_tokens=3) == expected
    assert limit.sizes
