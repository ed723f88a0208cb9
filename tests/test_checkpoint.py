"""A run that is killed with SIGKILL at any moment, and started again, ends as one that was not interrupted.
Runs are processes forked from a server that has imported everything (`python test_checkpoint.py`)."""
import errno
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import OrderedDict, defaultdict, deque
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_config, make_objects, make_texts, mentions
from datasets import Dataset
from fastai.callback.core import Callback
from fastai.callback.progress import CSVLogger
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback, TrackerCallback
from fastai.callback.training import GradientAccumulation
from fastai.optimizer import SGD
from fastai.text.data import TensorText
from fastai.torch_basics import L, TensorBase, TensorCategory, get_random_states, set_seed
from fasttransform import ItemTransform
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load, save
from test_matrix import CONFIGS, TASKS, frame

from blurlike.all import HFCheckpoint, HFLoss, HFObjects, HFTextDataLoaders, hf_learner, load_hf_learner
from blurlike.ship import checkpoint
from blurlike.ship.checkpoint import is_plain, pack, read_checkpoints, restore_random, unpack
from blurlike.ship.save import lock_file

WRITING = {'summarization': 't5', 'translation': 't5', 'text2text-generation': 't5', 'causal-lm': 'gpt2'}


# ---- what runs

def task_dls(task, **kwargs):
    config,tokenizer = make_config(WRITING.get(task, 'bert'), **({} if task in WRITING else CONFIGS.get(task, {})))
    tokenizer.model_max_length = 64
    df = pd.concat([frame(task)]*5, ignore_index=True)
    options = dict(bs=4, seed=0, device='cpu') | kwargs
    dls = HFTextDataLoaders.from_df(df, HFObjects(config.model_type, config, tokenizer, None), task=task,
                                    valid_col='is_valid', **options)
    for k,v in dls.hf_block.task.config_kwargs(dls).items(): setattr(config, k, v)
    torch.manual_seed(0)
    return dls,dls.hf_block.task.auto_model.from_config(config)


def text_dls(**kwargs):
    hf,df = make_objects(),make_texts(46)
    df['is_valid'] = df.index >= 34
    return HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', **dict(bs=4, seed=0, device='cpu') | kwargs),hf.model


def stream_dls(shuffle):
    hf,df = make_objects(),make_texts(46)
    train,valid = (Dataset.from_pandas(o, preserve_index=False) for o in (df[:34], df[34:]))
    stream = train.to_iterable_dataset(num_shards=2)
    if shuffle: stream = stream.shuffle(seed=0, buffer_size=8)
    dls = HFTextDataLoaders.from_dataset(dict(train=stream, valid=valid), hf, n=34, bs=4, pool=2, seed=0,
                                         device='cpu')
    return dls,hf.model


class Noise(Callback):
    "A callback with random steps and a state of its own"
    def before_fit(self): self.draws = []
    def before_batch(self):
        if self.training: self.draws.append(random.random())


class Drop(ItemTransform):
    "Shorten texts at random"
    def encodes(self, sample):
        words = sample[0].split()
        return (' '.join(words[:random.randint(1, len(words))]), *sample[1:])


def random_dls(**kwargs):
    dls,model = text_dls(**kwargs)
    dls.train.after_item.add(Drop())
    return dls,model


def fine_tune(learn, cbs): learn.fine_tune(2, 1e-2, cbs=cbs)
def one_cycle(learn, cbs): learn.fit_one_cycle(3, 1e-2, cbs=cbs)
def linear(learn, cbs): learn.fit_linear(3, 1e-2, cbs=cbs)
def plain(learn, cbs): learn.fit(3, 1e-2, cbs=cbs)
def twice(learn, cbs):
    learn.add_cbs(cbs)
    learn.fit_one_cycle(1, 1e-2)
    learn.between = plain_text((learn.recorder.values, learn.opt.state_dict(), learn.validate(), random.random(),
                                torch.rand(1), learn.model.state_dict()))
    learn.fit(2, 1e-3)


TRACKERS = lambda: [EarlyStoppingCallback(patience=2), ReduceLROnPlateau(patience=1, factor=2.), SaveModelCallback()]
SETUPS = { # name: data and model, training, more callbacks, options of the checkpoint
    **{task: (lambda task=task: task_dls(task), fine_tune, list, {}) for task in TASKS},
    'one cycle': (text_dls, one_cycle, lambda: [Noise()], {}),
    'linear': (lambda: text_dls(bs=None, batch_tokens=64), linear, list, {}),
    'two fits': (text_dls, twice, list, dict(keep=1)),
    'pools': (lambda: text_dls(precompute_lengths=False, pool=2), one_cycle, list, dict(every=1)),
    'workers': (lambda: text_dls(num_workers=2), one_cycle, list, dict(every=3)),
    'pools with workers': (lambda: text_dls(precompute_lengths=False, pool=2, num_workers=2), one_cycle, list,
                           dict(every=3)),
    'stream': (lambda: stream_dls(False), one_cycle, list, {}),
    'shuffled stream': (lambda: stream_dls(True), fine_tune, list, {}),
    'random texts': (lambda: random_dls(), one_cycle, list, {}),
    'random texts with workers': (lambda: random_dls(num_workers=2), one_cycle, list, dict(every=3)),
    'masks with workers': (lambda: task_dls('masked-lm', num_workers=2), one_cycle, list, dict(every=3)),
    'accumulation': (text_dls, fine_tune, lambda: [GradientAccumulation(10)], dict(every=1)),
    'accumulation of masks': (lambda: task_dls('masked-lm'), one_cycle, lambda: [GradientAccumulation(10)],
                              dict(every=1)),
    'trackers': (text_dls, lambda learn, cbs: learn.fit(5, 3e-2, cbs=cbs), TRACKERS, {}),
    'by time': (text_dls, fine_tune, list, dict(every=None)),
}


