"Wrong labels come first, learners that have seen the labels are refused, and the cleaner writes what was chosen."
import re
import sys

import cleanlab
import ipywidgets
import numpy as np
import pandas as pd
import pytest
from cleanlab.multilabel_classification import get_label_quality_scores as score_several
from conftest import make_objects, make_texts, mentions
from datasets import Dataset
from fastai.data.all import CategoryBlock, ColReader, ColSplitter, DataBlock
from fastai.torch_core import set_seed
from hypothesis import given, settings
from hypothesis import strategies as st

from blurlike.all import HFTextBlock, HFTextCleaner, HFTextDataLoaders, cross_val_preds, find_label_issues, hf_learner
from blurlike.train.cross_validation import CrossValPreds

NAMES = ['a', 'b', 'c']


def index(n): return [f'r{(7*i) % n}' if n % 7 else f'r{i}' for i in range(n)]


def one_label(n=60, flips=(), seed=0, names=NAMES):
    "Out-of-sample probabilities that are right, and labels of which some are wrong"
    rng = np.random.default_rng(seed)
    truth = np.arange(n) % len(names)
    probs = np.eye(len(names))[truth]*.8 + rng.dirichlet(np.ones(len(names)), n)*.2
    given = truth.copy()
    given[list(flips)] = (given[list(flips)] + 1) % len(names)
    df = pd.DataFrame(dict(text=[f'text {i}' for i in range(n)], label=[names[i] for i in given]), index(n))
    return CrossValPreds(df, df.text.tolist(), probs.astype(np.float32), given, names, 'label')


def several_labels(n=60, flips=(), columns=False):
    rng = np.random.default_rng(0)
    truth = rng.random((n, 3)) > .5
    given = truth.copy()
    for i in flips: given[i,i % 3] ^= True
    probs = np.where(truth, .9, .1) + rng.uniform(-.05, .05, (n, 3))
    df = pd.DataFrame(dict(text=[f'text {i}' for i in range(n)]), index(n))
    if columns: df[NAMES] = given.astype(int)
    else: df['label'] = [[NAMES[j] for j in np.flatnonzero(o)] for o in given]
    return CrossValPreds(df, df.text.tolist(), probs.astype(np.float32), given*1., NAMES, NAMES if columns else 'label')


def word_labels(n=40, flips=()):
    rng = np.random.default_rng(0)
    words = [[f'w{j}' for j in range(2 + i % 4)] for i in range(n)]
    truth = [rng.integers(0, 3, len(o)) for o in words]
    given = [o.copy() for o in truth]
    for i,j in flips: given[i][j] = (given[i][j] + 1) % 3
    probs = [np.eye(3)[o]*.8 + rng.dirichlet(np.ones(3), len(o))*.2 for o in truth]
    df = pd.DataFrame(dict(tokens=words, labels=[[NAMES[i] for i in o] for o in given]), index(n))
    return CrossValPreds(df, words, probs, given, NAMES, 'labels')


# ---- tables

@settings(max_examples=30, deadline=None)
@given(st.sets(st.integers(0, 59), min_size=1, max_size=6), st.integers(0, 9))
def test_flipped_labels_come_first(flips, seed):
    res = one_label(flips=flips, seed=seed)
    issues = find_label_issues(res)
    wrong = res.df.index[sorted(flips)]
    assert set(issues.index[:len(flips)]) == set(wrong)
    assert sorted(issues.index) == sorted(res.df.index)
    assert issues.text.tolist() == res.df.text[issues.index].tolist()
    assert issues.label.tolist() == res.df.label[issues.index].tolist()
    assert set(issues.index[issues.is_issue]) <= set(wrong)
    assert (issues.suggested[wrong] != issues.label[wrong]).all()


