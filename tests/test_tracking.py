"Training is logged once, with numbers, by fastai's own callbacks and by HFTracker, also if it is interrupted."
import json

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_objects, make_texts, mentions
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.progress import CSVLogger
from fastai.callback.tracker import EarlyStoppingCallback
from fastai.callback.training import GradientAccumulation
from fastai.learner import Learner
from fastai.metrics import accuracy
from fastai.optimizer import Adam
from fastai.test_utils import synth_learner
from fastai.torch_basics import noop, set_seed
from test_losses import TASKS, loaders, make_model
from torch import nn

from blurlike.all import HFCallback, HFCheckpoint, HFTextDataLoaders, HFTracker, hf_learner
from blurlike.train.optimizer import HFOptimWrapper, hf_adamw
from blurlike.train.tracking import hyperparameters, markdown_table, predictions_table, training_setup

OPTIMIZERS = [hf_adamw, *(lambda *args, o=o, **kwargs: HFOptimWrapper(*args, opt=o, **kwargs)
                          for o in (torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop, torch.optim.NAdam))]


def quiet(learn, fit):
    with learn.no_bar(), learn.no_logging(): return fit(learn)


class Log:
    "What a tracker was given"
    def __init__(self): self.numbers,self.params,self.tables = [],[],[]
    def log(self, numbers, step): self.numbers.append((step, numbers))
    def tracker(self, **kwargs): return HFTracker(self.log, self.params.append, self.tables.append, **kwargs)
    def steps(self, name): return [s for s,o in self.numbers if name in o]


def text_learner(cbs=(), n=40, **kwargs):
    hf,df = make_objects(),make_texts(n)
    df['is_valid'] = df.index >= n-12
    dls = HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', bs=8, seed=0, device='cpu')
    return hf_learner(dls, hf.model, metrics=accuracy, lr=1e-2, cbs=cbs, **kwargs)


# ---- fastai's callbacks

@pytest.mark.parametrize('opt_func', OPTIMIZERS)
def test_settings_of_the_optimizer_are_numbers(opt_func):
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    hypers = opt_func([list(o.parameters()) for o in model], lr=1e-3).hypers
    assert len(hypers)==2
    assert all(type(v) in (int, float) for o in hypers for v in o.values()), hypers
    assert {'lr', 'wd'} <= hypers[0].keys()


@pytest.fixture(scope='module')
def tensorboard():
    from fastai.callback.tensorboard import TensorBoardCallback
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    return TensorBoardCallback,lambda folder: EventAccumulator(str(folder)).Reload()


@pytest.mark.parametrize('task', TASKS)
def test_each_task_is_logged(task, tensorboard, tmp_path):
    callback,read = tensorboard
    dls,log = loaders(task, bs=6, seed=0),Log()
    learn = hf_learner(dls, make_model(dls), cbs=[callback(tmp_path), log.tracker(n_preds=3)])
    quiet(learn, lambda learn: learn.fit(2, 1e-3))
    events,steps = read(tmp_path),2*len(dls.train)
    assert {o.step for o in events.Scalars('lr_0')} >= {*range(1, steps)}
    names = [o for o in learn.recorder.metric_names if o not in ('epoch', 'train_loss', 'time')]
    for i,name in enumerate(names, 1):
        expected = [o[i] for o in learn.recorder.values]
        np.testing.assert_allclose([o.value for o in events.Scalars(name)], expected, rtol=1e-5)
        np.testing.assert_array_equal([o[name] for _,o in log.numbers if name in o], expected)
    assert events.Tags()['tensors']==['Sample results/text_summary']
    assert log.steps('train_loss')==[*range(1, steps+1)]
    table, = log.tables
    assert len(table)==3
    assert set(table.correct) <= {True, False}


def test_tensorboard_still_traces_other_models(tensorboard, tmp_path):
    callback,read = tensorboard
    quiet(text_learner(), lambda learn: learn.fit(1, cbs=callback(tmp_path/'ours'))) # which extends it
    quiet(synth_learner(), lambda learn: learn.fit(1, cbs=callback(tmp_path/'other', log_preds=False)))
    assert not read(tmp_path/'ours').Tags()['graph']
    assert read(tmp_path/'other').Tags()['graph']


