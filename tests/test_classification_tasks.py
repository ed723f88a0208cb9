"Sequence classification, multi-label classification and regression, on pairs and long texts too."
from functools import partial
from unittest.mock import patch

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_objects, mentions
from fastai.text.all import (
    BCEWithLogitsLossFlat,
    CategoryBlock,
    ClassificationInterpretation,
    ColReader,
    ColSplitter,
    CrossEntropyLossFlat,
    DataBlock,
    FocalLossFlat,
    Interpretation,
    LabelSmoothingCrossEntropyFlat,
    Learner,
    MultiCategoryBlock,
    RegressionBlock,
    RocAucMulti,
    accuracy_multi,
    load_learner,
    noop,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import pipeline

from blurlike.all import (
    HFCallback,
    HFLoss,
    HFTextBlock,
    HFTextDataLoaders,
    SampleTable,
    all_tasks,
    get_task,
    hf_learner,
    load_hf_learner,
)
from blurlike.core.inputs import HFInputs
from blurlike.predict import text_batches

TEXTS = ['the film warm', 'the plot dull the cast sour the script stale', 'zebra 🎬']


def from_df(df, hf, **kwargs):
    return HFTextDataLoaders.from_df(df, hf, **{'valid_col': 'is_valid', 'bs': 8, 'seed': 0, 'device': 'cpu', **kwargs})


@pytest.fixture
def pairs(df): return df.assign(other=df.text.str.split().str[:7].str[::-1].str.join(' '))


@pytest.fixture
def topics(df): return df.assign(label=[[w for w in ('film', 'plot', 'cast') if w in t] for t in df.text])


@pytest.fixture
def scores(df): return df.assign(score=df.text.str.len()/100 + 0.25, words=df.text.str.split().map(len)/7)


def quiet_fit(learn, n=1):
    with learn.no_bar(), learn.no_logging(): learn.fit(n, 1e-3)
    return learn


# ---- inferring the task

@pytest.mark.parametrize(('labels', 'task'), [
    (dict(label=['a', 'b', 'a', 'b']), 'sequence-classification'),
    (dict(label=[0, 1, 1, 0]), 'sequence-classification'),
    (dict(label=[True, False, True, False]), 'sequence-classification'),
    (dict(label=[['a'], [], ['a', 'b'], ['b']]), 'multi-label-classification'),
    (dict(label=[0, 1, 1, 0], x=[1, 1, 0, 0]), 'multi-label-classification'),
    (dict(label=[0.5, 1., 2., 3.25]), 'regression'),
    (dict(label=[0.5, 1., 2., 3.25], x=[0.1, 0.2, 0.3, 0.4]), 'regression'),
])
def test_the_task_is_inferred_from_the_labels_and_printed_in_one_line(labels, task, capsys):
    df = pd.DataFrame(dict(text=['the film', 'the plot', 'the cast', 'the score'], is_valid=[False, False, False, True],
                           **labels))
    dls = from_df(df, make_objects(), label_col=list(labels))
    assert dls.hf_block.task.name == task
    assert capsys.readouterr().out.count('\n') == 1


@pytest.mark.parametrize('labels', [[0., 1., 1., 0.], ['one answer', 'another one', 'a third', 'and a fourth']*10])
def test_ambiguous_labels_raise_and_list_the_tasks(labels):
    df = pd.DataFrame(dict(text=[f'the film {i}' for i in range(len(labels))], label=labels))
    if len(labels) > 4: df['label'] = [f'{o} {i}' for i,o in enumerate(labels)]
    with pytest.raises(ValueError, match=mentions("label_col='label'", 'task=', *map(repr, all_tasks()))):
        from_df(df, make_objects(), valid_col=None)


@pytest.mark.parametrize(('block', 'get_y', 'task'), [
    (CategoryBlock, ColReader('label'), 'sequence-classification'),
    (MultiCategoryBlock, lambda r: [r['label']], 'multi-label-classification'),
    (RegressionBlock, lambda r: len(r['text'])/10, 'regression'),
])
def test_a_datablock_infers_the_task_from_the_targets(df, hf, block, get_y, task):
    dblock = DataBlock(blocks=(HFTextBlock(*hf), block), get_x=ColReader('text'), get_y=get_y, splitter=ColSplitter())
    assert dblock.dataloaders(df, bs=4).hf_block.task.name == task


def test_an_explicit_task_is_kept(df, hf):
    numbers = df.assign(label=(df.label=='good').astype(int))
    assert from_df(numbers, make_objects(num_labels=1), task='regression').hf_block.task.name == 'regression'


def test_metrics_that_rank_stay_when_a_threshold_is_chosen(df, hf):
    rows = df.assign(label=[[o] for o in df.label])
    dls = HFTextDataLoaders.from_df(rows, hf, task='multi-label-classification', valid_col='is_valid', device='cpu')
    learn = hf_learner(dls, hf.model, metrics=[RocAucMulti(), accuracy_multi, partial(accuracy_multi, sigmoid=True)])
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-2)
        auc = learn.validate()[1]
        dls.hf_block.task.set_threshold(learn, 0.8)
        values = learn.validate()[1:]
        logits,targs = learn.get_preds(act=noop)
    assert list(values) == pytest.approx([auc, *[accuracy_multi(logits, targs, thresh=0.8).item()]*2])


