"Each row is predicted by a learner that was not trained on it, in the order of the rows, with one learner at a time."
import gc
import weakref

import numpy as np
import pandas as pd
import pytest
from conftest import make_objects, make_texts, mentions
from fastai.callback.core import Callback
from hypothesis import given, settings
from hypothesis import strategies as st
from test_matrix import frame

from blurlike.all import HFTextDataLoaders, all_tasks, cross_val_preds, hf_learner
from blurlike.train.cross_validation import fold_numbers

ONE,MANY,NUMBERS,WORDS = ('sequence-classification', 'multi-label-classification', 'regression', 'token-classification')


def rows(task, n=24):
    df = make_texts(n)
    df.index = [f'r{(7*i) % n}' for i in range(n)] # neither sorted nor numbers
    if task==MANY: df['label'] = [[o, 'all'] if i%3 else [o] for i,o in enumerate(df.label)]
    if task==NUMBERS: df['label'] = df.text.str.len()/50
    if task==WORDS:
        df['tokens'] = df.text.str.split()
        df['labels'] = [['O' if o=='the' else 'B-THING' for o in words] for words in df.tokens]
    return df


def make_learner(df, task=ONE, **kwargs):
    hf = make_objects(auto_model=all_tasks()[task].auto_model)
    dls = HFTextDataLoaders.from_df(df, hf, task=task, valid_col='is_valid', bs=8, seed=0, device='cpu', **kwargs)
    for k,v in dls.hf_block.task.config_kwargs(dls).items(): setattr(hf.config, k, v)
    learn = hf_learner(dls, dls.hf_block.task.auto_model.from_config(hf.config), lr=1e-2)
    learn.remove_cbs([o for o in learn.cbs if type(o).__name__=='ProgressCallback'])
    return learn


def label_col(task): return 'labels' if task==WORDS else 'label'


# ---- order

@pytest.mark.parametrize('task', [ONE, MANY, NUMBERS, WORDS])
def test_predictions_are_those_of_the_learner_of_the_fold_in_the_order_of_the_rows(task):
    df,seen = rows(task),{}
    def fit(learn):
        learn.fit(1)
        items = learn.dls.valid_ds.items
        if task==WORDS: preds = learn.word_labels()[1]
        else: preds = [o.get('probs', o.get('score')) for o in learn.hf_predict(items.text.tolist())]
        seen.update(zip(items.index, preds, strict=True))
    res = cross_val_preds(df, lambda o: make_learner(o, task), 3, fit, label_col=label_col(task), seed=1)
    assert list(seen) != df.index.tolist()
    if task==WORDS: assert [[res.vocab[i] for i in o.argmax(-1)] for o in res.preds] == [seen[o] for o in df.index]
    else: np.testing.assert_allclose(res.preds, np.array([seen[o] for o in df.index]), atol=1e-5)
    assert res.texts == (df.tokens if task==WORDS else df.text).tolist()
    assert len(res.metrics) == 3
    assert res.label_col == label_col(task)


@pytest.mark.parametrize('task', [ONE, MANY, NUMBERS, WORDS])
def test_targets_are_those_of_the_rows(task):
    df = rows(task)
    res = cross_val_preds(df, lambda o: make_learner(o, task), 2, lambda learn: learn.fit(1), label_col=label_col(task))
    if task==ONE: assert [res.vocab[i] for i in res.targets] == df.label.tolist()
    if task==MANY: assert [{res.vocab[i] for i in np.flatnonzero(o)} for o in res.targets] == df.label.map(set).tolist()
    if task==NUMBERS: np.testing.assert_allclose(res.targets, df.label, rtol=1e-5)
    if task==WORDS: assert [[res.vocab[i] for i in o] for o in res.targets] == df.labels.tolist()


def test_truncated_words_have_no_prediction():
    df,kwargs = rows(WORDS),dict(task=WORDS, windows=False, max_length=6)
    res = cross_val_preds(df, lambda o: make_learner(o, **kwargs), 2, lambda learn: learn.fit(1), label_col='labels')
    assert [len(o) for o in res.preds] == [min(len(o), 4) for o in df.tokens]


