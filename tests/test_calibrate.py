"A temperature changes probabilities and not labels; every way to predict uses it, and training removes it."
import json
from functools import partial

import pandas as pd
import pytest
import torch
from conftest import mentions
from fastai.learner import Learner, load_learner
from fastai.losses import BCEWithLogitsLossFlat
from fastai.metrics import F1ScoreMulti, accuracy_multi
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.metrics import f1_score
from test_losses import TASKS, TEXTS, loaders, make_model
from torch import nn
from transformers import pipeline

from blurlike.all import (
    HFLoss,
    HFTextDataLoaders,
    LabelThresholds,
    find_label_issues,
    hf_learner,
    load_hf_learner,
)
from blurlike.calibrate import (
    Calibration,
    calibration_error,
    calibration_of,
    fit_temperature,
    flat_targets,
    mean_nll,
    outcomes,
    reliability,
    temperature_of,
)
from blurlike.scale import score

CALIBRATED = ['sequence-classification', 'multi-label-classification', 'token-classification', 'multiple-choice']
MANY = 'multi-label-classification'


# ---- the temperature and the error

@st.composite
def predictions(draw):
    "Logits and targets of some rows"
    rows,classes,seed = draw(st.integers(2, 30)),draw(st.integers(2, 4)),draw(st.integers(0, 10**6))
    torch.manual_seed(seed)
    logits = torch.randn(rows, classes)*draw(st.sampled_from([.01, 1., 30.]))
    if draw(st.booleans()): return logits,torch.randint(0, 2, (rows, classes)).float()
    return logits,torch.randint(0, classes, (rows,))


@given(predictions(), st.floats(.05, 20))
def test_the_error_is_between_0_and_1_and_counts_each_prediction(data, temperature):
    bins = reliability(*outcomes(*data, temperature))
    assert 0 <= calibration_error(bins) <= 1
    assert bins.targets.sum() == data[1].numel()
    assert bins.index.min() >= 0
    assert bins.index.max() <= 14
    edges = (bins.index.to_numpy())/15,(bins.index.to_numpy() + 1)/15
    assert all((edges[0] <= bins.probability + 1e-9) & (bins.probability <= edges[1] + 1e-9))


@settings(deadline=None)
@given(predictions())
def test_the_temperature_minimizes_the_likelihood(data):
    try: found = fit_temperature(*data)
    except ValueError: return # no temperature is the best
    best = mean_nll(*data, found)
    assert all(best <= mean_nll(*data, o) + 1e-9 for o in (1., found*1.02, found/1.02, found*2, found/2))


@pytest.mark.parametrize('temperature', [.3, 1., 4.])
@pytest.mark.parametrize('several', [True, False])
def test_a_known_temperature_is_found(temperature, several):
    torch.manual_seed(0)
    logits = torch.randn(30_000, 3)*2
    if several: targs = torch.bernoulli(logits.sigmoid())
    else: targs = torch.distributions.Categorical(logits=logits).sample()
    res = Calibration(logits*temperature, targs)
    assert res.temperature == pytest.approx(temperature, rel=.03)
    assert res.ece[1] < .01
    assert res.nll[1] <= res.nll[0]
    if temperature!=1: assert res.ece[0] > 5*res.ece[1]


@pytest.mark.parametrize('scale', [1e-4, 1., 1e4])
def test_the_scale_of_the_logits_does_not_matter(scale):
    torch.manual_seed(0)
    logits,targs = torch.randn(100, 3),torch.randint(0, 3, (100,))
    logits[range(100),targs] += .5
    assert fit_temperature(logits*scale, targs) == pytest.approx(fit_temperature(logits, targs)*scale, rel=1e-3)


def test_without_a_best_temperature_nothing_is_fitted():
    logits,targs = torch.tensor([[2., 0.], [0., 1.]]),torch.tensor([0, 1])
    for wrong in (logits, torch.zeros(2, 2), -logits): # all right, all equal, all wrong
        with pytest.raises(ValueError, match=mentions('dl=')): fit_temperature(wrong, targs)