class Moments(Callback):
    "Count events in training, in validation, and while files are written, and end the process at one of them"
    order = 2000
    def __init__(self, kind, at, note): self.n,self.kind,self.at,self.note = dict.fromkeys(KINDS, 0),kind,at,note
    def count(self, kind):
        self.n[kind] += 1
        if kind!=self.kind or self.n[kind]!=self.at: return
        Path(self.note).write_text(f'{kind} {self.at}')
        os.kill(os.getpid(), signal.SIGKILL)


KINDS = 'training', 'validation', 'writing'
for _name in 'before_train before_batch after_loss after_step after_batch after_epoch after_fit'.split():
    setattr(Moments, _name, lambda self: self.count('training' if self.learn.training else 'validation'))


def plain_text(o):
    "`o` as text, as it is after it was saved and loaded"
    tensors = {}
    return repr(unpack(pack(o, tensors), tensors))


def run(setup, folder, kind='', at=0, limit=None, checkpoints=True):
    "Train in this process, and save what came out of it"
    make,train,more,options = SETUPS[setup]
    set_seed(7)
    folder,me = Path(folder),os.getpid()
    moments = Moments(kind, at, f'{folder}.note')
    def audit(name, args):
        if name in FILES and os.getpid()==me and args and str(folder/'run') in str(args[0]): moments.count('writing')
    dls,model = make()
    learn = hf_learner(dls, model, path=folder, **(dict(metrics=[]) if setup in WRITING else {}))
    cbs = [*more(), *([HFCheckpoint(folder/'run', **(dict(every=2) | options))] if checkpoints else [])]
    sys.addaudithook(audit)
    if limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    with learn.no_bar(), learn.no_logging(): train(learn, [*cbs, moments])
    if limit: resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,)*2)
    n,recorder = moments.n.copy(),learn.recorder
    result = {o: plain_text(getattr(recorder, o)) for o in ('values', 'lrs', 'losses', 'iters', 'metric_names')}
    trackers = [(o.best, getattr(o, 'wait', None)) for o in cbs if isinstance(o, TrackerCallback)]
    states = dict(runs=learn.hf.runs, opt=learn.opt.state_dict(), final=learn.final_record, trackers=trackers,
                  between=getattr(learn, 'between', None))
    result |= {k: plain_text(v) for k,v in states.items()}
    result |= dict(draws=repr([o.draws for o in cbs if isinstance(o, Noise)]),
                   random=repr((random.random(), torch.rand(1))), loader=repr(dls.train.state_dict()['rng']))
    weights = {k: v.clone() for k,v in model.state_dict().items()}
    torch.save(dict(result=result, weights=weights, moments=n), f'{folder}.pt')


FILES = 'open', 'os.rename', 'os.mkdir', 'os.remove', 'os.rmdir', 'shutil.rmtree'