def test_wandb_has_the_settings_and_the_predictions(tmp_path):
    import wandb
    from fastai.callback.wandb import WandbCallback
    learn = text_learner()
    with wandb.init(mode='offline', dir=tmp_path, settings=wandb.Settings(silent=True)) as run:
        quiet(learn, lambda learn: learn.fine_tune(1, 1e-3, cbs=WandbCallback(n_preds=4)))
        config,summary = dict(run.config),dict(run.summary)
    assert config==hyperparameters_of(learn) | dict(epochs=1, lr=5e-4, frozen_groups=0)
    assert summary['accuracy']==learn.recorder.values[-1][2]
    assert summary['epoch']==2
    assert not {o for o in summary if o.startswith(('fused', 'foreach', 'maximize'))}
    table, = (json.loads(o.read_text()) for o in sorted(tmp_path.rglob('*.table.json'))[-1:])
    assert table['columns']==['text', 'target', 'prediction', 'correct']
    assert len(table['data'])==4
    assert not hasattr(learn, 'gather_args') or 'gather_args' not in vars(learn)


def hyperparameters_of(learn):
    learn.n_epoch = 1
    return hyperparameters(learn)


def test_csv_logger_writes_a_row_for_each_epoch(tmp_path, capsys):
    learn = text_learner()
    learn.path = tmp_path
    with learn.no_bar(): learn.fit(2, 1e-3, cbs=CSVLogger())
    df = pd.read_csv(tmp_path/'history.csv')
    assert list(df.columns)==list(learn.recorder.metric_names)
    np.testing.assert_allclose(df[['train_loss', 'valid_loss', 'accuracy']], [list(o) for o in learn.recorder.values])
    assert learn.logger is print


# ---- HFTracker

def test_steps_and_epochs_are_counted_over_fits():
    log = Log()
    learn = text_learner(log.tracker())
    quiet(learn, lambda learn: (learn.fine_tune(2, 1e-3), learn.validate(), learn.get_preds(), learn.fit(1)))
    steps = len(learn.dls.train)
    assert log.steps('train_loss')==[*range(1, 4*steps+1)]
    assert [(s, o['epoch']) for s,o in log.numbers if 'epoch' in o]==[(i*steps, i) for i in range(1, 5)]
    assert [o.get('fit_2.epochs', o.get('fit_3.epochs', o.get('epochs'))) for o in log.params]==[1, 2, 1]
    assert log.params[0]['lr']==1e-3
    assert len(log.tables)==3
    assert all(isinstance(v, float) for _,o in log.numbers for v in o.values())
    assert {'lr_0', 'train_loss'} <= log.numbers[0][1].keys()


def test_the_learning_rate_finder_is_not_logged(tmp_path):
    log = Log()
    learn = text_learner(log.tracker())
    learn.path = tmp_path
    quiet(learn, lambda learn: learn.lr_find(show_plot=False))
    assert not log.numbers + log.params + log.tables


def test_every_nth_step_and_the_last_of_an_epoch():
    log = Log()
    quiet(text_learner(log.tracker(every=3), n=60), lambda learn: learn.fit(2))
    assert log.steps('train_loss')==[3, 6, 9, 12] # of 2*6


def test_predictions_are_logged_when_training_stops_early():
    log = Log()
    stop = EarlyStoppingCallback('accuracy', min_delta=2., patience=1)
    quiet(text_learner([log.tracker(), stop]), lambda learn: learn.fit(9))
    assert len(log.steps('epoch')) < 9
    assert len(log.tables)==1


@pytest.mark.parametrize('options', [{}, dict(precision='bf16')])
def test_logging_does_not_change_training(options):
    def train(cbs):
        set_seed(0)
        learn = text_learner(cbs, **options)
        quiet(learn, lambda learn: learn.fine_tune(1, 1e-3))
        return learn.recorder.losses,learn.recorder.values
    assert train(Log().tracker())==train([])


def test_the_table_has_the_same_rows_in_each_run(learn):
    first = predictions_table(learn, 5)
    assert list(first.text)==list(predictions_table(learn, 5).text)
    assert list(first.text)==list(learn.dls.valid_ds.items.text[:5])
    assert len(predictions_table(learn, 999))==learn.dls.valid.n


def test_a_learner_without_a_block_is_logged(dls, hf):
    log = Log()
    learn = Learner(dls, hf.model, loss_func=nn.CrossEntropyLoss(), opt_func=Adam, cbs=[HFCallback])
    quiet(learn, lambda learn: learn.fit(1, 1e-3, cbs=HFTracker(log.log, log.params.append)))
    assert log.params[0]['optimizer']=='Adam'
    other = synth_learner()
    quiet(other, lambda learn: learn.fit(1, 1e-3, cbs=HFTracker(log.log, log.params.append)))
    assert log.params[1]['rows'] if 'rows' in log.params[1] else True
    with pytest.raises(ValueError, match=mentions('dls', 'HFTextBlock')):
        quiet(other, lambda learn: learn.fit(1, cbs=HFTracker(log.log, log_table=noop)))


@pytest.mark.parametrize(('kwargs', 'fact'), [(dict(log=None), 'log=None'), (dict(log_table='x'), "log_table='x'")])
def test_arguments_must_be_functions(kwargs, fact):
    with pytest.raises(TypeError, match=mentions(fact)): HFTracker(**dict(log=noop) | kwargs)