def test_probabilities_are_logits_of_no_other_loss():
    def fit(learn):
        learn.fit(1)
        learn.loss_func = lambda pred, targ: pred.mean() + targ.sum()*0 # without an activation
    res = cross_val_preds(rows(ONE), make_learner, 2, fit)
    np.testing.assert_allclose(res.preds.sum(1), 1, atol=1e-5)


def test_predictions_for_other_rows_are_averaged(capsys):
    df,test,each = rows(ONE),make_texts(10, seed=3)[['text']],[]
    def fit(learn):
        learn.fit(1)
        each.append([o['probs'] for o in learn.hf_predict(test.text.tolist())])
    res = cross_val_preds(df, make_learner, 3, fit, test=test, seed=0)
    np.testing.assert_allclose(res.test_preds, np.mean(each, 0), atol=1e-5)
    assert len([o for o in capsys.readouterr().out.splitlines() if o.strip()[:1].isdigit()]) == 3


def test_predictions_of_words_are_averaged():
    df = rows(WORDS)
    res = cross_val_preds(df, lambda o: make_learner(o, WORDS), 2, lambda learn: learn.fit(1), label_col='labels',
                          test=df[['tokens']][:3])
    assert [o.shape for o in res.test_preds] == [(len(o), 2) for o in df.tokens[:3]]


def test_the_data_is_not_changed():
    df = rows(ONE).assign(is_valid='mine')
    before = df.copy()
    cross_val_preds(df, make_learner, 2, lambda learn: learn.fit(1))
    pd.testing.assert_frame_equal(df, before)
    assert df.attrs == {}


# ---- classes

@pytest.mark.parametrize('task', [ONE, MANY, WORDS])
def test_a_class_that_training_rows_lack_is_kept(task, capsys):
    df = rows(task)
    df[label_col(task)] = df[label_col(task)].astype(object)
    rare = {ONE: 'rare', MANY: ['rare', 'good'], WORDS: ['I-RARE']*len(df.tokens.iloc[4]) if task==WORDS else None}
    df.at[df.index[4], label_col(task)] = rare[task]
    vocabs = []
    def make(o):
        vocabs.append(list((learn := make_learner(o, task)).dls.vocab))
        return learn
    res = cross_val_preds(df, make, 3, lambda learn: learn.fit(1), label_col=label_col(task), seed=0)
    assert vocabs == [res.vocab]*3
    assert {'rare', 'I-RARE'} & set(res.vocab)
    if task!=WORDS: assert "'rare'" in capsys.readouterr().out


def test_the_order_of_given_classes_counts():
    res = cross_val_preds(rows(ONE), lambda o: make_learner(o, vocab=['good', 'bad']), 2, lambda learn: learn.fit(1))
    assert res.vocab == ['good', 'bad']
    df = rows(ONE)
    df['label'] = pd.Categorical(df.label, ['none', 'good', 'bad'])
    assert cross_val_preds(df, make_learner, 2, lambda learn: learn.fit(1)).vocab == ['none', 'good', 'bad']


# ---- memory

class Holder(Callback):
    "A callback that refers to its learner, as many do"
    def before_fit(self): self.mine = self.learn


def test_no_learner_of_an_earlier_fold_is_alive():
    refs,alive = [],[]
    def make(df):
        alive.append([o() for o in refs if o() is not None])
        learn = make_learner(df)
        learn.add_cb(Holder())
        refs.extend(map(weakref.ref, (learn, learn.model, learn.dls, learn.dls.train)))
        return learn
    res = cross_val_preds(rows(ONE), make, 3, lambda learn: learn.fit(1), test=['the film'])
    gc.collect()
    assert alive == [[]]*3
    assert not [o for o in refs if o() is not None]
    assert len(res.preds) == 24


# ---- folds

labels = st.lists(st.sampled_from('aab'), min_size=6, max_size=60)


@settings(max_examples=60, deadline=None)
@given(labels, st.integers(2, 5), st.integers(0, 9))
def test_folds_have_equal_shares_of_classes_and_depend_on_the_seed_alone(values, k, seed):
    df = pd.DataFrame(dict(label=values))
    folds = fold_numbers(df, k, seed=seed)
    assert (folds==fold_numbers(df, k, seed=seed)).all()
    assert set(folds) == set(range(k))
    counts = pd.crosstab(folds, df.label).reindex(range(k), fill_value=0)
    if df.label.value_counts().max() >= k: assert (counts.max() - counts.min()).max() <= 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from('ab'), st.integers(0, 7)), min_size=12, max_size=60), st.integers(2, 4))
