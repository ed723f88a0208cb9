"Class weights are those of scikit-learn, counted over the training rows, and the loss with them is that of torch."
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import make_objects, make_texts, mentions
from fastai.callback.training import GradientAccumulation
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import SGD
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from test_losses import TASKS, assert_same_step, fit, in_order, loaders, make_model, train, weights

from blurlike.all import (
    HFCheckpoint,
    HFLoss,
    HFTextDataLoaders,
    MultiLabelClassification,
    SequenceClassification,
    class_weights,
    hf_learner,
    load_hf_learner,
)
from blurlike.cli import run

WEIGHTS = {'sequence-classification': dict(good=5.), 'token-classification': 'balanced',
           'multi-label-classification': 'balanced'}
LOSSES = {'multi-label-classification': lambda w: partial(F.binary_cross_entropy_with_logits, pos_weight=w)}


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40))
def test_balanced_is_the_formula_of_scikit_learn(labels):
    task,targets = SequenceClassification(),[torch.tensor(o) for o in labels]
    found = task.balanced_weights(task.label_counts(targets, 5), len(targets))
    there = np.unique(labels)
    assert found[there] == pytest.approx(compute_class_weight('balanced', classes=there, y=labels))
    assert all(found[o] == 1 for o in range(5) if o not in there)
    sums = [found[o]*labels.count(o) for o in there] # each class weighs as much as the others
    assert sums == pytest.approx([len(labels)/len(there)]*len(there))


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=20))
def test_rows_with_and_without_a_label_weigh_the_same(rows):
    targets = np.array(rows, dtype=float)
    task = MultiLabelClassification()
    found = task.balanced_weights(task.label_counts([torch.tensor(o) for o in targets], 3), len(rows))
    for weight,column in zip(found, targets.T, strict=True):
        if 0 < column.sum() < len(column): assert weight*column.sum() == pytest.approx((1-column).sum())
        else: assert weight == 1


def expected_weights(task, dls):
    "The weights, computed from the frame of `test_losses`"
    rows = TASKS[task]
    if task=='token-classification':
        words = [o for row in rows['labels'] for o in row]
        return compute_class_weight('balanced', classes=np.array(dls.vocab), y=words)
    if task=='multi-label-classification':
        return [sum(k not in o for o in rows['label'])/sum(k in o for o in rows['label']) for k in dls.vocab]
    return [WEIGHTS[task].get(o, 1.) for o in dls.vocab]


def flat(dls, model, batch):
    "The logits and targets of the positions that have a target"
    inputs,targs = batch[0],batch[1].as_subclass(torch.Tensor)
    logits = dls.hf_block.task.pred(model(**inputs.for_model()), inputs)
    return (logits[targs!=-100], targs[targs!=-100]) if logits.ndim > targs.ndim else (logits, targs)


def by_hand(dls, weight, batch, lr):
    "The weights of the model after a step with the loss of torch on the positions that have a target"
    model = make_model(dls)
    loss_func = LOSSES.get(dls.hf_block.task.name, lambda w: partial(F.cross_entropy, weight=w))(weight)
    loss_func(*flat(dls, model, batch)).backward()
    for p in model.parameters():
        if p.grad is not None: p.data -= lr*p.grad
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize('task', WEIGHTS)
def test_gradients_are_those_of_torch(task):
    dls = loaders(task)
    weight = class_weights(dls, WEIGHTS[task])
    assert weight.tolist() == pytest.approx(expected_weights(task, dls))
    batch = in_order(dls, 20)
    learn = hf_learner(dls, make_model(dls), opt_func=SGD, metrics=[], max_grad_norm=None, class_weight=WEIGHTS[task])
    fit(learn, batch)
    assert torch.allclose(weights(learn), by_hand(dls, weight, batch[0], 0.1), atol=1e-6)
    assert not torch.allclose(weights(learn), by_hand(dls, torch.ones_like(weight), batch[0], 0.1), atol=1e-6)


@pytest.mark.parametrize('task', WEIGHTS)
def test_accumulated_batches_with_class_weights_are_the_larger_batch(task):
    dls,weighted = loaders(task),dict(class_weight=WEIGHTS[task])
    assert_same_step(train(dls, 2, cbs=[GradientAccumulation(8)], **weighted), train(dls, 8, **weighted))


