"Trials are independent, the best learner comes back exactly, and a study continues from its file."
import gc
import os
import re
import signal
import warnings
import weakref
from types import SimpleNamespace

import matplotlib
import optuna
import pytest
import torch
from conftest import make_objects, make_texts, mentions
from fastai.callback.progress import CSVLogger
from fastai.callback.tracker import SaveModelCallback
from fastai.metrics import accuracy
from test_losses import TASKS, loaders, make_model

from blurlike.all import HFTextDataLoaders, find_hyperparameters, hf_learner
from blurlike.train.search import metric_direction, n_done

matplotlib.use('agg')
optuna.logging.set_verbosity(optuna.logging.ERROR)
RATES = [1e-4, 3e-2, 1e-2, 1e-3]


def data(n=40):
    hf,df = make_objects(),make_texts(n)
    df['is_valid'] = df.index >= n-12
    return HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', bs=8, seed=0, device='cpu')


DLS = data()


def make_learner(trial, **kwargs):
    torch.manual_seed(trial.number)
    return hf_learner(DLS, make_objects().model, metrics=accuracy, lr=trial.suggest_categorical('lr', RATES), **kwargs)


def quiet(fit):
    def run(learn, trial):
        with learn.no_bar(), learn.no_logging(): fit(learn)
    return run


one_epoch = quiet(lambda learn: learn.fit(1))


def search(make=make_learner, fit=one_epoch, n_trials=3, metric='valid_loss', **kwargs):
    options = dict(sampler=optuna.samplers.RandomSampler(seed=3), pruner=optuna.pruners.NopPruner())
    return find_hyperparameters(make, fit, n_trials, metric, **options | kwargs)


def check_best(found):
    "The learner has the value of the best trial, exactly"
    values = {o.number: o.value for o in found.study.trials if o.state.name=='COMPLETE'}
    assert found.best_value==(max if found.study.direction.name=='MAXIMIZE' else min)(values.values())
    names = ['valid_loss', *found.learn.metrics.attrgot('name')]
    with found.learn.no_bar(): assert found.learn.validate()[names.index(found.metric)]==found.best_value
    assert found.learn.lr==found.best_params['lr']


# ---- the best learner

@pytest.mark.parametrize('metric', ['valid_loss', 'accuracy'])
def test_the_best_learner_comes_back(metric):
    found = search(metric=metric)
    check_best(found)
    assert len(found.learn.hf.runs)==1
    assert '1 epoch' in found.learn.model_card().text


def test_the_threshold_and_the_temperature_of_the_best_learner_come_back(tmp_path):
    df = make_texts(60).assign(label=[['x', o] for o in make_texts(60).label])
    dls = HFTextDataLoaders.from_df(df, make_objects(), task='multi-label-classification', seed=0, device='cpu')
    made = []
    def make(trial):
        trial.suggest_categorical('lr', RATES)
        made.append(hf_learner(dls, make_objects(num_labels=3).model))
        return made[-1]
    def fit(learn, trial):
        learn.fit(2, 1e-2)
        learn.loss_func.thresh = 0.3
        learn.calibrate()
        learn.choose_threshold(per_label=True, plot=False, grid=[0.2, 0.4 + trial.number/10])
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        found = search(make, quiet(lambda learn: fit(learn, SimpleNamespace(number=len(made)))), metric='f1_micro',
                       storage=tmp_path/'search.db')
    best = made[found.study.best_trial.number]
    text = df.text[0]
    assert found.learn is not best
    assert found.learn.hf_predict(text) == best.hf_predict(text)
    assert found.learn.hf.calibration == best.hf.calibration
    assert found.learn.loss_func.thresh == best.loss_func.thresh


def test_a_learner_without_validation_rows_is_refused_before_it_trains():
    dls = HFTextDataLoaders.from_df(make_texts(40), make_objects(), valid_pct=0, device='cpu')
    with pytest.raises(ValueError, match=mentions("metric='valid_loss'", 'make_learner')):
        search(lambda trial: hf_learner(dls, make_objects().model), lambda learn, trial: pytest.fail('it was trained'))


def half_precision(trial):
    "A model in bfloat16, which is trained in float32"
    torch.manual_seed(trial.number)
    return hf_learner(DLS, make_objects().model.bfloat16(), lr=trial.suggest_categorical('lr', RATES))