def test_the_setup_has_the_precision_and_the_accumulation(learn):
    assert training_setup(learn)==dict(optimizer='hf_adamw', loss='CrossEntropyLossFlat')
    learn.add_cbs([MixedPrecision(), GradientAccumulation(64)])
    assert training_setup(learn)==dict(optimizer='hf_adamw', loss='CrossEntropyLossFlat', precision='fp16', n_acc=64)


def test_a_table_in_markdown_has_a_line_for_each_row():
    lines = markdown_table(pd.DataFrame(dict(a=['x|y', 'two\n\nlines'], b=[1, 2]))).splitlines()
    assert lines[2:]==[r'| x\|y | 1 |', '| two lines | 2 |']


# ---- trackers

def test_mlflow(tmp_path):
    import mlflow
    mlflow.set_tracking_uri(f'sqlite:///{tmp_path}/mlflow.db')
    mlflow.create_experiment('reviews', artifact_location=(tmp_path/'artifacts').as_uri())
    mlflow.set_experiment('reviews')
    learn = text_learner(HFTracker(mlflow.log_metrics, mlflow.log_params,
                                   lambda df: mlflow.log_table(df, 'predictions.json'), n_preds=2))
    with mlflow.start_run() as run: quiet(learn, lambda learn: learn.fine_tune(1, 1e-3))
    client = mlflow.MlflowClient()
    losses = client.get_metric_history(run.info.run_id, 'train_loss')
    assert [o.step for o in losses]==[*range(1, 2*len(learn.dls.train)+1)]
    last = client.get_run(run.info.run_id).data
    assert last.metrics['accuracy']==learn.recorder.values[-1][2]
    assert (last.params['lr'], last.params['fit_2.lr'], last.params['task'])==('0.001', '0.0005',
                                                                                'sequence-classification')
    assert len(mlflow.load_table('predictions.json', run_ids=[run.info.run_id]))==4


def test_trackio(tmp_path, monkeypatch):
    monkeypatch.setenv('TRACKIO_DIR', str(tmp_path))
    import trackio
    run = trackio.init('reviews', auto_log_cpu=False, auto_log_gpu=False)
    table = lambda df: trackio.log(dict(predictions=trackio.Table(dataframe=df)))
    learn = text_learner(HFTracker(trackio.log, run.config.update, table))
    quiet(learn, lambda learn: learn.fit(1))
    name = run.name
    trackio.finish()
    logs = trackio.sqlite_storage.SQLiteStorage.get_logs('reviews', name)
    losses = [float(o) for o in learn.recorder.losses]
    assert [o['train_loss'] for o in logs if 'train_loss' in o]==pytest.approx(losses)
    assert any('predictions' in o for o in logs)


# ---- interrupted runs

class Killed(BaseException): pass
class Kill(Callback):
    "End a run at a moment, as if it had been killed"
    order = 2000
    def __init__(self, event, n): self.event,self.n,self.seen = event,n,0
    def count(self, event):
        self.seen += event==self.event
        if event==self.event and self.seen==self.n: raise Killed
    def before_batch(self): self.count('before_batch')
    def after_batch(self): self.count('after_batch')
    def after_epoch(self): self.count('after_epoch')


MOMENTS = [('before_batch', 4), ('after_batch', 7), ('after_epoch', 1), ('before_batch', 10), ('after_batch', 17)]


def run(log, folder, *cbs, **kwargs):
    checkpoint = HFCheckpoint(folder, every=2, **kwargs)
    quiet(text_learner(), lambda learn: learn.fine_tune(2, 1e-2, cbs=[log.tracker(), checkpoint, *cbs]))
    return log


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
    set_seed(0)
    return run(Log(), tmp_path_factory.mktemp('whole')/'run')


@pytest.mark.parametrize(('event', 'n'), MOMENTS)
def test_an_interrupted_run_is_logged_once(event, n, uninterrupted, tmp_path):
    set_seed(0)
    log = Log()
    with pytest.raises(Killed): run(log, tmp_path/'run', Kill(event, n))
    for _ in range(2): run(log, tmp_path/'run') # the second time, it is finished
    assert log.steps('train_loss')==uninterrupted.steps('train_loss')
    assert log.numbers==uninterrupted.numbers
    assert log.params==uninterrupted.params
    assert len(log.tables)==len(uninterrupted.tables)==2


def test_a_run_that_starts_again_is_logged_again(tmp_path):
    log = run(Log(), tmp_path/'run')
    steps = log.steps('train_loss')
    assert run(log, tmp_path/'run', resume=False).steps('train_loss')==steps*2