@pytest.mark.parametrize('rank_by', ['self_confidence', 'normalized_margin', 'confidence_weighted_entropy'])
@pytest.mark.parametrize('filter_by', ['prune_by_noise_rate', 'both', 'low_self_confidence'])
def test_scores_and_flags_are_those_of_cleanlab(rank_by, filter_by):
    res = one_label(flips=[3, 8, 20])
    issues = find_label_issues(res, rank_by=rank_by, filter_by=filter_by).loc[res.df.index]
    probs = res.preds.astype(float)
    np.testing.assert_allclose(issues.score, cleanlab.rank.get_label_quality_scores(res.targets, probs, method=rank_by))
    expected = cleanlab.filter.find_label_issues(res.targets, probs, filter_by=filter_by, n_jobs=1)
    assert issues.is_issue.tolist() == expected.tolist()


@pytest.mark.parametrize('columns', [False, True])
def test_several_labels(columns):
    res = several_labels(flips=[4, 9, 25], columns=columns)
    issues = find_label_issues(res)
    wrong = {res.df.index[i]: NAMES[i % 3] for i in (4, 9, 25)}
    flagged = issues[issues.is_issue]
    assert set(issues.index[:3]) == set(wrong)
    assert len(flagged)
    assert set(flagged.index) <= set(wrong)
    for i,row in flagged.iterrows(): assert set(row.label) ^ set(row.suggested) == {wrong[i]}
    same = issues[~issues.is_issue]
    assert same.label.tolist() == same.suggested.tolist()
    labels = [np.flatnonzero(o).tolist() for o in res.targets]
    np.testing.assert_allclose(issues.score[res.df.index], score_several(labels, res.preds.astype(float)))


def test_a_label_that_no_row_or_every_row_has():
    res = several_labels()
    res.targets[:,0],res.targets[:,1] = 0,1
    assert len(find_label_issues(res)) == 60
    res.targets[:,2] = 0
    with pytest.raises(ValueError, match=mentions('source', '60')): find_label_issues(res)
    res = one_label(names=['a', 'b'])
    res.vocab,res.preds = NAMES,np.c_[res.preds, np.zeros(60)]
    assert len(find_label_issues(res)) == 60


def test_labels_of_words():
    flips = [(3, 1), (7, 4), (20, 0)]
    res = word_labels(flips=flips)
    issues = find_label_issues(res)
    assert len(issues) == sum(map(len, res.texts))
    assert {*zip(issues.index[:3], issues.position[:3], strict=True)} == {(res.df.index[i], j) for i,j in flips}
    assert issues.is_issue[:3].any()
    assert not issues.is_issue[3:].any()
    for row,(i,o) in zip(issues.index, issues.iterrows(), strict=True):
        assert o.word == res.df.tokens[row][o.position]
        assert o.label == res.df.labels[i][o.position]
        assert f'»{o.word}«' in o.text


def test_words_without_a_prediction_are_left_out():
    res = word_labels(flips=[(3, 1)])
    res.targets[3] = np.array([-100, *res.targets[3][1:]])
    res.preds[3][0] = np.nan
    res.targets[5],res.preds[5] = res.targets[5][:0],res.preds[5][:0]
    issues = find_label_issues(res)
    assert (issues.index[0], issues.position.iloc[0]) == (res.df.index[3], 1)
    assert res.df.index[5] not in issues.index
    assert (issues.position[res.df.index[3]] > 0).all()


def test_a_model_that_knows_nothing_is_named(capsys):
    for res in one_label(), word_labels(): find_label_issues(res)
    assert 'agree' not in capsys.readouterr().out
    res = one_label()
    res.preds = res.preds[::-1].copy()
    res.targets = np.r_[0, np.ones(59, dtype=int)]
    find_label_issues(res)
    out = capsys.readouterr().out
    agree = (res.preds.argmax(1)==res.targets).mean()
    for o in f'{agree:.0%}', f'{59/60:.0%}', repr(NAMES[1]): assert o in out
    res.targets = np.arange(60)//30
    guesses = np.r_[res.targets[:33], 1 - res.targets[33:]] # right for a few more than the most common label
    res.preds = np.where(np.eye(3)[guesses] > 0, .9, .05).astype(np.float32)
    find_label_issues(res)
    assert 'agree' in capsys.readouterr().out
    words = word_labels()
    words.preds = [np.roll(o, 1, axis=1) for o in words.preds]
    find_label_issues(words)
    assert 'agree with 0%' in capsys.readouterr().out