@pytest.mark.parametrize('make', [half_precision, lambda trial: make_learner(trial, lora=True)])
def test_weights_are_restored_exactly(make): check_best(search(make, n_trials=2))


def test_the_value_is_that_of_restored_weights(tmp_path):
    "SaveModelCallback loads the weights of the best epoch, which is not the last"
    def make(trial):
        learn = make_learner(trial)
        learn.path = tmp_path
        return learn
    fit = quiet(lambda learn: learn.fit(4, 3e-2, cbs=SaveModelCallback('valid_loss')))
    found = search(make, fit, n_trials=1)
    check_best(found)
    by_epoch = found.study.trials[0].intermediate_values
    assert found.best_value==pytest.approx(min(by_epoch.values()), rel=1e-6)


# ---- memory

def test_no_learner_is_alive_after_its_trial():
    alive,seen = [],[]
    class Failed(Exception): pass
    def make(trial):
        seen.append(sum(o() is not None for o in alive))
        learn = make_learner(trial)
        alive.extend([weakref.ref(learn), weakref.ref(learn.model)])
        return learn
    def fit(learn, trial):
        one_epoch(learn, trial)
        if trial.number==1: raise Failed('on purpose')
        if trial.number==2: raise optuna.TrialPruned
    found = search(make, fit, n_trials=4, catch=Failed)
    assert [o.state.name for o in found.study.trials]==['COMPLETE', 'FAIL', 'PRUNED', 'COMPLETE']
    assert seen==[0]*5 # the last one is the best learner
    del found
    gc.collect()
    assert not [o for o in alive if o() is not None]


# ---- pruning

def test_epochs_are_counted_over_both_phases_of_fine_tune():
    fit = quiet(lambda learn: learn.fine_tune(2, 1e-3))
    found = search(fit=fit, n_trials=1)
    assert list(found.study.trials[0].intermediate_values)==[1, 2, 3]


@pytest.mark.parametrize('after', [1, 2])
def test_a_trial_is_pruned_after_an_epoch(after):
    "In the first phase of fine_tune, the second must not begin"
    class Pruner(optuna.pruners.BasePruner):
        def prune(self, study, trial): return trial.number==1 and len(trial.intermediate_values)==after
    log = []
    def fit(learn, trial):
        with learn.no_bar(), learn.no_logging(): learn.fine_tune(2, 1e-3)
        log.append(trial.number)
    found = search(fit=fit, pruner=Pruner())
    assert [o.state.name for o in found.study.trials]==['COMPLETE', 'PRUNED', 'COMPLETE']
    assert list(found.study.trials[1].intermediate_values)==[*range(1, after+1)]
    assert log==[0, 2]
    table = found.table()
    assert list(table.columns)==['trial', 'valid_loss', 'lr', 'duration', 'state']
    assert table.trial[0]==found.study.best_trial.number
    assert table.state[2]=='PRUNED'


# ---- studies

def test_a_second_call_goes_on_with_the_missing_trials(tmp_path, capsys):
    file = tmp_path/'runs'/'search.db'
    made = []
    def make(trial):
        made.append(trial.number)
        return make_learner(trial)
    first = search(make, n_trials=2, storage=file)
    weights = {k: v.clone() for k,v in first.learn.model.state_dict().items()}
    again = search(make, n_trials=2, storage=str(file))
    assert made==[0, 1, first.study.best_trial.number, again.study.best_trial.number]
    assert all(torch.equal(v, weights[k]) for k,v in again.learn.model.state_dict().items())
    capsys.readouterr()
    third = search(make, n_trials=4, storage=file)
    assert re.search(mentions("'search'", '2 of 4'), capsys.readouterr().out)
    check_best(third)
    assert len(third.study.trials)==4
    assert len(list((file.parent/'search_weights').iterdir()))==1


def test_a_killed_trial_is_not_counted(tmp_path):
    file = tmp_path/'search.db'
    def fit(learn, trial):
        if trial.number==1: os.kill(os.getpid(), signal.SIGKILL)
        one_epoch(learn, trial)
    if not (child := os.fork()): # killed in its second trial
        try: search(fit=fit, storage=file)
        finally: os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1])==signal.SIGKILL
    found = search(storage=file)
    assert [o.state.name for o in found.study.trials]==['COMPLETE', 'RUNNING', 'COMPLETE', 'COMPLETE']
    assert n_done(found.study)==3
    check_best(found)