def test_label_smoothing_takes_the_weights_too():
    dls = loaders('token-classification')
    smooth = lambda: CrossEntropyLossFlat(weight=class_weights(dls), label_smoothing=0.2)
    assert_same_step(train(dls, 2, smooth(), cbs=[GradientAccumulation(8)]), train(dls, 8, smooth()))


@pytest.mark.parametrize('task', WEIGHTS)
@pytest.mark.parametrize('bs', [3, 20])
def test_the_validation_loss_is_weighted_and_does_not_depend_on_the_batch_size(task, bs):
    dls = loaders(task)
    learn = hf_learner(dls, make_model(dls), metrics=[], class_weight=WEIGHTS[task])
    batch, = in_order(dls, 20)
    with torch.no_grad(): logits,targs = flat(dls, learn.model.eval(), batch)
    loss_func = LOSSES.get(task, lambda w: partial(F.cross_entropy, weight=w))(class_weights(dls, WEIGHTS[task]))
    with learn.no_bar(): found = learn.validate(dl=in_order(dls, bs))[0]
    assert found == pytest.approx(loss_func(logits, targs).item(), rel=1e-5)


def test_only_training_rows_are_counted(hf, capsys):
    df = make_texts(40).assign(is_valid=[True]*20 + [False]*20)
    df.loc[20:29, 'label'] = 'good'
    of = lambda **kwargs: HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', bs=4, device='cpu', **kwargs)
    assert class_weights(of()).tolist() == pytest.approx([2., 20/30])
    assert 'weight' not in capsys.readouterr().out
    # A class of the vocab without training rows has the weight 1, and is named
    dls = HFTextDataLoaders.from_df(df, make_objects(num_labels=3), valid_col='is_valid', bs=4, device='cpu',
                                    vocab=['bad', 'so-so', 'good'])
    assert class_weights(dls).tolist() == pytest.approx([2., 1., 20/30])
    assert "'so-so'" in capsys.readouterr().out


def test_labels_may_be_numbers(hf):
    df = make_texts(20).assign(is_valid=[False]*16 + [True]*4)
    df['label'] = (df.label=='good').astype(int)
    dls = HFTextDataLoaders.from_df(df, hf, task='sequence-classification', valid_col='is_valid', device='cpu')
    assert class_weights(dls, {1: 3}).tolist() == [1, 3]
    with pytest.raises(ValueError, match=mentions('class_weight', "'1'")): class_weights(dls, {'1': 3})


def test_a_stream_takes_a_dict_only(df, hf):
    from datasets import Dataset
    ds = Dataset.from_pandas(df[['text', 'label']])
    dls = HFTextDataLoaders.from_dataset(dict(train=ds.to_iterable_dataset(), valid=ds.select(range(20))), hf, n=100,
                                         bs=8, device='cpu')
    with pytest.raises(ValueError, match=mentions("class_weight='balanced'", 'dict')):
        hf_learner(dls, hf.model, class_weight='balanced')
    assert hf_learner(dls, hf.model, class_weight=dict(good=2)).loss_func.func.weight.tolist() == [1, 2]


@pytest.mark.parametrize('task', sorted(TASKS.keys() - WEIGHTS.keys()))
def test_tasks_without_classes_refuse_weights(task):
    dls = loaders(task)
    with pytest.raises(ValueError, match=mentions("class_weight='balanced'", task)):
        hf_learner(dls, make_model(dls), class_weight='balanced')


@pytest.mark.parametrize(('class_weight', 'error', 'facts'), [
    ('balance', ValueError, ["class_weight='balance'"]), (dict(god=2), ValueError, ["'god'", "'good'"]),
    (dict(good=-1), ValueError, ["'good'", '-1']), (dict(good='2'), ValueError, ["'2'"]),
    (dict(good=float('nan')), ValueError, ['nan']), (True, TypeError, ['class_weight=True']),
    ([1., 2.], TypeError, ['class_weight=[1.0, 2.0]'])])