@pytest.mark.parametrize('label', ['z', 7])
def test_an_unknown_label_of_several_is_named(label, df, hf):
    rows = df.assign(label=[[1 if o=='good' else 2] if label==7 else [o] for o in df.label])
    dls = HFTextDataLoaders.from_df(rows, hf, task='multi-label-classification', valid_col='is_valid', device='cpu')
    rows.at[3, 'label'] = [*rows.label[3], label]
    with pytest.raises(ValueError, match=mentions('row 3', repr(label), repr(rows.label[0][0]))):
        dls.test_dl(rows, with_labels=True)


def test_a_column_that_has_some_lists_is_reported(df, hf):
    rows = df.assign(label=[['a', 'b'] if i==1 else o for i,o in enumerate(df.label)])
    with pytest.raises(ValueError, match=mentions('row 1', 'multi-label-classification')):
        HFTextDataLoaders.from_df(rows, hf, valid_col='is_valid')


# ---- pairs

@pytest.mark.parametrize('arch', ['bert', 'roberta', 'gpt2', 't5', 'xlnet'])
def test_a_pair_is_shown_in_two_columns(arch, pairs, capsys):
    hf = make_objects(arch)
    dls = from_df(pairs, hf, text_col=('text', 'other'))
    b = dls.valid.one_batch()
    texts = dls.hf_block.decode(b[0])
    rows = dls.valid.get_idxs()[:len(texts)]
    for (one,two),i in zip(texts, rows, strict=True):
        row = dls.valid_ds.items.iloc[i]
        limit = dls.hf_block.max_length
        truncated = limit is not None and len(hf.tokenizer(row.text, row.other)['input_ids']) > limit
        assert (one.strip(), two.strip()) == (row.text, row.other) or truncated
    dls.show_batch(max_n=2)
    assert 'text_pair' in capsys.readouterr().out
    learn = quiet_fit(hf_learner(dls, hf.model))
    assert set(learn.hf_predict(('the film', 'the plot'))) == {'label', 'index', 'score', 'probs'}


def test_pairs_predict_as_the_pipeline_does(pairs, hf, tmp_path):
    learn = quiet_fit(hf_learner(from_df(pairs, hf, text_col=('text', 'other')), hf.model))
    learn.save_pretrained(tmp_path/'model')
    classify = pipeline('text-classification', model=str(tmp_path/'model'), device='cpu')
    samples = list(zip(pairs.text[:20], pairs.other[:20], strict=True))
    theirs = classify([dict(text=a, text_pair=b) for a,b in samples], truncation=True)
    for a,b in zip(learn.hf_predict(samples), theirs, strict=True):
        assert a['score'] == pytest.approx(b['score'], abs=1e-5)


def test_pairs_come_from_a_dataset_too(pairs, hf):
    ds = datasets.Dataset.from_pandas(pairs)
    dls = HFTextDataLoaders.from_dataset(ds, hf, text_col=('text', 'other'), valid_col='is_valid', bs=8)
    assert dls.train_ds[0][0] == (pairs.text[0], pairs.other[0])