def test_pairs_have_both_texts():
    res = one_label()
    res.texts = [(o, f'other {o}') for o in res.texts]
    issues = find_label_issues(res)
    assert (issues.text_pair == 'other ' + issues.text).all()


def test_labels_keep_their_types():
    issues = find_label_issues(one_label(names=[1, 2, 4], flips=[5]))
    assert {*map(type, issues.label), *map(type, issues.suggested)} == {int}


# ---- learners

def df_of(n=80): return make_texts(n).assign(is_valid=lambda df: df.index >= n/2).rename(index=lambda i: f'r{i}')


@pytest.fixture(scope='module')
def trained():
    "A learner, and its data, in which two labels of validation rows are wrong"
    df = df_of()
    for o in ('r50', 'r61'): df.loc[o, 'label'] = dict(good='bad', bad='good')[df.label[o]]
    return fitted(HFTextDataLoaders.from_df(df, make_objects(), valid_col='is_valid', bs=8, seed=0, device='cpu')),df


def fitted(dls, n=6):
    learn = hf_learner(dls, make_objects().model, lr=1e-2)
    learn.remove_cbs([o for o in learn.cbs if type(o).__name__=='ProgressCallback'])
    with learn.no_logging(): learn.fit(n)
    return learn


def test_the_validation_rows_of_a_learner(trained):
    learn,df = trained
    issues = find_label_issues(learn)
    assert set(issues.index) == set(df.index[df.is_valid])
    assert set(issues.index[:2]) == {'r50', 'r61'}
    assert issues.label.tolist() == df.label[issues.index].tolist()


def test_another_loader(trained):
    learn,_ = trained
    new = make_texts(30, seed=5).rename(index=lambda i: f'n{i}')
    new.loc['n4', 'label'] = 'good'
    issues = find_label_issues(learn, dl=learn.dls.test_dl(new, with_labels=True))
    assert issues.index[0] == 'n4'
    assert set(issues.index) == set(new.index)
    with pytest.raises(ValueError, match=mentions('dl', 'with_labels=True')):
        find_label_issues(learn, dl=learn.dls.test_dl(new))


def test_training_rows_are_refused(trained):
    learn,df = trained
    train = df[~df.is_valid]
    loaders = (learn.dls.train, learn.dls.train.new(shuffle=False), learn.dls.test_dl(train, with_labels=True),
               learn.dls.test_dl(df[:60].sample(60, random_state=0), with_labels=True))
    for dl in loaders:
        with pytest.raises(ValueError, match=mentions('dl', '40 of', 'cross_val_preds')): find_label_issues(learn, dl)
        with pytest.raises(ValueError, match=mentions('dl', '40 of')): HFTextCleaner(learn, dl=dl)


def test_rows_of_a_dataset_and_of_a_data_block(trained):
    learn,df = trained
    ds = Dataset.from_pandas(df.reset_index(drop=True))
    issues = find_label_issues(fitted(HFTextDataLoaders.from_dataset(ds, make_objects(), valid_col='is_valid', bs=8,
                                                                     seed=0, device='cpu')))
    assert set(issues.index) == set(range(40, 80))
    assert set(issues.index[:2]) == {50, 61}
    block = DataBlock(blocks=(HFTextBlock(*make_objects()), CategoryBlock), get_x=ColReader('text'),
                      get_y=ColReader('label'), splitter=ColSplitter())
    set_seed(0) # its order of the rows
    assert set(find_label_issues(fitted(block.dataloaders(df, bs=8, device='cpu'))).index[:2]) == {'r50', 'r61'}


