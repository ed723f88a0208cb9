"""A run that is killed with SIGKILL at any moment, and started again, ends as one that was not interrupted.
Runs are processes forked from a server that has imported everything (`python test_checkpoint.py`)."""
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import make_config, make_objects, make_texts, mentions
from datasets import Dataset, DatasetDict
from fastai.callback.core import Callback, event
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback
from fastai.callback.training import GradientAccumulation
from fastai.torch_basics import set_seed
from fasttransform import ItemTransform
from test_matrix import CONFIGS, ROWS, TASKS, frame

import blurlike.ship.checkpoint as room
from blurlike.all import HFCheckpoint, HFObjects, HFTextDataLoaders, hf_learner, load_hf_learner
from blurlike.ship.checkpoint import newest_checkpoint, pack, unpack

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
    dls = HFTextDataLoaders.from_dataset(dict(train=stream, valid=valid), hf, train='train', valid='valid', n=34, bs=4, pool=2,
                                         seed=0, device='cpu')
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
    learn.fit(2, 1e-3)


TRACKERS = lambda: [EarlyStoppingCallback(patience=2), ReduceLROnPlateau(patience=1, factor=2.), SaveModelCallback()]
SETUPS = { # name: data and model, training, more callbacks, options of the checkpoint
    **{task: (lambda task=task: task_dls(task), fine_tune, list, {}) for task in TASKS},
    'one cycle': (text_dls, one_cycle, lambda: [Noise()], {}),
    'linear': (lambda: text_dls(batch_tokens=64), linear, list, {}),
    'two fits': (text_dls, twice, list, dict(keep=1)),
    'pools': (lambda: text_dls(precompute_lengths=False, pool=2), one_cycle, list, dict(every=1)),
    'workers': (lambda: text_dls(num_workers=2), one_cycle, list, dict(every=3)),
    'pools with workers': (lambda: text_dls(precompute_lengths=False, pool=2, num_workers=2), one_cycle, list, dict(every=3)),
    'stream': (lambda: stream_dls(False), one_cycle, list, {}),
    'shuffled stream': (lambda: stream_dls(True), fine_tune, list, {}),
    'random texts': (lambda: random_dls(), one_cycle, list, {}),
    'random texts with workers': (lambda: random_dls(num_workers=2), one_cycle, list, dict(every=3)),
    'masks with workers': (lambda: task_dls('masked-lm', num_workers=2), one_cycle, list, dict(every=3)),
    'accumulation': (text_dls, fine_tune, lambda: [GradientAccumulation(10)], dict(every=1)),
    'accumulation of masks': (lambda: task_dls('masked-lm'), one_cycle, lambda: [GradientAccumulation(10)], dict(every=1)),
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
for _name in 'before_train before_batch after_loss after_step after_batch before_validate after_epoch after_fit'.split():
    setattr(Moments, _name, lambda self: self.count('training' if self.learn.training else 'validation'))


def plain_text(o):
    "`o` as text, as it is after it was saved and loaded"
    tensors = {}
    return repr(unpack(pack(o, tensors), tensors))


def run(setup, folder, kind='', at=0, every=2, keep=2):
    "Train in this process, and save what came out of it"
    make,train,more,options = SETUPS[setup]
    set_seed(7)
    folder,me = Path(folder),os.getpid()
    moments = Moments(kind, at, f'{folder}.note')
    def audit(name, args):
        if name in FILES and os.getpid()==me and args and str(folder/'run') in str(args[0]): moments.count('writing')
    dls,model = make()
    learn = hf_learner(dls, model, path=folder, **(dict(metrics=[]) if setup in WRITING else {}))
    cbs = [*more(), HFCheckpoint(folder/'run', **(dict(every=every, keep=keep) | options))]
    sys.addaudithook(audit)
    with learn.no_bar(), learn.no_logging(): train(learn, [*cbs, moments])
    n,recorder = moments.n.copy(),learn.recorder
    result = {o: plain_text(getattr(recorder, o)) for o in ('values', 'lrs', 'losses', 'iters', 'metric_names')}
    result |= dict(runs=plain_text(learn.hf.runs), opt=plain_text(learn.opt.state_dict()), final=plain_text(learn.final_record),
                   draws=repr([o.draws for o in cbs if isinstance(o, Noise)]),
                   trackers=plain_text([(o.best, getattr(o, 'wait', None)) for o in cbs if hasattr(type(o), 'monitor') or hasattr(o, 'comp')]),
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
        if after: threading.Timer(after, lambda: os.kill(pid, signal.SIGKILL)).start()
        _,status = os.waitpid(pid, 0)
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


MOMENTS = [(setup, kind) for setup in SETUPS for kind in KINDS]


@pytest.mark.parametrize(('setup', 'kind'), MOMENTS, ids=[f'{a}-{b}' for a,b in MOMENTS])
def test_a_killed_run_ends_like_one_that_was_not(setup, kind, start, whole, tmp_path):
    expected,rng,folder = whole(setup),random.Random(f'{setup}{kind}'),tmp_path/'it'
    at = rng.randint(1, expected['moments'][kind])
    assert start(setup, folder, kind=kind, at=at) == -signal.SIGKILL, (tmp_path/'it.log').read_text()
    if kind=='writing': start(setup, folder, kind=rng.choice(KINDS), at=rng.randint(1, 20)) # once more
    assert start(setup, folder) == 0, (tmp_path/'it.log').read_text()
    assert differences(expected, torch.load(tmp_path/'it.pt')) == []