# ---- several labels

def test_several_labels_predict_show_export_and_save(topics, tmp_path, capsys):
    hf = make_objects(num_labels=3, problem_type='multi_label_classification')
    dls = from_df(topics, hf, threshold=0.4)
    learn = quiet_fit(hf_learner(dls, hf.model))
    preds = learn.hf_predict(TEXTS)
    for o in preds: assert o['labels'] == [dls.vocab[i] for i in np.argsort(o['probs'])[::-1] if o['probs'][i] > 0.4]
    assert len(learn.hf_predict(TEXTS[0], threshold=0.)['labels']) == 3
    probs,targs = learn.get_preds()
    assert probs.shape == targs.shape == (40, 3)
    learn.show_results(max_n=2)
    learn.save_pretrained(tmp_path/'model')
    classify = pipeline('text-classification', model=str(tmp_path/'model'), top_k=None, device='cpu')
    for ours,theirs in zip(preds, classify(TEXTS), strict=True):
        assert ours['probs'] == pytest.approx([{o['label']: o['score'] for o in theirs}[v] for v in dls.vocab],
                                              abs=1e-5)
    learn.export(tmp_path/'learn.pkl')
    assert load_learner(tmp_path/'learn.pkl').hf_predict(TEXTS) == preds


def test_a_row_may_have_no_labels(topics):
    df = topics.assign(label=[[] if i%2 else o for i,o in enumerate(topics.label)])
    hf = make_objects(num_labels=3)
    _,y = next(iter(from_df(df, hf).valid.new(sort=False)))
    assert y.sum(1).tolist() == [len(o) for o in df.label[80:88]]


def test_the_chosen_threshold_is_the_learners(topics):
    hf = make_objects(num_labels=3)
    learn = quiet_fit(hf_learner(from_df(topics, hf), hf.model))
    with learn.no_bar(): best = learn.choose_threshold(grid=(0.2, 0.9), plot=False)
    assert best == learn.loss_func.thresh
    assert learn.dls.hf_block.task.threshold == 0.5
    assert all(s > best for s in learn.hf_predict(TEXTS[0])['scores'])


def test_a_loss_of_torch_gets_the_chosen_threshold(topics):
    hf = make_objects(num_labels=3)
    learn = hf_learner(from_df(topics, hf), hf.model, loss_func=nn.BCEWithLogitsLoss())
    with learn.no_bar(): assert learn.choose_threshold(grid=(0.01,), plot=False) == 0.01
    assert [len(o['labels']) for o in learn.hf_predict(TEXTS)] == [3]*len(TEXTS)


def test_a_function_cannot_keep_a_threshold(topics):
    hf = make_objects(num_labels=3)
    learn = hf_learner(from_df(topics, hf), hf.model, loss_func=binary_cross_entropy_with_logits)
    match = mentions('loss_func=binary_cross_entropy_with_logits')
    with pytest.raises(ValueError, match=match): learn.choose_threshold(plot=False)


def two_thresholds(topics):
    "Two learners on the same data and model, the second with its threshold of 0.5 and the first with 0.01"
    hf = make_objects(num_labels=3)
    dls = from_df(topics, hf)
    one,two = hf_learner(dls, hf.model),hf_learner(dls, hf.model)
    with one.no_bar(), two.no_bar():
        before = two.hf_predict(TEXTS),list(two.validate())
        assert one.choose_threshold(grid=(0.01,), plot=False) == 0.01
    return one,two,before


def test_learners_on_the_same_data_have_their_own_thresholds(topics):
    one,two,before = two_thresholds(topics)
    with one.no_bar(), two.no_bar():
        assert (two.hf_predict(TEXTS), list(two.validate())) == before
        assert hf_learner(two.dls, two.model).hf_predict(TEXTS) == before[0]
        assert [len(o['labels']) for o in one.hf_predict(TEXTS)] == [3]*len(TEXTS)
        _,micro,_,accuracy = one.validate()
        share = one.get_preds()[1].mean().item()
    assert accuracy == pytest.approx(share)
    assert micro == pytest.approx(2*share/(1 + share))
    assert min(len(o['labels']) for o in before[0]) < 3