def test_missing_weights_are_trained_again(tmp_path, capsys):
    search(n_trials=1, storage=tmp_path/'search.db')
    for o in (tmp_path/'search_weights').iterdir(): o.unlink()
    found = search(n_trials=1, storage=tmp_path/'search.db')
    assert 'trial 0' in capsys.readouterr().out
    assert len(found.learn.recorder.values)==1


def test_a_failing_trial_ends_the_search(tmp_path):
    def fit(learn, trial):
        if trial.number==1: raise RuntimeError('on purpose')
        one_epoch(learn, trial)
    with pytest.raises(RuntimeError, match='on purpose'): search(fit=fit, storage=tmp_path/'search.db')
    found = search(storage=tmp_path/'search.db')
    assert [o.state.name for o in found.study.trials]==['COMPLETE', 'FAIL', 'COMPLETE', 'COMPLETE']


# ---- arguments

@pytest.mark.parametrize('task', TASKS)
def test_the_direction_of_each_metric_of_a_task_is_known(task):
    dls = loaders(task, bs=6)
    learn = hf_learner(dls, make_model(dls))
    for o in learn.metrics.attrgot('name'):
        assert metric_direction(o)==('minimize' if 'perplexity' in o else 'maximize')


@pytest.mark.parametrize(('kwargs', 'facts'), [
    (dict(metric='acuracy', direction='maximize'), ["metric='acuracy'", "'accuracy'"]),
    (dict(metric='speed'), ["metric='speed'", 'direction']), (dict(n_trials=0), ['n_trials=0']),
    (dict(direction='up'), ["direction='up'"])])
def test_a_wrong_argument_is_named(kwargs, facts):
    with pytest.raises(ValueError, match=mentions(*facts)): search(**kwargs)


def test_make_learner_must_return_a_learner():
    with pytest.raises(TypeError, match=mentions('make_learner', 'None')): search(lambda trial: None)


def test_another_metric_needs_another_study(tmp_path):
    search(n_trials=1, storage=tmp_path/'search.db')
    with pytest.raises(ValueError, match=mentions("study_name='search'", "metric='valid_loss'")):
        search(metric='accuracy', storage=tmp_path/'search.db')
    assert search(n_trials=1, metric='accuracy', storage=tmp_path/'search.db', study_name='other').metric=='accuracy'


def test_a_search_without_a_complete_trial_is_refused():
    def fit(learn, trial): raise optuna.TrialPruned
    with pytest.raises(ValueError, match=mentions('n_trials=2', '2 of 2')): search(fit=fit, n_trials=2)


def test_one_process_searches(monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(ValueError, match=mentions('find_hyperparameters', '2')): search()


# ---- plots

def test_plots():
    def make(trial): return make_learner(trial, wd=trial.suggest_float('wd', 0., .1))
    found = search(make)
    for kind in ('optimization_history', 'param_importances', 'intermediate_values', 'slice', 'parallel_coordinate'):
        assert found.plot(kind) is not None
    assert 'lr' in repr(found)
    with pytest.raises(ValueError, match=mentions("kind='importance'")): found.plot('importance')


def test_callbacks_of_the_learner_that_need_an_epoch_of_training(tmp_path):
    def make(trial):
        cbs = [SaveModelCallback(monitor='accuracy', fname='kept'), CSVLogger(tmp_path/'log.csv')]
        return make_learner(trial, cbs=cbs, path=tmp_path)
    found = search(make, metric='accuracy')
    found.learn.remove_cbs([o for o in found.learn.cbs if isinstance(o, (SaveModelCallback, CSVLogger))])
    check_best(found)
    assert len((tmp_path/'log.csv').read_text().splitlines()) == 2 # a header and an epoch


@pytest.mark.parametrize('content', ['not a database', None])
def test_a_storage_that_is_no_database_is_refused(tmp_path, content):
    path = tmp_path/'search.db'
    path.mkdir() if content is None else path.write_text(content)
    with pytest.raises(ValueError, match=mentions('storage=', 'search.db')): search(n_trials=1, storage=path)
    assert path.is_dir() or path.read_text() == content