def test_padding_is_no_target():
    rows = [torch.randn(n, 3) for n in (2, 5, 4)]
    targs = [torch.tensor([0, -100]), torch.tensor([1, 2, -100, -100, 0]), torch.tensor([-100]*4)]
    logits,found = flat_targets(rows, targs)
    assert found.tolist() == [0, 1, 2, 0]
    assert torch.equal(logits, torch.stack([rows[0][0], rows[1][0], rows[1][1], rows[1][4]]))


# ---- learners

def learner(task, loss_func=None, **kwargs):
    "A learner with an untrained model, whose predictions are sometimes right"
    dls = loaders(task, **kwargs)
    torch.manual_seed(1)
    model = make_model(dls)
    for m in model.modules():
        if isinstance(m, nn.Linear): nn.init.normal_(m.weight, std=.4)
    learn = hf_learner(dls, model, loss_func)
    if hasattr(learn, 'progress'): learn.remove_cb(learn.progress)
    return learn


def asks(learn):
    "Texts to predict"
    rows = TASKS[learn.dls.hf_block.task.name]
    if 'choices' in rows: return list(zip(rows['question'], rows['choices'], strict=True))[:7]
    return list(rows.get('tokens', rows.get('text')))[:7]


def labels_of(preds): return [{k: v for k,v in o.items() if k in ('label', 'choice', 'index', 'labels', 'indices')}
                              if isinstance(o, dict) else [(e['entity_group'], e['start'], e['end']) for e in o]
                              for o in preds]


def calibrated(learn, temperature, monkeypatch):
    "Calibrate with a known temperature, which untrained models do not have"
    monkeypatch.setattr('blurlike.calibrate.fit_temperature', lambda *args: temperature)
    return learn.calibrate()


@pytest.mark.parametrize('task', CALIBRATED)
@pytest.mark.parametrize('loss_func', [None, HFLoss])
def test_every_way_to_predict_has_the_temperature_and_the_same_labels(task, loss_func, monkeypatch, tmp_path):
    learn = learner(task, loss_func and loss_func())
    texts = asks(learn)
    before,logits,metrics = learn.hf_predict(texts),learn.get_preds(act=lambda o: o),list(learn.validate())[1:]
    raw,targs = flat_targets(*logits)
    res = calibrated(learn, 2.5, monkeypatch)
    assert (res.temperature, res.targets, res.bins[0].targets.sum()) == (2.5, targs.numel(), targs.numel())
    assert res.nll == pytest.approx([mean_nll(raw, targs), mean_nll(raw, targs, 2.5)])
    after = learn.hf_predict(texts)
    assert labels_of(after) == labels_of(before)
    assert after != before
    scaled,_ = flat_targets(*learn.get_preds(act=lambda o: o))
    assert torch.allclose(scaled, raw/2.5, atol=1e-6)
    assert list(learn.validate())[1:] == pytest.approx(metrics, nan_ok=True)
    assert learn.validate()[0] == pytest.approx(res.nll[1], rel=1e-5)
    if task!='token-classification':
        for text,o in zip(texts[:2], after, strict=False):
            n = len(o['probs'])
            assert learn.predict(text)[2][:n].tolist() == pytest.approx(o['probs'], abs=1e-5)
    if loss_func is None and task=='sequence-classification':
        found = learn.explain(texts[:2])
        assert [expit(o.value) for o in found] == pytest.approx([o['score'] for o in after[:2]], abs=1e-5)
    # kept in files, and in pickles
    folder = learn.save_pretrained(tmp_path/'model')
    info = json.loads((folder/'blurlike.json').read_text())['calibration']
    assert info == dict(temperature=2.5, targets=res.targets, ece=res.ece, nll=res.nll)
    learn.export(tmp_path/'learn.pkl')
    for other in (load_hf_learner(folder, device='cpu'), load_learner(tmp_path/'learn.pkl')):
        assert temperature_of(other) == 2.5
        assert labels_of(other.hf_predict(texts)) == labels_of(before)
    assert 'temperature of 2.5' in (folder/'README.md').read_text()