def test_a_saved_model_keeps_the_threshold_of_its_learner(topics, tmp_path):
    one,two,_ = two_thresholds(topics)
    for learn,threshold in ((one, 0.01), (two, 0.5)):
        restored = load_hf_learner(learn.save_pretrained(tmp_path/str(threshold)))
        assert restored.loss_func.thresh == restored.dls.hf_block.task.threshold == threshold
        for a,b in zip(restored.hf_predict(TEXTS), learn.hf_predict(TEXTS), strict=True):
            assert a['labels'] == b['labels']


def test_class_labels_of_a_dataset_keep_names_and_order(topics, hf):
    names = ['plot', 'film', 'cast']
    features = datasets.Features(text=datasets.Value('string'),
                                 label=datasets.Sequence(datasets.ClassLabel(names=names)),
                                 is_valid=datasets.Value('bool'))
    ds = datasets.Dataset.from_dict(topics[['text', 'label', 'is_valid']].to_dict('list'), features=features)
    dls = HFTextDataLoaders.from_dataset(ds, make_objects(num_labels=3), valid_col='is_valid')
    assert dls.hf_block.task.name == 'multi-label-classification'
    assert list(dls.vocab) == names
    labels = [dls.vocab[i] for i in dls.train_ds[0][1].nonzero().flatten()]
    assert labels == [o for o in dls.vocab if o in topics.label[0]]


# ---- numbers

@pytest.mark.parametrize('cols', [['score'], ['score', 'words']])
def test_numbers_predict_show_and_save_without_softmax(scores, cols, tmp_path, capsys):
    hf = make_objects(num_labels=len(cols))
    dls = from_df(scores, hf, label_col=cols)
    learn = quiet_fit(hf_learner(dls, hf.model))
    learn.show_results(max_n=2)
    preds = learn.hf_predict(TEXTS)
    with torch.no_grad(): logits = hf.model.eval()(**hf.tokenizer(TEXTS[0], return_tensors='pt')).logits[0].tolist()
    assert (preds[0].get('scores') or [preds[0]['score']]) == pytest.approx(logits, abs=1e-5)
    learn.save_pretrained(tmp_path/'model')
    theirs = pipeline('text-classification', model=str(tmp_path/'model'), device='cpu', top_k=None)([TEXTS[0]])[0]
    assert {o['label']: o['score'] for o in theirs} == pytest.approx(dict(zip(cols, logits, strict=True)), abs=1e-5)


@pytest.mark.parametrize('cols', [['score'], ['score', 'words']])
def test_the_models_own_loss_is_the_mean_squared_error(scores, cols):
    hf = make_objects(num_labels=len(cols))
    dls = from_df(scores, hf, label_col=cols)
    batch,losses = dls.valid.one_batch(),[]
    for loss_func in (HFLoss(), None):
        learn = hf_learner(dls, hf.model, loss_func=loss_func)
        with learn.no_bar(): losses.append(learn.validate(dl=[batch])[0])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_a_target_that_is_not_a_finite_number_raises(scores):
    hf = make_objects(num_labels=1)
    with pytest.raises(ValueError, match=mentions('score', 'row 7', "'high'", 'regression')):
        from_df(scores.assign(score=['high' if i==7 else o for i,o in enumerate(scores.score)]), hf, task='regression',
                label_col='score')
    with pytest.raises(ValueError, match=mentions('1 of 40', 'validation', 'row 100', 'inf')):
        from_df(scores.assign(score=scores.score.where(scores.index!=100, float('inf'))), hf, label_col='score')
    with pytest.raises(ValueError, match=mentions("label_col='score'", 'row 0', "task='regression'")):
        from_df(scores, hf, task='sequence-classification', label_col='score')


# ---- long texts

def test_windows_cover_every_token(df):
    hf = make_objects()
    block = from_df(df, hf, max_length=16, windows=True, stride=4, pooling='max').hf_block
    inputs = block.encode(df.text[:8].tolist())
    assert inputs['n_windows'].max() > 1
    for i,text in enumerate(df.text[:8]):
        seen = []
        for w in range(inputs['n_windows'][i]):
            ids = [o for o in inputs['input_ids'][i, w].tolist() if o not in hf.tokenizer.all_special_ids]
            seen += ids[4 if w else 0:]
        assert seen == hf.tokenizer(text, add_special_tokens=False)['input_ids']