def serve():
    "Fork a process for each line on stdin, and answer with its exit status"
    from transformers.pipelines import SUPPORTED_TASKS  # noqa: F401  for the model card
    torch.set_num_threads(1)
    for line in sys.stdin:
        args = json.loads(line)
        after = args.pop('kill_after', None)
        pid = os.fork()
        if not pid:
            log = os.open(f"{args['folder']}.log", os.O_WRONLY|os.O_CREAT|os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            code = 1
            try:
                run(**args)
                code = 0
            except BaseException:
                import traceback
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        timer = threading.Timer(after or 0, os.kill, (pid, signal.SIGKILL))
        if after: timer.start()
        _,status = os.waitpid(pid, 0)
        timer.cancel()
        print(json.dumps(os.waitstatus_to_exitcode(status)), flush=True)


if __name__=='__main__':
    serve()
    sys.exit()


@pytest.fixture(scope='module')
def start():
    "A function that runs a setup in a process of its own and returns its exit code"
    env = dict(os.environ, OMP_NUM_THREADS='1', TOKENIZERS_PARALLELISM='false')
    server = subprocess.Popen([sys.executable, '-W', 'ignore', __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              text=True, env=env)
    def start(setup, folder, **kwargs):
        folder.mkdir(exist_ok=True)
        server.stdin.write(json.dumps(dict(setup=setup, folder=str(folder), **kwargs)) + '\n')
        server.stdin.flush()
        return json.loads(server.stdout.readline())
    yield start
    server.stdin.close()
    server.wait()


@pytest.fixture(scope='module')
def whole(start, tmp_path_factory):
    "A function that returns the result of a run of a setup that is not interrupted, and the number of its moments"
    done,folder = {},tmp_path_factory.mktemp('whole')
    def whole(setup):
        if setup not in done:
            assert start(setup, folder/setup) == 0, (folder/f'{setup}.log').read_text()
            done[setup] = torch.load(folder/f'{setup}.pt')
        return done[setup]
    return whole


def differences(a, b):
    "What differs between two results"
    wrong = [k for k in a['result'] if a['result'][k]!=b['result'][k]]
    return wrong + [k for k,v in a['weights'].items() if not torch.equal(v, b['weights'][k])]


MOMENTS = [(setup, kind) for setup in SETUPS for kind in KINDS if setup in TASKS or kind!='validation']


@pytest.mark.parametrize(('setup', 'kind'), MOMENTS, ids=[f'{a}-{b}' for a,b in MOMENTS])
def test_a_killed_run_ends_like_one_that_was_not(setup, kind, start, whole, tmp_path):
    expected,rng,folder = whole(setup),random.Random(f'{setup}{kind}'),tmp_path/'it'
    at = rng.randint(1, expected['moments'][kind])
    assert start(setup, folder, kind=kind, at=at) == -signal.SIGKILL, (tmp_path/'it.log').read_text()
    if kind=='writing': start(setup, folder, kind=rng.choice(KINDS), at=rng.randint(1, 20)) # once more
    assert start(setup, folder) == 0, (tmp_path/'it.log').read_text()
    assert differences(expected, torch.load(tmp_path/'it.pt')) == []


def test_a_run_killed_at_any_time_ends_like_one_that_was_not(start, whole, tmp_path):
    rng,codes = random.Random(3),[]
    while not codes or codes[-1]:
        assert codes[-1:] in ([], [-signal.SIGKILL]), (tmp_path/'it.log').read_text()
        after = rng.uniform(0.3, 1.5)*1.5**len(codes)
        codes.append(start('accumulation', tmp_path/'it', kill_after=after))
    assert differences(whole('accumulation'), torch.load(tmp_path/'it.pt')) == []


@pytest.mark.parametrize('setup', ['accumulation of masks', 'pools', 'one cycle'])
def test_checkpoints_do_not_change_a_run(setup, start, whole, tmp_path):
    assert start(setup, tmp_path/'it', checkpoints=False) == 0, (tmp_path/'it.log').read_text()
    assert differences(whole(setup), torch.load(tmp_path/'it.pt')) == []


def test_a_run_goes_on_if_the_disk_is_full(start, whole, tmp_path):
    assert start('one cycle', tmp_path/'it', limit=60_000) == 0, (tmp_path/'it.log').read_text()
    assert differences(whole('one cycle'), torch.load(tmp_path/'it.pt')) == []
    assert 'Could not write' in (tmp_path/'it.log').read_text()
    assert names(tmp_path/'it'/'run') == []


# ---- in this process

class Stop(BaseException): pass


class StopAt(Callback):
    "Interrupt training at a step"
    def __init__(self, step): self.step = step
    def before_batch(self):
        if self.training and self.train_iter==self.step: raise Stop


def make_learner(df, bs=8, **kwargs):
    hf = make_objects()
    dls = HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', bs=bs, seed=0, device='cpu')
    return hf_learner(dls, hf.model, **kwargs)


def train(df, path, n_epoch=2, lr=1e-2, stop=None, learn=None, **kwargs):
    "Train with checkpoints; `stop` interrupts the run"
    learn = learn or make_learner(df)
    cbs = [HFCheckpoint(path, **dict(every=4) | kwargs), *([StopAt(stop)] if stop else [])]
    with learn.no_bar(), learn.no_logging():
        if not stop: learn.fit_one_cycle(n_epoch, lr, cbs=cbs)
        else:
            with pytest.raises(Stop): learn.fit_one_cycle(n_epoch, lr, cbs=cbs)
    return learn


def same_values(a, b):
    "Fail unless nested lists have the same tensors and values"
    if isinstance(a, torch.Tensor): assert torch.equal(a, b)
    elif isinstance(a, (list, tuple, L)):
        for o in zip(a, b, strict=True): same_values(*o)
    else: assert a==b or a!=a


def names(path): return sorted((o.name for o in path.iterdir() if o.name!='.lock'), key=lambda o: int(o[5:]))


@pytest.fixture
def run_path(df, tmp_path):
    "A run that was interrupted at step 17 of 20"
    train(df, tmp_path/'run', stop=7)
    train(df, tmp_path/'run', stop=17)
    assert names(tmp_path/'run') == ['step-12', 'step-16']
    return tmp_path/'run'


def test_checkpoints_are_written_at_steps_and_after_epochs(df, tmp_path):
    train(df, tmp_path/'run', keep=99)
    assert names(tmp_path/'run') == [f'step-{o}' for o in (4, 8, 10, 12, 16, 20)]
    train(df, tmp_path/'two', keep=2)
    assert names(tmp_path/'two') == ['step-16', 'step-20']


@pytest.mark.parametrize('keep', [1, 2, 3])
def test_the_newest_checkpoints_and_the_ends_of_fits_are_on_the_disk(keep, df, tmp_path):
    written,write = [],checkpoint.HFCheckpoint.write_folder
    def note(self, learn, folder, state, info):
        write(self, learn, folder, state, info)
        written.append((folder.name, info['done']))
        ends = [o for o,done in written if done]
        assert {*names(tmp_path/'run')} == {*[o for o,_ in written][-keep:], *ends}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(checkpoint.HFCheckpoint, 'write_folder', note)
        for stop in (17, 29, None): # in the first fit, in the second, and then to the end
            learn = make_learner(df, cbs=HFCheckpoint(tmp_path/'run', every=2, keep=keep))
            with learn.no_bar(), learn.no_logging(), pytest.raises(Stop) if stop else nullcontext():
                learn.fit(2, 1e-2, cbs=[StopAt(stop)] if stop==17 else [])
                learn.fit(2, 1e-3, cbs=[StopAt(stop-20)] if stop==29 else [])
    assert len(written) == len({o for o,_ in written}) > 9


def test_checkpoints_are_numbered_by_the_steps_of_all_fits(df, tmp_path):
    learn = make_learner(df)
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(1, cbs=HFCheckpoint(tmp_path/'run', every=4, keep=99))
    assert names(tmp_path/'run') == [f'step-{o}' for o in (4, 8, 10, 14, 18, 20)]
    newest,info = read_checkpoints(tmp_path/'run')[0]
    assert (newest.name, info['stage'], info['done']) == ('step-20', 1, True)


def test_without_every_a_short_run_writes_its_end(df, tmp_path):
    train(df, tmp_path/'run', every=None)
    assert names(tmp_path/'run') == ['step-20']


def test_a_checkpoint_is_a_model(df, run_path):
    folder,_ = read_checkpoints(run_path)[0]
    assert load_hf_learner(folder, device='cpu').hf_predict('the film')['label'] in ('bad', 'good')


def test_a_finished_run_is_restored_and_not_trained(df, tmp_path, capsys):
    first = train(df, tmp_path/'run')
    again = train(df, tmp_path/'run')
    assert 'step-20' in capsys.readouterr().out
    assert again.recorder.values == first.recorder.values
    assert again.final_record == first.final_record
    assert again.hf.runs == first.hf.runs
    for a,b in zip(first.model.parameters(), again.model.parameters(), strict=True): assert torch.equal(a, b)


def test_a_finished_fit_restores_the_temperature_and_the_threshold(tmp_path):
    df = make_texts(60).assign(label=[['x', o] for o in make_texts(60).label])
    def script():
        set_seed(0)
        dls = HFTextDataLoaders.from_df(df, make_objects(), task='multi-label-classification', seed=0, device='cpu')
        learn,ck = hf_learner(dls, make_objects(num_labels=3).model),HFCheckpoint(tmp_path/'run')
        found = []
        with learn.no_bar(), learn.no_logging():
            learn.fit(1, 1e-2, cbs=ck)
            learn.calibrate()
            found.append((learn.hf.calibration, learn.loss_func.thresh, learn.hf_predict('the film')))
            learn.fit(1, 1e-2, cbs=ck) # removes the temperature
        return [*found, (learn.hf.calibration, learn.loss_func.thresh, learn.hf_predict('the film'))]
    first,again = script(),script()
    assert first[0][0] is not None
    assert first[1][0] is None
    assert again == first


def test_a_cell_that_was_interrupted_continues_when_it_is_run_again(df, tmp_path, capsys):
    learn = make_learner(df)
    train(df, tmp_path/'run', stop=5, learn=learn)
    train(df, tmp_path/'run', learn=learn)
    assert 'step-4' in capsys.readouterr().out
    expected = train(df, tmp_path/'other')
    assert learn.recorder.values == expected.recorder.values


@pytest.fixture
def two_fits(df, tmp_path):
    "A function that runs a script with two fits, and returns the weights and the results after each"
    def two_fits(stop=None, **kwargs):
        learn = make_learner(df, cbs=HFCheckpoint(tmp_path/'run', **dict(every=4) | kwargs))
        after = lambda: ([o.detach().clone() for o in learn.model.parameters()], [*learn.recorder.values],
                         torch.rand(1), len(learn.hf.runs))
        with learn.no_bar(), learn.no_logging():
            learn.fit(1, 1e-2)
            first = after()
            with pytest.raises(Stop) if stop else nullcontext(): learn.fit(2, 1e-3, cbs=[StopAt(stop)] if stop else [])
        return first,after()
    return two_fits


@pytest.mark.parametrize(('stop', 'keep'), [(2, 2), (9, 1), (19, 2)])
def test_a_skipped_fit_leaves_the_learner_as_it_ended(stop, keep, two_fits, capsys):
    first,_ = two_fits(stop, keep=keep)
    again,end = two_fits(keep=keep)
    same_values(again, first)
    out = capsys.readouterr().out
    assert 'Fit 1 is complete' in out
    again,same_end = two_fits(keep=keep) # the run is finished
    same_values(again, first)
    same_values(same_end, end)


@pytest.mark.parametrize('damage', [shutil.rmtree, lambda o: cut(o/'training.json')])
def test_a_line_says_that_the_end_of_a_fit_is_missing(damage, two_fits, tmp_path, capsys):
    two_fits(9)
    damage(tmp_path/'run'/'step-10')
    two_fits(11)
    out = capsys.readouterr().out
    assert re.search(mentions('Fit 1', str(tmp_path/'run'), 'step-18'), out)
    assert 'step-10 is the end' not in out


def test_the_card_has_all_epochs_and_the_highest_rate(df, run_path):
    learn = train(df, run_path)
    assert learn.hf.runs[0]['epochs'] == len(learn.hf.runs[0]['rows']) == 2
    assert learn.hf.runs[0]['lr'] == pytest.approx(1e-2)


@pytest.mark.parametrize(('change', 'facts'), [
    (dict(n_epoch=3), ['n_epoch=2', '3']), (dict(lr=1e-3), ['schedule=', 'resume=False']),
    (dict(bs=4), ['bs=8', '4']), (dict(rows=119), ['rows=80', '79']), (dict(text='the plot'), ['data=']),
    (dict(label='bad'), ['data=']), (dict(pool=1), ['pool=100']),
    (dict(frozen=True), ['frozen_groups=0']), (dict(opt_func=SGD), ['optimizer=', 'SGD']),
    (dict(loss_func=HFLoss()), ['loss=', 'HFLoss']), (dict(precision='bf16'), ['precision=', 'bf16']),
    (dict(max_grad_norm=.1), ['max_grad_norm=', '0.1']),
    (dict(dropout=.3), ['dropout=', '0.3'])])
def test_a_run_that_has_changed_is_refused(change, facts, df, run_path):
    if 'rows' in change: df = df[1:].reset_index(drop=True)
    if 'text' in change: df = df.assign(text=[change['text'], *df.text[1:]])
    if 'label' in change: df = df.assign(label=[{'good': 'bad', 'bad': 'good'}[o] for o in df.label])
    learn = make_learner(df, **{k: v for k,v in change.items() if k in (
        'bs', 'opt_func', 'loss_func', 'precision', 'max_grad_norm')})
    for o in learn.model.modules():
        if 'dropout' in change and isinstance(o, torch.nn.Dropout): o.p = change['dropout']
    if 'pool' in change: learn.dls.train.pool = change['pool']
    if 'frozen' in change: learn.freeze()
    with pytest.raises(ValueError, match=mentions('path=', str(run_path), *facts)):
        train(df, run_path, learn=learn, **{k: v for k,v in change.items() if k in ('n_epoch', 'lr')})


def test_another_model_is_refused(df, run_path):
    hf = make_objects(hidden_size=16)
    learn = hf_learner(HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', bs=8, seed=0, device='cpu'), hf.model)
    with pytest.raises(ValueError, match=mentions(str(run_path), 'model')): train(df, run_path, learn=learn)


def test_resume_false_starts_again(df, run_path, capsys):
    train(df, run_path, resume=False, stop=5)
    assert names(run_path) == ['step-4']


def cut(file): file.write_bytes(file.read_bytes()[:file.stat().st_size//2])


@pytest.mark.parametrize('name', ['model.safetensors', 'training.safetensors', 'training.json', 'config.json'])
@pytest.mark.parametrize('damage', [cut, Path.unlink])
def test_a_damaged_checkpoint_is_passed_over(name, damage, df, run_path, capsys):
    older,newest = names(run_path)
    damage(run_path/newest/name)
    train(df, run_path)
    out = capsys.readouterr().out
    assert all(o in out for o in (older, newest, 'damaged'))


def test_a_run_with_only_damaged_checkpoints_is_refused(df, run_path):
    for o in names(run_path): cut(run_path/o/'training.json')
    facts = ['path=', str(run_path), *names(run_path), 'resume=False']
    with pytest.raises(ValueError, match=mentions(*facts)): train(df, run_path)


def test_what_an_interrupted_write_left_is_deleted(df, run_path):
    shutil.copytree(run_path/names(run_path)[0], run_path/'.step-18-abcd1234')
    train(df, run_path)
    assert all(o.startswith('step-') for o in names(run_path))


def test_a_file_is_not_a_folder(df, tmp_path):
    (tmp_path/'run').write_text('notes')
    with pytest.raises(ValueError, match=mentions('path=', 'run')): train(df, tmp_path/'run')


@pytest.mark.parametrize('kwargs', [dict(every=0), dict(every=1.5), dict(keep=0), dict(every=True)])
def test_options_are_checked(kwargs):
    name,value = next(iter(kwargs.items()))
    with pytest.raises(ValueError, match=mentions(f'{name}={value}')): HFCheckpoint('run', **kwargs)


def test_two_checkpoints_are_refused(df, tmp_path):
    learn = make_learner(df, cbs=HFCheckpoint(tmp_path/'a'))
    with pytest.raises(ValueError, match=mentions('cbs', '2')): learn.fit(1, cbs=HFCheckpoint(tmp_path/'b'))


class Second(Callback):
    "Start another run during the training of this one"
    def __init__(self, start): self.start,self.errors = start,[]
    def before_batch(self):
        if not self.training or self.train_iter!=6: return
        try: self.start()
        except ValueError as e: self.errors.append(str(e))


def test_a_second_living_run_is_refused(df, tmp_path):
    run = tmp_path/'run'
    second = Second(lambda: train(df, run))
    train(df, run, learn=make_learner(df, cbs=second))
    assert len(second.errors) == 1
    assert re.match(mentions('path=', str(run)), second.errors[0])
    assert names(run)[-1] == 'step-20'
    train(df, run) # the first has ended
    train(df, tmp_path/'third', stop=6)
    train(df, tmp_path/'third', stop=9)


def test_a_lock_ends_with_its_process_even_if_a_process_was_forked(tmp_path):
    with open(tmp_path/'lock', 'a') as file:
        assert lock_file(file, 'path=')
        if not (pid := os.fork()):
            time.sleep(60) # as a worker of a loader
            os._exit(0)
    try:
        with open(tmp_path/'lock', 'a') as file:
            for _ in range(100): # until the fork has closed its copy
                try: lock_file(file, 'path=')
                except ValueError: time.sleep(.05)
                else: break
            else: pytest.fail('the fork keeps the lock')
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


FULL = [OSError(errno.ENOSPC, 'No space left on device'), OSError('[Errno 122] Disk quota exceeded'),
        SafetensorError('I/O error: File too large (os error 27)'), OSError(errno.EIO, 'Input/output error', 'a')]
WRONG = [OSError("checkpoint='a' has no config.json"), ConnectionError('no route'), SafetensorError('invalid header'),
         PermissionError(errno.EACCES, 'Permission denied', 'a'), FileNotFoundError(errno.ENOENT, 'No such file', 'a')]


@pytest.mark.parametrize('error', [*FULL, *WRONG], ids=str)
def test_a_run_goes_on_only_if_the_disk_is_full_or_fails(error, df, tmp_path, monkeypatch, capsys):
    def fail(*args): raise error
    monkeypatch.setattr(checkpoint, 'write_model', fail)
    with nullcontext() if error in FULL else pytest.raises(type(error), match=re.escape(str(error))):
        train(df, tmp_path/'run', n_epoch=1)
    assert ('Could not write' in capsys.readouterr().out) == (error in FULL)


def test_a_finished_fit_that_is_called_again_says_so_each_time(df, tmp_path, capsys):
    learn = make_learner(df)
    for _ in range(3): train(df, tmp_path/'run', n_epoch=1, learn=learn)
    assert capsys.readouterr().out.count('Fit 1 is complete') == 2


def test_the_next_fit_of_the_same_callback_is_trained(df, tmp_path):
    learn = make_learner(df, cbs=HFCheckpoint(tmp_path/'run'))
    with learn.no_bar(), learn.no_logging():
        for _ in range(2): learn.fit(1, 1e-2)
    assert learn.hf_checkpoint.stage == len(learn.hf.runs) == 2


def test_a_home_folder_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    assert HFCheckpoint('~/run').path == tmp_path/'run'


@pytest.mark.parametrize('n', [0, 1, 2])
def test_random_states_of_gpus_that_are_not_there(n, monkeypatch, capsys):
    restored = []
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: n)
    monkeypatch.setattr(torch.cuda, 'set_rng_state_all', restored.extend)
    states = get_random_states() | dict(torch_cuda_state=[torch.tensor([1]), torch.tensor([2])])
    expected = torch.rand(1)
    restore_random(states)
    assert torch.rand(1) == expected
    assert [o.item() for o in restored] == [1, 2][:n]
    out = capsys.readouterr().out
    assert re.match(mentions('2', n, 'GPUs'), out) if n < 2 else not out


def test_start_epoch_is_refused(df, tmp_path, learn):
    with pytest.raises(ValueError, match=mentions('start_epoch=1')):
        learn.fit(2, cbs=HFCheckpoint(tmp_path), start_epoch=1)


def test_what_is_not_training_is_not_part_of_a_run(df, tmp_path):
    learn = make_learner(df, cbs=HFCheckpoint(tmp_path/'run', every=4), path=tmp_path)
    with learn.no_bar(), learn.no_logging():
        learn.lr_find(num_it=6, show_plot=False)
        learn.validate()
        learn.get_preds()
        assert not (tmp_path/'run').exists()
        learn.fit(1)
    assert learn.hf_checkpoint.stage == 1


class Refuses(Callback):
    "A callback that decides about its state"
    def __init__(self, name='a'): self.called = name
    def state_dict(self): return dict(name=self.called)
    def load_state_dict(self, state):
        if state['name']!=self.called: raise ValueError(f"name={self.called!r} was {state['name']!r}")


def test_a_callback_can_refuse(df, tmp_path):
    learn = make_learner(df, cbs=Refuses('a'))
    train(df, tmp_path/'run', stop=5, learn=learn)
    train(df, tmp_path/'run', stop=9, learn=make_learner(df, cbs=Refuses('a')))
    with pytest.raises(ValueError, match=mentions("name='b'")):
        train(df, tmp_path/'run', learn=make_learner(df, cbs=Refuses('b')))


# ---- start_epoch

def test_skipped_epochs_do_not_replace_checkpoints(df, tmp_path):
    learn = make_learner(df, path=tmp_path)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(3, 1e-2, cbs=SaveModelCallback(every_epoch=True))
    old = {o.name: o.stat().st_mtime_ns for o in (tmp_path/'models').iterdir()}
    order = learn.dls.train.epoch
    again = make_learner(df, path=tmp_path)
    again.load('model_1')
    with again.no_bar(), again.no_logging():
        again.fit_one_cycle(3, 1e-2, cbs=SaveModelCallback(every_epoch=True), start_epoch=2)
    changed = [o.name for o in (tmp_path/'models').iterdir() if o.stat().st_mtime_ns!=old[o.name]]
    assert changed == ['model_2.pth']
    assert again.dls.train.epoch == order
    assert len(again.recorder.values) == 1
    run = again.hf.runs[0]
    assert run['epochs'] == 3
    assert run['lr'] == learn.hf.runs[0]['lr']
    assert '| 1 | 3 |' in again.model_card().text


DATES = st.datetimes().map(lambda o: o.replace(fold=0)) | st.just(datetime(2020, 1, 2, tzinfo=UTC))
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), DATES,
                    st.timedeltas(), st.just(Path('a/b')), st.floats(width=32).map(np.float32),
                    st.integers(-9, 9).map(np.int64))
ARRAYS = st.builds(np.full, st.sampled_from([(), 3, (2, 0), (2, 2)]), st.integers(0, 9),
                   st.sampled_from('bool int8 uint16 int64 float16 float64'.split()))
class Own(TensorCategory): pass


TENSORS = st.builds(lambda t, cls: t.as_subclass(cls), ARRAYS.map(torch.from_numpy).filter(lambda o: is_plain(o)),
                    st.sampled_from([torch.Tensor, TensorBase, TensorCategory, TensorText, Own]))
TENSORS |= st.just(torch.ones(2, dtype=torch.bfloat16))
VALUES = st.recursive(SCALARS | ARRAYS | TENSORS, lambda o: st.one_of(
    st.lists(o), st.lists(o).map(tuple), st.lists(o).map(L), st.lists(o).map(deque),
    st.builds(deque, st.lists(o), st.integers(0, 5)), st.sets(SCALARS), st.frozensets(SCALARS),
    st.dictionaries(SCALARS, o), st.dictionaries(SCALARS, o).map(OrderedDict)), max_leaves=12)


def exact_form(o):
    "`o` as nested tuples that are equal if and only if types and values are"
    kind = type(o).__name__
    if isinstance(o, torch.Tensor): return kind,str(o.dtype),tuple(o.shape),repr(o.tolist())
    if isinstance(o, (np.ndarray, np.generic)): return kind,str(o.dtype),o.shape,repr(o.tolist())
    if isinstance(o, dict): return kind,*((exact_form(k), exact_form(v)) for k,v in o.items())
    if isinstance(o, (set, frozenset)): return kind,*sorted(map(repr, map(exact_form, o)))
    if isinstance(o, deque): return kind,o.maxlen,*map(exact_form, o)
    if isinstance(o, (list, tuple, L)): return kind,*map(exact_form, o)
    return kind,repr(o)


@given(VALUES)
@settings(deadline=None)
def test_what_is_plain_is_packed_exactly(value):
    assert is_plain(value)
    tensors = {}
    packed = json.loads(json.dumps(pack(value, tensors)))
    saved = load(save(tensors)) if tensors else {}
    assert exact_form(unpack(packed, saved)) == exact_form(value)


DTYPES = [o for o in vars(torch).values() if isinstance(o, torch.dtype)]


@pytest.mark.parametrize('dtype', sorted({*DTYPES}, key=str), ids=str)
def test_a_tensor_of_any_type_is_saved_or_not_plain(dtype):
    try: value = torch.ones(2).to(dtype)
    except (RuntimeError, NotImplementedError): return # quantized types have functions of their own
    if not is_plain(value): return
    tensors = {}
    packed = pack(value, tensors)
    found = unpack(packed, load(save(tensors)))
    assert found.dtype == dtype
    assert torch.equal(found.view(torch.uint8), value.view(torch.uint8))


class Whole(IntEnum): ONE = 1


OTHERS = [object(), lambda: 0, defaultdict(list), pd.DataFrame(), np.array([None]), np.array(1j), np.datetime64('now'),
          np.longdouble(1), torch.nn.Parameter(torch.ones(1)), torch.ones(1).to_sparse(), torch.ones(1)*1j, Whole.ONE,
          slice(1), range(3), (o for o in ()), torch.quantize_per_tensor(torch.ones(2), .1, 0, torch.qint8),
          torch.ones(1, device='meta'), torch.nested.nested_tensor([torch.ones(1)])]


@pytest.mark.parametrize('value', OTHERS, ids=[type(o).__name__ for o in OTHERS])
def test_what_is_not_plain_is_not_packed(value):
    for o in (value, [value], {'a': value}, deque([value])):
        assert not is_plain(o)
        with pytest.raises(TypeError, match=mentions(type(value).__name__)): pack(o, {})


class Remembers(Callback):
    "A callback with a state of many kinds, some of it changed in place"
    def __init__(self, table=(), unit=1): self.table,self.unit = table,unit
    def before_fit(self):
        if hasattr(self, 'seen'): return
        self.seen,self.last,self._private,self.sums = set(),deque(maxlen=3),[],np.zeros(2, dtype=np.float32)
        self.total,self.file,self.when,self.share = torch.zeros(2),Path('none'),datetime(2020, 1, 1),np.float32(.1)
    def after_batch(self):
        if not self.training: return
        i = self.train_iter
        self.seen.add(i%5)
        self.last.append(i)
        self._private.append(i)
        self.sums += i
        self.total += i
        self.table[i%1000] += 1
        self.file,self.when,self.share = Path(f'file_{i}'),self.when + timedelta(days=i),self.share*np.float32(1.1)


def test_the_state_of_a_callback_may_be_of_many_kinds(df, tmp_path):
    def end(path, stop=None):
        cb = Remembers(np.zeros(1000))
        train(df, path, stop=stop, learn=make_learner(df, cbs=cb))
        return exact_form({k: v for k,v in vars(cb).items() if is_plain(v)})
    end(tmp_path/'run', stop=9)
    again = end(tmp_path/'run')
    assert again == end(tmp_path/'other')
    assert all(o in repr(again) for o in ('deque', 'PosixPath', 'datetime', '_private', 'table'))


def test_an_argument_that_was_not_changed_may_be_changed_between_starts(df, tmp_path):
    train(df, tmp_path/'run', stop=9, learn=make_learner(df, cbs=Remembers(np.zeros(1000), unit=1)))
    learn = make_learner(df, cbs=Remembers(np.zeros(1000), unit=2))
    train(df, tmp_path/'run', learn=learn)
    assert learn.remembers.unit == 2


class Holds(Callback):
    "A callback with attributes that cannot be saved"
    def __init__(self, source): self.source,self.func = source,len
    def before_fit(self): self.counts,self.rows,self.model_ = defaultdict(int),pd.DataFrame(),self.learn.model


def test_a_line_names_what_is_not_saved(df, tmp_path, capsys):
    train(df, tmp_path/'run', learn=make_learner(df, cbs=Holds(object())))
    out = capsys.readouterr().out
    lines = [o for o in out.splitlines() if 'Holds' in o]
    assert len(lines) == 1
    assert re.match(mentions('Holds', 'counts', 'defaultdict', 'rows', 'DataFrame'), lines[0])
    assert not any(o in lines[0] for o in ('source', 'func', 'model_', 'learn'))


def test_callbacks_of_fastai_need_no_line(df, tmp_path, capsys):
    train(df, tmp_path/'run', learn=make_learner(df, cbs=[CSVLogger(tmp_path/'log.csv'), GradientAccumulation(8)]))
    assert 'CSVLogger' not in capsys.readouterr().out


class Wrong(Callback):
    "A callback whose own state cannot be saved"
    def state_dict(self): return dict(fine=1, seen=object())
    def load_state_dict(self, state): pass


def test_a_state_that_cannot_be_saved_is_refused_before_training(df, tmp_path):
    learn = make_learner(df, cbs=Wrong())
    with learn.no_bar(), learn.no_logging(), pytest.raises(TypeError, match=mentions('Wrong', 'seen', 'object')):
        learn.fit(1, cbs=HFCheckpoint(tmp_path/'run'))
    assert learn.train_iter == 0


def test_other_folders_of_the_user_are_not_touched(df, tmp_path):
    run = tmp_path/'run'
    others = [run/o/'notes.txt' for o in ('step-1', 'footstep-data', 'two-step-model', 'step-by-step')]
    others.append(run/'step-3'/'training.log') # of another tool
    for o in others:
        o.parent.mkdir(parents=True)
        o.write_text('precious')
    leftovers = [run/'.step-4-0123abcd', run/'step-4-0123abcd-old', run/'..step-4-0123abcd-4567cdef']
    for o in leftovers: o.mkdir()
    train(df, run, stop=7)
    train(df, run)
    train(df, run, resume=False)
    assert all(o.read_text()=='precious' for o in others)
    assert not any(o.exists() for o in leftovers)


def test_a_write_that_is_killed_leaves_nothing(df, tmp_path, monkeypatch):
    class Killed(BaseException): pass
    def write_model(*args, **kwargs):
        whole(*args, **kwargs)
        raise Killed
    whole = checkpoint.write_model
    monkeypatch.setattr(checkpoint, 'write_model', write_model)
    monkeypatch.setattr('shutil.rmtree', lambda *args, **kwargs: None) # a killed process does not clean up
    with pytest.raises(Killed): train(df, tmp_path/'run')
    assert any(o.name.startswith('.step') for o in (tmp_path/'run').iterdir())
    monkeypatch.undo()
    train(df, tmp_path/'run')
    assert not [o.name for o in (tmp_path/"run").iterdir() if o.name.startswith(".step")]


def test_numbers_of_numpy_are_arguments_of_fit(df, tmp_path):
    learn = make_learner(df)
    with learn.no_bar(): learn.fit(np.int64(1), 1e-2, cbs=HFCheckpoint(tmp_path/'run'))
    assert any(o.name.startswith('step-') for o in (tmp_path/'run').iterdir())


class Counts(Callback):
    "Keys of any kind, in a state"
    def before_fit(self): self.seen = getattr(self, 'seen', {np.int64(1): 2., (0, 1): 'x'})


def test_keys_that_are_not_strings_and_classes_of_callbacks_are_restored(df, tmp_path):
    for stop in (7, None):
        learn = make_learner(df)
        cbs = iter([Counts, HFCheckpoint(tmp_path/'run', every=4), *([StopAt(stop)] if stop else [])])
        with learn.no_bar(), learn.no_logging(), pytest.raises(Stop) if stop else nullcontext():
            learn.fit(2, 1e-3, cbs=cbs)
    assert len(learn.recorder.values)==2