def test_impossible_weights_raise(class_weight, error, facts, dls, hf):
    with pytest.raises(error, match=mentions(*facts)): hf_learner(dls, hf.model, class_weight=class_weight)


@pytest.mark.parametrize('loss_func', [HFLoss(), CrossEntropyLossFlat()])
def test_another_loss_refuses_weights(loss_func, dls, hf):
    with pytest.raises(ValueError, match=mentions("class_weight='balanced'", 'loss_func')):
        hf_learner(dls, hf.model, loss_func, class_weight='balanced')


def test_a_loaded_model_trains_on_with_weights(learn, dls, tmp_path):
    folder = learn.save_pretrained(tmp_path/'model')
    weighted = load_hf_learner(folder, dls=dls, class_weight=dict(good=3.))
    assert weighted.loss_func.func.weight.tolist() == [1, 3]
    with weighted.no_bar(), weighted.no_logging(): weighted.fit(1)
    assert 'class weights 1, 3' in weighted.model_card().text
    with pytest.raises(ValueError, match=mentions("class_weight='balanced'")):
        load_hf_learner(folder, class_weight='balanced') # there are no rows


def test_the_command_line_passes_class_weights(df, hf, tmp_path, capsys):
    for o in (hf.model, hf.tokenizer): o.save_pretrained(tmp_path/'ckpt')
    df.to_csv(tmp_path/'rows.csv', index=False)
    args = ['train', str(tmp_path/'rows.csv'), '--checkpoint', str(tmp_path/'ckpt'), '--valid-col', 'is_valid',
            '--epochs', '1', '--precision', 'fp32', '--out', str(tmp_path/'out'), '--class-weight']
    assert run([*args, 'balanced']) == 0
    assert 'class weights 1, 1' in (tmp_path/'out'/'README.md').read_text()
    assert run([*args, 'equal']) == 1
    assert "--class-weight='equal'" in capsys.readouterr().err


@settings(deadline=None, max_examples=10)
@given(st.lists(st.lists(st.sampled_from(['O', 'B-X', 'B-Y']), min_size=1, max_size=5), min_size=2, max_size=8))
def test_words_are_counted(labels):
    df = pd.DataFrame(dict(tokens=[['film']*len(o) for o in labels], labels=labels, is_valid=False))
    df = pd.concat([df, df.assign(is_valid=True)], ignore_index=True)
    dls = HFTextDataLoaders.from_df(df, make_objects(num_labels=3), task='token-classification', bs=2, device='cpu',
                                    valid_col='is_valid', vocab=['O', 'B-X', 'B-Y'])
    words = [o for row in labels for o in row]
    there = np.unique(words)
    found = dict(zip(dls.vocab, class_weights(dls).tolist(), strict=True))
    assert [found[o] for o in there] == pytest.approx(list(compute_class_weight('balanced', classes=there, y=words)))


def test_a_run_does_not_continue_with_other_weights(dls, hf, tmp_path):
    def fit_with(class_weight):
        learn = hf_learner(dls, hf.model, class_weight=class_weight)
        with learn.no_bar(), learn.no_logging(): learn.fit(1, cbs=HFCheckpoint(tmp_path))
    fit_with(dict(good=2.))
    with pytest.raises(ValueError, match=mentions('class_weights=[1.0, 2.0]')): fit_with(dict(good=3.))


def test_weights_and_thresholds_do_not_pass_to_labels_in_another_order():
    hf = make_objects()
    def data(vocab): return HFTextDataLoaders.from_df(make_texts(20), hf, seed=0, bs=4, device='cpu', vocab=vocab)
    learn = hf_learner(data(['bad', 'good']), hf.model, class_weight=dict(bad=3.))
    learn.hf_predict('a film')
    learn.dls = data(['good', 'bad'])
    with pytest.raises(ValueError, match=mentions("'good', 'bad'", "'bad', 'good'", 'class weights')):
        learn.hf_predict('a film')
    learn.dls = data(['bad', 'good'])
    learn.hf_predict('a film')
    plain = hf_learner(data(['bad', 'good']), hf.model)
    pred = plain.hf_predict('a film')
    plain.dls = data(['good', 'bad'])
    assert plain.hf_predict('a film')['probs'] == pytest.approx(pred['probs'][::-1])