WORDS = st.lists(st.sampled_from('the film plot warm dull zebra 🎬'.split()), max_size=60).map(' '.join)
HF = make_objects()


@settings(max_examples=25, deadline=None)
@given(texts=st.lists(WORDS, min_size=1, max_size=5), max_length=st.integers(5, 30), stride=st.integers(0, 2),
       pooling=st.sampled_from(['mean', 'max']))
def test_a_prediction_pools_the_windows_of_its_text(texts, max_length, stride, pooling):
    df = pd.DataFrame(dict(text=['a', 'b', 'c', 'd'], label=['x', 'y']*2, is_valid=[False, False, True, True]))
    learn = hf_learner(from_df(df, HF, task='sequence-classification', max_length=max_length, windows=True,
                               stride=stride, pooling=pooling), HF.model)
    with learn.no_bar(): preds = learn.hf_predict(texts, batch_tokens=100)
    for text,pred in zip(texts, preds, strict=True):
        enc = HF.tokenizer(text, truncation=True, max_length=max_length, stride=stride, return_overflowing_tokens=True,
                           padding=True, return_tensors='pt')
        del enc['overflow_to_sample_mapping']
        with torch.no_grad(): logits = HF.model.eval()(**enc).logits
        logits = logits.mean(0) if pooling=='mean' else logits.amax(0)
        assert pred['probs'] == pytest.approx(logits.softmax(-1).tolist(), abs=1e-5)


def test_long_texts_train_and_come_back_in_order(df, capsys):
    hf = make_objects()
    learn = quiet_fit(hf_learner(from_df(df, hf, max_length=12, windows=True, stride=2), hf.model))
    with learn.no_bar():
        probs,targs = learn.get_preds()
        rows,*_ = learn.get_preds(with_input=True)
    assert probs.shape == (40, 2)
    assert probs.tolist() == [pytest.approx(o['probs'], abs=1e-5) for o in learn.hf_predict(df.text[80:].tolist())]
    assert learn.dls.truncation_report().truncated.sum() == 0
    assert learn.dls.hf_block.decode(rows, 1)[0].startswith(df.text[80].split()[0])
    learn.show_results(max_n=2)
    loss = learn.validate()[0]
    learn.loss_func = HFLoss(CrossEntropyLossFlat())
    assert learn.validate()[0] == pytest.approx(loss, abs=1e-5)


def test_invalid_window_options_raise(df, hf):
    with pytest.raises(ValueError, match=mentions('windows=True', 'max_length')):
        from_df(df, make_objects('gpt_neox'), windows=True)
    with pytest.raises(ValueError, match='stride=-1'): from_df(df, hf, windows=True, stride=-1)
    with pytest.raises(ValueError, match=mentions("pooling='median'", "'mean'", "'max'")):
        from_df(df, hf, pooling='median')


# ---- fastai's losses

@pytest.mark.parametrize('loss_func', [
    CrossEntropyLossFlat(weight=torch.tensor([1., 5.])), LabelSmoothingCrossEntropyFlat(eps=0.2),
    FocalLossFlat(gamma=2.)],
    ids=['class weights', 'label smoothing', 'focal'])
def test_a_loss_of_fastai_is_passed_and_used(df, loss_func):
    hf = make_objects()
    dls = from_df(df, hf)
    plain,learn = hf_learner(dls, hf.model),hf_learner(dls, hf.model, loss_func=loss_func)
    with torch.no_grad(): hf.model.classifier.bias.copy_(torch.tensor([0., 3.]))
    with plain.no_bar(), learn.no_bar():
        # unbalanced: each loss has a value of its own
        dl = dls.test_dl(df[df.label.eq('good') | df.index.isin([0, 2])], with_labels=True)
        assert learn.validate(dl=dl)[0] != pytest.approx(plain.validate(dl=dl)[0], abs=1e-2)
        probs = learn.get_preds()[0]
    assert probs.sum(1).tolist() == pytest.approx([1.]*40, abs=1e-5)
    quiet_fit(learn)


# ---- datasets