def test_folds_of_a_tiny_model_find_flips():
    df = make_texts(90)
    df.loc[[8, 33, 70], 'label'] = df.label[[8, 33, 70]].map(dict(good='bad', bad='good'))
    def make_learner(df):
        hf = make_objects()
        dls = HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', bs=8, seed=0, device='cpu')
        return hf_learner(dls, hf.model)
    res = cross_val_preds(df, make_learner, 2, lambda learn: learn.fit_one_cycle(8, 5e-3), seed=0)
    issues = find_label_issues(res)
    assert set(issues.index[:3]) == {8, 33, 70}
    assert issues.suggested[[8, 33, 70]].tolist() == make_texts(90).label[[8, 33, 70]].tolist()


# ---- refused

def test_arguments():
    res = one_label()
    for name,value in dict(rank_by='margin', filter_by='all').items():
        with pytest.raises(ValueError, match=mentions(name, repr(value))): find_label_issues(res, **{name: value})
    with pytest.raises(ValueError, match=mentions('dl')): find_label_issues(res, dl=[1])
    with pytest.raises(TypeError, match=mentions('source')): find_label_issues(res.df)
    for name,value in dict(n=0, page_size=0, trunc_at='all').items():
        with pytest.raises(ValueError, match=mentions(name, repr(value))): HFTextCleaner(res, **{name: value})


def test_numbers_and_a_single_class_are_refused():
    res = one_label()
    with pytest.raises(ValueError, match=mentions('source', 'numbers')):
        find_label_issues(CrossValPreds(res.df, res.texts, res.preds[:,0], res.preds[:,0]))
    res.targets = res.targets*0
    with pytest.raises(ValueError, match=mentions('source', "'a'", '60')): find_label_issues(res)


@pytest.mark.parametrize('package', ['cleanlab', 'ipywidgets'])
def test_a_missing_package_is_named(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=mentions(package, 'blurlike[clean]')): HFTextCleaner(one_label())


# ---- the cleaner

def test_pages():
    cleaner = HFTextCleaner(one_label(), n=25, page_size=10)
    assert (cleaner.page.value, cleaner.page.max, len(cleaner.body.children)) == (1, 3, 10)
    cleaner.row(0).action.value = 'Delete'
    cleaner.row(24).action.value = 'Relabel' # on a page that was not shown
    cleaner.page.value = 3
    assert [o.children[1].children[0].value for o in cleaner.body.children] == ['Keep']*4 + ['Relabel']
    assert re.search(mentions('25 of 60', '1 to relabel', '1 to delete'), repr(cleaner))
    cleaner.page.value = 1
    assert cleaner.row(0).action.value == 'Delete'
    assert cleaner.body.children[0] is cleaner.row(0).widget
    assert isinstance(cleaner.widget, ipywidgets.VBox)


def test_rows_that_cleanlab_counts_as_wrong_are_shown():
    res = one_label(flips=[3, 30])
    assert HFTextCleaner(res).table.row.tolist() == find_label_issues(res).query('is_issue').index.map(
        list(res.df.index).index).tolist()
    cleaner = HFTextCleaner(one_label())
    assert (len(cleaner.table), len(cleaner.body.children), cleaner.page.max) == (0, 0, 1)
    pd.testing.assert_frame_equal(cleaner.to_df(), one_label().df)