@pytest.mark.parametrize('task', sorted(TASKS.keys() - set(CALIBRATED)))
def test_other_tasks_are_not_calibrated(task):
    learn = learner(task)
    with pytest.raises(ValueError, match=mentions(task)): learn.calibrate()


def test_a_fitted_temperature_improves_the_validation_loss(df, hf):
    df['label'] = df.label.where(df.index % 5 > 0, 'good') # some labels are wrong, so that not all rows are right
    learn = hf_learner(HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', bs=8, seed=0, device='cpu'), hf.model)
    with learn.no_bar(), learn.no_logging(): learn.fit(3, 1e-2)
    loss = learn.validate()[0]
    res = learn.calibrate()
    assert learn.validate()[0] == pytest.approx(res.nll[1], abs=1e-4)
    assert res.nll[1] <= loss + 1e-6


def test_training_removes_the_temperature_and_says_so(monkeypatch, capsys, learn):
    before = learn.hf_predict(TEXTS)
    calibrated(learn, 3., monkeypatch)
    learn.get_preds()
    learn.lr_find(show_plot=False)
    assert temperature_of(learn) == 3
    capsys.readouterr()
    learn.fit(1, 0.)
    assert calibration_of(learn) is None
    assert capsys.readouterr().out.count('learn.calibrate()') == 1
    for a,b in zip(learn.hf_predict(TEXTS), before, strict=True):
        assert a['probs'] == pytest.approx(b['probs'], abs=1e-5)
    learn.fit(1, 0.)
    assert 'calibrate' not in capsys.readouterr().out
    assert 'Calibration' not in learn.model_card().text


def test_calibrating_again_starts_from_the_logits(monkeypatch, learn):
    first,second = calibrated(learn, 3., monkeypatch),calibrated(learn, 3., monkeypatch)
    assert first.nll == pytest.approx(second.nll)
    assert temperature_of(hf_learner(learn.dls, learn.model)) is None # another learner has its own


def test_an_error_leaves_the_temperature_as_it_was(monkeypatch, learn):
    calibrated(learn, 3., monkeypatch)
    with pytest.raises(ValueError, match=mentions('with_labels=True')): learn.calibrate(dl=learn.dls.test_dl(TEXTS[:3]))
    with monkeypatch.context() as m:
        m.setattr(learn.dls, 'loaders', learn.dls.loaders[:1])
        with pytest.raises(ValueError, match=mentions('dl=None')): learn.calibrate()
        with pytest.raises(ValueError, match=mentions('dl=None')): find_label_issues(learn)
    assert temperature_of(learn) == 3
    plain = Learner(learn.dls, learn.model, loss_func=learn.loss_func)
    with pytest.raises(ValueError, match=mentions('HFCallback')): plain.calibrate()


def test_a_loaded_model_to_train_on_keeps_its_temperature_until_then(monkeypatch, learn, tmp_path, capsys):
    calibrated(learn, 3., monkeypatch)
    other = load_hf_learner(learn.save_pretrained(tmp_path/'model'), dls=learn.dls)
    a,b = learn.hf_predict(TEXTS[0]),other.hf_predict(TEXTS[0])
    assert a['probs'] == pytest.approx(b['probs'], abs=1e-6)
    with other.no_bar(), other.no_logging(): other.fit(1)
    assert temperature_of(other) is None


# ---- thresholds by label

@pytest.fixture
def many(): return learner(MANY)


def test_a_label_has_its_own_threshold_everywhere(many, tmp_path, capsys):
    limits = [.2, .9, .5]
    many.loss_func.thresh = LabelThresholds(limits)
    at = dict(thresh=LabelThresholds(limits))
    many.metrics = [*many.metrics, partial(accuracy_multi, **at), F1ScoreMulti(average='micro', **at)]
    probs,targs,decoded = many.get_preds(with_decoded=True)
    expected = probs > torch.tensor(limits)
    assert torch.equal(decoded, expected)
    assert 0 < expected.float().mean() < 1
    micro,_,acc,theirs,f1 = many.validate()[1:]
    right = (expected==(targs > .5)).float().mean().item()
    assert [acc, theirs] == pytest.approx([right]*2)
    assert micro == pytest.approx(f1)
    preds = many.hf_predict(TEXTS)
    for o in preds: assert set(o['indices']) == {i for i,p in enumerate(o['probs']) if p > limits[i]}
    assert set(many.predict(TEXTS[0])[0]) == set(preds[0]['labels'])
    folder = many.save_pretrained(tmp_path/'model')
    assert json.loads((folder/'blurlike.json').read_text())['task_options']['threshold'] == limits
    other = load_hf_learner(folder, device='cpu')
    assert other.loss_func.thresh == limits
    assert [o['labels'] for o in other.hf_predict(TEXTS)] == [o['labels'] for o in preds]
    capsys.readouterr()
    many.show_results(dl=many.dls.valid.new(bs=20, sort=False), max_n=5, shuffle=False)
    shown = capsys.readouterr().out
    for o in preds[:5]: assert ', '.join(sorted(o['labels'], key=list(many.dls.vocab).index)) in shown


def test_exported_and_scored_models_have_temperature_and_thresholds(many, monkeypatch, tmp_path):
    before = many.hf_predict(TEXTS[0])['probs']
    calibrated(many, 3., monkeypatch)
    many.loss_func.thresh = LabelThresholds([.4, .6, .5])
    expected = many.hf_predict(TEXTS)
    for a,b in zip(load_hf_learner(many.export_onnx(tmp_path/'onnx')).hf_predict(TEXTS), expected, strict=True):
        assert a['labels'] == b['labels']
        assert a['probs'] == pytest.approx(b['probs'], abs=1e-4)
    folder = many.save_pretrained(tmp_path/'model')
    pd.DataFrame(dict(text=TEXTS)).to_parquet(tmp_path/'rows.parquet')
    scored = pd.read_parquet(score(tmp_path/'rows.parquet', folder, tmp_path/'out'))
    for row,o in zip(scored.itertuples(), expected, strict=True):
        assert sorted(row.labels) == sorted(o['labels'])
        assert [getattr(row, f'prob_{k}') for k in many.dls.vocab] == pytest.approx(o['probs'], abs=1e-5)
    # transformers does not know the temperature
    theirs, = pipeline('text-classification', model=str(folder), device='cpu', top_k=None)(TEXTS[:1])
    assert sorted(o['score'] for o in theirs) == pytest.approx(sorted(before), abs=1e-5)
    assert expected[0]['probs'] != pytest.approx(before, abs=1e-3)


def test_thresholds_are_chosen_label_by_label(many, capsys):
    grid = [.1, .3, .5, .7, .9]
    probs,targs = many.get_preds()
    table = many.choose_threshold(per_label=True, grid=grid, plot=False)
    assert list(table.index) == list(many.dls.vocab)
    assert table.rows.tolist() == targs.sum(0).tolist()
    for i,row in enumerate(table.itertuples()):
        f1 = [f1_score(targs[:,i], probs[:,i] > o, zero_division=0) for o in grid]
        assert row.f1 == pytest.approx(max(f1), abs=1e-3)
        assert f1[grid.index(row.threshold)] == max(f1)
    assert many.loss_func.thresh == table.threshold.tolist()
    assert many.validate()[2] == pytest.approx(table.f1.mean(), abs=1e-3) # macro F1
    assert many.dls.hf_block.task.threshold == .5 # of other learners
    with pytest.raises(ValueError, match=mentions("average='macro'", 'per_label')):
        many.choose_threshold(average='macro', per_label=True)


def test_a_label_without_rows_keeps_its_threshold(many, capsys):
    df = pd.DataFrame(dict(text=TEXTS[:6], label=[['good'], [], ['good'], [], ['plot'], []]))
    dl = many.dls.test_dl(df, with_labels=True)
    table = many.choose_threshold(per_label=True, dl=dl, plot=False)
    assert table.threshold['bad'] == .5
    assert table.rows.to_dict() == dict(bad=0, good=2, plot=1)
    assert "'bad'" in capsys.readouterr().out


@pytest.mark.parametrize('first', ['calibrate', 'threshold'])
def test_calibration_and_thresholds_can_be_called_in_any_order(first, many, monkeypatch, capsys):
    limits,start = [.2, .9, .5],[set(o['labels']) for o in many.hf_predict(TEXTS)]
    if first=='threshold': many.loss_func.thresh = LabelThresholds(limits)
    before = [set(o['labels']) for o in many.hf_predict(TEXTS)]
    calibrated(many, 2., monkeypatch)
    assert [set(o['labels']) for o in many.hf_predict(TEXTS)] == before
    if first=='calibrate':
        assert before==start
        assert many.loss_func.thresh == .5
        many.loss_func.thresh = LabelThresholds(limits)
        before = [set(o['labels']) for o in many.hf_predict(TEXTS)]
    else:
        assert many.loss_func.thresh == pytest.approx([1/3, .75, .5])
        assert 'threshold' in capsys.readouterr().out
    with many.no_bar(), many.no_logging(): many.fit(1, 0.)
    assert [set(o['labels']) for o in many.hf_predict(TEXTS)] == before
    if first=='threshold': assert many.loss_func.thresh == pytest.approx(limits)


def test_saved_thresholds_are_those_of_calibrated_probabilities(many, monkeypatch, tmp_path):
    many.loss_func.thresh = .2
    calibrated(many, 2., monkeypatch)
    preds = many.hf_predict(TEXTS)
    folder = many.save_pretrained(tmp_path/'model')
    other = load_hf_learner(folder, device='cpu')
    assert other.loss_func.thresh == pytest.approx(1/3)
    assert [o['labels'] for o in other.hf_predict(TEXTS)] == [o['labels'] for o in preds]
    # data to train on has its own threshold, of probabilities without a temperature
    dls = loaders(MANY, threshold=.2)
    other = load_hf_learner(folder, dls=dls)
    assert [o['labels'] for o in other.hf_predict(TEXTS)] == [o['labels'] for o in preds]
    with other.no_bar(), other.no_logging(): other.fit(1, 0.)
    assert other.loss_func.thresh == pytest.approx(.2)


def test_old_files_with_one_threshold_load(many, tmp_path):
    folder = many.save_pretrained(tmp_path/'model')
    info = json.loads((folder/'blurlike.json').read_text())
    assert 'calibration' not in info
    assert info['task_options']['threshold'] == .5
    assert load_hf_learner(folder).loss_func.thresh == .5


@pytest.mark.parametrize('threshold', [[.5, .5], [.5, 2., .5], ['a', .5, .5], 'high', [True, .5, .5]])
def test_impossible_thresholds_raise(threshold, many):
    with pytest.raises(ValueError, match=mentions('threshold=')): many.hf_predict(TEXTS, threshold=threshold)
    with pytest.raises(ValueError, match=mentions('threshold=')):
        hf_learner(loaders(MANY, threshold=threshold), many.model)


def test_thresholds_of_the_data_and_of_a_call(many):
    dls = loaders(MANY, threshold=[.2, .9, .5])
    learn = hf_learner(dls, many.model)
    assert [o['labels'] for o in learn.hf_predict(TEXTS)] == [
        o['labels'] for o in many.hf_predict(TEXTS, threshold=torch.tensor([.2, .9, .5]))]
    assert repr(dls.hf_block.task) == "MultiLabelClassification(threshold=[0.2, 0.9, 0.5], pooling='mean', vocab=None)"


@settings(deadline=None)
@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=4), st.integers(1, 5), st.integers(0, 100))
def test_thresholds_compare_like_a_tensor(limits, rows, seed):
    torch.manual_seed(seed)
    probs,limits = torch.rand(rows, len(limits)),LabelThresholds(limits)
    expected = torch.tensor([*limits])
    assert torch.equal(probs > limits, probs > expected)
    assert torch.equal(probs >= limits, probs >= expected)
    assert torch.equal(probs.flatten() > limits, (probs > expected).flatten())
    assert torch.equal(BCEWithLogitsLossFlat(thresh=limits).decodes(probs), probs > expected)