def test_valid_col_and_splits_do_not_apply_to_a_dataset_dict(df, hf):
    dd = datasets.DatasetDict(train=datasets.Dataset.from_pandas(df), test=datasets.Dataset.from_pandas(df))
    for kwargs,name in ((dict(valid_col='is_valid'), 'valid_col'), (dict(splits=([0], [1])), 'splits')):
        with pytest.raises(ValueError, match=mentions(name, 'train=', 'valid=')):
            HFTextDataLoaders.from_dataset(dd, hf, **kwargs)


def test_the_model_receives_only_its_own_arguments():
    inputs = HFInputs(input_ids=torch.ones(2, 3), sequence_ids=torch.zeros(2, 3), word_ids=torch.zeros(2, 3))
    assert set(inputs.for_model()) == {'input_ids'}


def test_a_table_escapes_html():
    assert '&lt;b&gt;' in SampleTable([dict(text='<b>')])._repr_html_()


def test_a_confusion_matrix_counts_the_labels_of_hf_predict(df, hf):
    learn = hf_learner(from_df(df, hf), hf.model, lr=1e-2)
    quiet_fit(learn)
    valid = df[df.is_valid]
    with learn.no_bar(): interp = ClassificationInterpretation.from_learner(learn)
    preds = [o['label'] for o in learn.hf_predict(valid.text)]
    assert interp.confusion_matrix().tolist() == [[sum(a==x and b==y for a,b in zip(valid.label, preds, strict=True))
                                                   for y in interp.vocab] for x in interp.vocab]


def test_only_single_labels_have_a_confusion_matrix(topics, scores, capsys):
    for data,kwargs,n,fact in ((topics, {}, 3, 'multilabel_confusion_matrix'),
                               (scores, dict(label_col='score', task='regression'), 1, 'regression')):
        hf = make_objects(num_labels=n)
        learn = hf_learner(from_df(data, hf, **kwargs), hf.model)
        with learn.no_bar(): interp = Interpretation.from_learner(learn)
        interp.vocab = ['a']
        for show in (ClassificationInterpretation.confusion_matrix,
                     ClassificationInterpretation.print_classification_report):
            with pytest.raises(ValueError, match=mentions(fact)): show(interp)


def test_interpretation_of_other_learners_is_unchanged():
    class Loader: vocab = ['a', 'b']
    class Model:
        def get_preds(self, **kwargs): return None,torch.tensor([0, 1, 1]),torch.tensor([0, 0, 1])
    interp = ClassificationInterpretation(Model(), Loader(), None)
    interp.vocab = ['a', 'b']
    assert interp.confusion_matrix().tolist() == [[1, 0], [1, 1]]


def test_many_texts_are_predicted_pool_by_pool_in_their_order(learn, df, monkeypatch):
    texts = (df.text.tolist() + ['', 'warm warm'])*3
    whole = learn.hf_predict(texts)
    batches = partial(text_batches, pool=50)
    monkeypatch.setattr('blurlike.predict.text_batches', batches)
    positions = [idxs for idxs,*_ in batches(learn.dls.hf_block, texts, 200)]
    assert sorted(np.concatenate(positions).tolist()) == list(range(len(texts)))
    again = learn.hf_predict(texts, batch_tokens=200)
    assert [o['label'] for o in again] == [o['label'] for o in whole]
    assert [o['score'] for o in again] == pytest.approx([o['score'] for o in whole], abs=1e-5)


def test_a_failed_prediction_leaves_no_tokens_behind(learn, df):
    def fail(*args, **kwargs): raise RuntimeError('no')
    def state(): return {k: id(v) for k,v in vars(learn.dls.hf_block).items()}
    before = state()
    with pytest.raises(RuntimeError, match='no'), patch.object(learn.model, 'forward', fail):
        learn.hf_predict(df.text.tolist())
    assert state() == before