def test_keep_relabel_and_delete():
    res = one_label(flips=[3, 10, 30])
    before,cleaner = res.df.copy(),HFTextCleaner(res)
    by_row = {res.df.index[row]: cleaner.row(i) for i,row in cleaner.table.row.items()}
    kept,relabeled,gone = res.df.index[[3, 10, 30]]
    assert {o.action.value for o in by_row.values()} == {'Keep'}
    by_row[relabeled].label.value = 'a'
    assert by_row[relabeled].action.value == 'Relabel' # a new label is meant to be used
    by_row[gone].action.value = 'Delete'
    assert (cleaner.delete(), cleaner.change()) == ([gone], [(relabeled, 'a')])
    clean = cleaner.to_df()
    assert clean.index.tolist() == [o for o in res.df.index if o!=gone]
    assert (clean.label[relabeled], clean.label[kept]) == ('a', before.label[kept])
    assert (clean.label!=before.label[clean.index]).sum() == 1
    pd.testing.assert_frame_equal(res.df, before)
    by_row[relabeled].action.value = 'Keep'
    pd.testing.assert_frame_equal(cleaner.to_df(), before.drop(gone))


def test_relabel_takes_the_suggestion():
    res = one_label(flips=[10])
    cleaner = HFTextCleaner(res)
    cleaner.row(0).action.value = 'Relabel'
    assert cleaner.to_df().label.tolist() == one_label().df.label.tolist()


@pytest.mark.parametrize('dtype', ['category', 'object', 'string'])
def test_the_type_of_the_column_is_kept(dtype):
    res = one_label(flips=[10])
    res.df['label'] = res.df.label.astype(dtype)
    cleaner = HFTextCleaner(res)
    cleaner.row(0).action.value = 'Relabel'
    clean = cleaner.to_df()
    assert clean.label.dtype == res.df.label.dtype
    assert clean.label.tolist() == one_label().df.label.tolist()


@pytest.mark.parametrize('columns', [False, True])
def test_several_labels_are_written_in_their_form(columns):
    res,right = several_labels(flips=[4], columns=columns),several_labels(columns=columns).df
    cleaner = HFTextCleaner(res)
    cleaner.row(0).action.value = 'Relabel'
    pd.testing.assert_frame_equal(cleaner.to_df(), right)
    cleaner.row(0).label.value = ()
    row = cleaner.to_df().loc[res.df.index[4]]
    assert (row[NAMES].tolist() if columns else row.label) == ([0, 0, 0] if columns else [])


def test_labels_of_words_are_written_into_their_lists():
    res,right = word_labels(flips=[(3, 1), (3, 2), (7, 0)]),word_labels().df
    cleaner = HFTextCleaner(res, n=3)
    for i in cleaner.table.index: cleaner.row(i).action.value = 'Relabel'
    assert sorted(o[:2] for o in cleaner.change()) == sorted([(res.df.index[i], j) for i,j in [(3, 1), (3, 2), (7, 0)]])
    pd.testing.assert_frame_equal(cleaner.to_df(), right)
    cleaner.row(0).action.value = 'Delete'
    assert len(cleaner.delete()) == 1
    assert len(cleaner.to_df()) == 39


def test_html_of_texts_is_escaped():
    res = one_label()
    res.texts = ['<script>x</script>']*60
    html = HFTextCleaner(res, n=1).body.children[0].children[0].value
    assert '<script>' not in html
    assert '&lt;script&gt;' in html


def test_a_learner(trained):
    learn,df = trained
    cleaner = HFTextCleaner(learn, n=2)
    for i in cleaner.table.index: cleaner.row(i).action.value = 'Relabel'
    assert cleaner.to_df().label.tolist() == df_of().label[40:].tolist()


def test_labels_without_a_column_are_not_written():
    res = one_label(flips=[3])
    res.label_col = None
    cleaner = HFTextCleaner(res)
    cleaner.row(0).action.value = 'Relabel'
    assert len(cleaner.change()) == 1
    with pytest.raises(ValueError, match=mentions('source', 'column')): cleaner.to_df()


def test_columns_may_have_numbers_as_names():
    res = one_label(flips=[3])
    res.df = res.df.rename(columns=dict(text=0, label=1))
    res.label_col = '1' # as the data names it
    cleaner = HFTextCleaner(res)
    cleaner.row(0).action.value = 'Relabel'
    assert (cleaner.to_df()[1] != res.df[1]).sum() == 1