def test_groups_stay_together(pairs, k):
    df = pd.DataFrame(pairs, columns=['label', 'film'])
    if df.film.nunique() < k:
        with pytest.raises(ValueError, match=mentions('k', k, 'film')): fold_numbers(df, k, groups='film')
        return
    folds = fold_numbers(df, k, groups='film', seed=0)
    assert (pd.Series(folds).groupby(df.film).nunique()==1).all()
    assert set(folds) == set(range(k))


# ---- refused

BAD = dict(df=[dict(df='a.csv')], k=[dict(k=1), dict(k=25), dict(k=2.5)], label_col=[dict(label_col='lable')],
           groups=[dict(groups='film')], make_learner=[dict(make_learner=None)], fit=[dict(fit=3)])


@pytest.mark.parametrize(('name', 'kwargs'), [(k, o) for k,v in BAD.items() for o in v])
def test_arguments(name, kwargs):
    made = []
    args = dict(df=rows(ONE), make_learner=made.append, k=2, fit=None) | kwargs
    with pytest.raises((ValueError, TypeError), match=mentions(name, repr(kwargs[name]))): cross_val_preds(**args)
    assert not made


def test_an_index_with_duplicates_is_refused():
    df = pd.concat([rows(ONE)]*2)
    with pytest.raises(ValueError, match=mentions('df.index', "'r0'")): cross_val_preds(df, make_learner, 2)


def refused(make, *facts, error=ValueError, df=None, fit=lambda learn: learn.fit(1)):
    fits = []
    def counted(learn):
        fits.append(1)
        fit(learn)
    with pytest.raises(error, match=mentions(*facts)):
        cross_val_preds(rows(ONE) if df is None else df, make, 4, counted, seed=0)
    return len(fits)


def test_a_random_split_of_the_right_size_is_refused():
    def make(df):
        hf = make_objects()
        dls = HFTextDataLoaders.from_df(df, hf, valid_pct=.25, bs=8, seed=0, device='cpu')
        return hf_learner(dls, hf.model)
    assert refused(make, 'make_learner', 'valid_col') == 0


def test_training_on_rows_of_the_fold_is_refused():
    def make(df):
        more = df[df.is_valid].assign(is_valid=False)
        return make_learner(pd.concat([df, more]))
    assert refused(make, 'make_learner', 'trains') == 0


def test_the_learner_or_the_model_of_an_earlier_fold_is_refused():
    kept = []
    def same_model(df):
        kept.append(kept[0] if kept else make_objects())
        dls = HFTextDataLoaders.from_df(df, kept[0], valid_col='is_valid', bs=8, device='cpu')
        return hf_learner(dls, kept[0].model)
    assert refused(same_model, 'model', 'earlier fold') == 1


def test_other_classes_are_refused():
    vocabs = iter([['bad', 'good'], ['good', 'bad']])
    assert refused(lambda df: make_learner(df, vocab=next(vocabs)), 'vocab', "'good', 'bad'") == 1


def test_no_learner_or_no_training_is_refused():
    assert refused(lambda df: None, 'make_learner', 'None', error=TypeError) == 0
    refused(make_learner, 'fit=None', fit=lambda learn: None)


@pytest.mark.parametrize('task', ['question-answering', 'masked-lm', 'multiple-choice'])
def test_tasks_without_a_prediction_for_each_row_are_refused(task):
    cols = all_tasks()[task].label_col
    df = frame(task)
    with pytest.raises(ValueError, match=mentions('task', task)):
        cross_val_preds(df, lambda o: make_learner(o, task), 2, label_col=cols or 'text')


def test_unusable_test_rows_are_refused_before_training():
    fits = []
    with pytest.raises(ValueError, match=mentions("'text'")):
        cross_val_preds(rows(ONE), make_learner, 2, fits.append, test=pd.DataFrame(dict(review=['a'])))
    assert not fits