def test_pairs_are_tuples_or_the_dicts_of_a_pipeline(pairs, hf):
    learn = hf_learner(from_df(pairs, hf, text_col=('text', 'other')), hf.model)
    pairs = [('the film', 'the plot'), ('the cast', 'the score')]
    dicts = [dict(text=a, text_pair=b) for a,b in pairs]
    assert learn.hf_predict(dicts) == learn.hf_predict(pairs)
    assert learn.hf_predict(dicts[0]) == learn.hf_predict(pairs[0])
    for o in (dict(text='the film', text_b='the plot'), dict(text_a='the film')):
        for texts in (o, [o]):
            with pytest.raises(ValueError, match=mentions(repr(list(o)[-1]))): learn.hf_predict(texts)


@pytest.mark.parametrize('task', sorted(all_tasks()))
def test_the_loss_of_a_task_gets_no_arguments(task, recwarn):
    loss = get_task(task).loss_func()
    assert loss.reduction == 'mean'
    assert not [o for o in recwarn if 'size_average' in str(o.message)]


@pytest.mark.parametrize('per_label', [False, True])
@pytest.mark.parametrize('weights', [None, torch.tensor([1., 2., 3.])])
def test_the_threshold_is_chosen_among_probabilities(topics, per_label, weights):
    hf = make_objects(num_labels=3)
    losses = BCEWithLogitsLossFlat(pos_weight=weights),nn.BCEWithLogitsLoss(pos_weight=weights)
    learns = [hf_learner(from_df(topics, hf), hf.model, loss_func=o) for o in losses]
    found = []
    for o in learns:
        with o.no_bar(): found.append([o.validate()[0], o.choose_threshold(plot=False, per_label=per_label)])
    (a,one),(b,two) = found
    assert a == pytest.approx(b)
    assert one.equals(two) if per_label else one==two
    assert learns[0].hf_predict(TEXTS) == learns[1].hf_predict(TEXTS)


def test_a_plain_learner_has_the_threshold_of_its_data(topics):
    hf = make_objects(num_labels=3)
    dls,others = from_df(topics, hf, threshold=.3),from_df(topics, hf)
    learn,other = (Learner(o, hf.model, metrics=[], cbs=HFCallback()) for o in (dls, others))
    assert (learn.loss_func.thresh, other.loss_func.thresh) == (.3, .5)
    again = Learner(dls, hf.model, metrics=[], cbs=HFCallback())
    with learn.no_bar(): learn.choose_threshold(grid=[.01], plot=False)
    assert (learn.loss_func.thresh, again.loss_func.thresh) == (.01, .3)


def test_what_a_threshold_is_chosen_from_is_checked(topics):
    hf = make_objects(num_labels=3)
    learn = hf_learner(from_df(topics, hf), hf.model)
    for grid in ([], .5):
        with pytest.raises(ValueError, match=mentions('grid=', grid)): learn.choose_threshold(grid=grid, plot=False)
    with learn.no_bar(), pytest.raises(ValueError, match=mentions('dl', 'with_labels=True')):
        learn.choose_threshold(dl=learn.dls.test_dl(topics), plot=False)


@pytest.mark.parametrize('kind', [tuple, set])
def test_labels_may_be_tuples_and_sets(topics, kind):
    hf = make_objects(num_labels=3)
    rows = topics.assign(label=topics.label.map(kind))
    batches = [next(iter(from_df(o, hf).valid))[1].tolist() for o in (topics, rows)]
    assert batches[0] == batches[1]


@pytest.mark.parametrize('given', [None, .2])
def test_a_saved_threshold_applies_with_data_too(topics, tmp_path, given):
    hf = make_objects(num_labels=3)
    learn = hf_learner(from_df(topics, hf), hf.model)
    with learn.no_bar(): learn.choose_threshold(per_label=True, plot=False)
    with torch.no_grad(): hf.model.classifier.bias += .3
    learn.calibrate()
    learn.save_pretrained(tmp_path/'model')
    more = {} if given is None else dict(threshold=given)
    one,two = load_hf_learner(tmp_path/'model'),load_hf_learner(tmp_path/'model', dls=from_df(topics, hf, **more))
    same = [a['labels']==b['labels'] for a,b in zip(one.hf_predict(TEXTS), two.hf_predict(TEXTS), strict=True)]
    assert [o['probs'] for o in one.hf_predict(TEXTS)] == [o['probs'] for o in two.hf_predict(TEXTS)]
    if given is None: assert two.loss_func.thresh == learn.loss_func.thresh
    assert all(same) or given
