"CSV files: texts and labels are what the file says, in training, saving, loading and evaluation."
import datetime
import decimal
import enum
import json

import numpy as np
import pandas as pd
import pytest
from conftest import make_objects, make_texts, mentions
from fastai.data.all import CategoryBlock, ColReader, ColSplitter, DataBlock
from hypothesis import given
from hypothesis import strategies as st
from test_load import quiet
from transformers import AutoModelForTokenClassification

from blurlike.all import HFTextBlock, HFTextDataLoaders, hf_learner, load_hf_learner
from blurlike.text.files import parse_targets, read_csv, read_list

ONE,MANY = 'sequence-classification','multi-label-classification'


def rows(labels, n=24):
    df = make_texts(n).assign(label=pd.Series([labels[i % len(labels)] for i in range(n)], dtype=object))
    return df.assign(is_valid=df.index >= n//2)


def csv_of(labels, path, **kwargs):
    rows(labels).to_csv(path, index=False, **kwargs)
    return path


def from_csv(path, n=2, **kwargs):
    return HFTextDataLoaders.from_csv(path, make_objects(num_labels=n),
                                      **dict(task=ONE, valid_col='is_valid', bs=8, device='cpu') | kwargs)


@pytest.mark.parametrize(('labels', 'vocab'), [(['2', '10'], [2, 10]), (['a', '007'], ['007', 'a'])])
def test_targets_are_read_the_same_from_columns_of_objects(labels, vocab, tmp_path):
    "As in pandas 2"
    with pd.option_context('future.infer_string', False):
        assert list(from_csv(csv_of(labels, tmp_path/'a.csv')).vocab) == vocab
        df = read_csv(csv_of(['0.5', '1'], tmp_path/'b.csv'), texts=['text'], targets=['label'], kind='numbers')
        assert df.label.tolist()[:2] == [0.5, 1.]


@pytest.mark.parametrize(('labels', 'vocab'), [
    (['7', '007'], ['007', '7']), (['True', 'False'], ['False', 'True']), (['1.0', '2.0'], ['1.0', '2.0']),
    (['1', '1.0'], ['1', '1.0']), (['2', '10'], [2, 10]), (['1e3', '1000'], ['1000', '1e3']),
    (['a', 'True'], ['True', 'a']), (['2020-01-01', '2021-01-01'], ['2020-01-01', '2021-01-01'])])
def test_labels_of_a_file_are_read_as_they_are_written(labels, vocab, tmp_path):
    dls = from_csv(csv_of(labels, tmp_path/'a.csv'))
    assert [*map(repr, dls.vocab)] == [*map(repr, vocab)]


@given(st.lists(st.text('01.aeTruFls-', min_size=1, max_size=4), min_size=2, max_size=5))
def test_no_two_labels_become_one(cells):
    df = pd.DataFrame(dict(label=pd.Series(cells, dtype='str')))
    parsed = parse_targets(df, ['label'], 'classes').label
    if parsed.map(lambda o: isinstance(o, float)).any(): return # numbers with fractions, which are no classes
    assert [str(o) for o in parsed] == cells


def test_texts_of_a_file_are_texts(tmp_path):
    df = rows(['a', 'b']).assign(text=[str(1900+i) for i in range(24)])
    df.to_csv(tmp_path/'a.csv', index=False)
    assert from_csv(tmp_path/'a.csv').train_ds[0][0] == '1900'


def test_lists_of_a_file_are_lists(tmp_path):
    df = rows(['a', 'b'])
    df.assign(label=df.label.map(lambda o: [o, 'c'])).to_csv(tmp_path/'a.csv', index=False)
    assert from_csv(tmp_path/'a.csv', 3, task=MANY).vocab == ['a', 'b', 'c']


def test_scores_of_a_file_are_numbers(tmp_path):
    dls = from_csv(csv_of(['3.00', '04'], tmp_path/'a.csv'), 1, task='regression')
    assert dls.train_ds[0][1].item() == 3


def test_columns_of_ones_may_be_booleans_or_numbers(tmp_path):
    df = rows(['a', 'b'])
    df = df.assign(a=df.label=='a', b=(df.label=='b')*1.)
    df.to_csv(tmp_path/'a.csv', index=False)
    assert from_csv(tmp_path/'a.csv', label_col=['a', 'b'], task=MANY).train_ds[0][1].tolist() == [1, 0]


def test_types_that_the_user_sets_are_kept(tmp_path):
    path = csv_of(['07', '7'], tmp_path/'a.csv')
    assert from_csv(path, csv_kwargs=dict(dtype=dict(label=int))).vocab == [7]
    assert from_csv(path, csv_kwargs=dict(dtype=str), valid_col=None).vocab == ['07', '7']
    assert from_csv(path, csv_kwargs=dict(converters=dict(label=lambda o: f'n{o}'))).vocab == ['n07', 'n7']


@pytest.mark.parametrize('word', ['None', 'NA', 'null', 'nan'])
@pytest.mark.parametrize('column', ['text', 'label'])
def test_words_that_pandas_takes_for_missing_are_named(word, column, tmp_path):
    df = rows(['a', 'b'])
    df[column] = df[column].astype(object)
    df.loc[[3, 5, 20], column] = word
    df.to_csv(tmp_path/'a.csv', index=False)
    with pytest.raises(ValueError, match=mentions('csv=', 'row 3', repr(word), repr(column), 'keep_default_na')):
        from_csv(tmp_path/'a.csv')
    dls = from_csv(tmp_path/'a.csv', 3, csv_kwargs=dict(keep_default_na=False))
    assert dls.train_ds[3][column=='label'] == (word if column=='text' else list(dls.vocab).index(word))


def test_empty_cells_are_missing(tmp_path):
    with pytest.raises(ValueError, match=mentions("label_col='label'", 'row 1')):
        from_csv(csv_of(['a', None], tmp_path/'a.csv'))


def test_a_file_in_another_encoding_names_the_option(tmp_path):
    path = csv_of(['zoë', 'b'], tmp_path/'a.csv', encoding='latin-1')
    with pytest.raises(ValueError, match=mentions(f"csv='{path}'", 'UTF-8', 'csv_kwargs', 'latin-1')): from_csv(path)
    assert 'zoë' in from_csv(path, csv_kwargs=dict(encoding='latin-1')).vocab


# ---- Other types of labels

class Mood(enum.Enum): A,B = 1,2
class Word(str, enum.Enum): A,B = 'a','b' # noqa: UP042  Python 3.10 has no StrEnum

OTHERS = dict(dates=[datetime.date(2020, 1, 1), datetime.date(2021, 1, 1)],
              times=[*pd.date_range('2020', periods=2)], periods=[pd.Period('2020-01'), pd.Period('2020-02')],
              decimals=[decimal.Decimal('1.5'), decimal.Decimal(2)], bytes=[b'a', b'b'], enums=[*Mood],
              dicts=[dict(a=1), dict(b=1)], mixed=[1, 'a'], same=[1, '1'], booleans=[True, 1, 0],
              intervals=[pd.Interval(0, 1), pd.Interval(1, 2)])


@pytest.mark.parametrize('name', OTHERS)
def test_labels_that_text_does_not_give_back_are_refused(name):
    labels = OTHERS[name]
    with pytest.raises(ValueError, match=mentions("label_col='label'", 'row', 'astype(str)')):
        HFTextDataLoaders.from_df(rows(labels), make_objects(), task=ONE, valid_col='is_valid')
    if name in ('dicts',): return
    df = rows(labels).assign(label=[[labels[i % len(labels)]] for i in range(24)])
    with pytest.raises(ValueError, match=mentions("label_col='label'", 'row', 'astype(str)')):
        HFTextDataLoaders.from_df(df, make_objects(), task=MANY, valid_col='is_valid')


@pytest.mark.parametrize('name', ['dates', 'decimals', 'bytes'])
def test_a_datablock_refuses_them_when_the_model_is_made(name):
    hf = make_objects()
    dblock = DataBlock((HFTextBlock(*hf), CategoryBlock), get_x=ColReader('text'), get_y=ColReader('label'),
                       splitter=ColSplitter())
    with pytest.raises(ValueError, match=mentions(repr(OTHERS[name][0]))):
        hf_learner(dblock.dataloaders(rows(OTHERS[name])), hf.model)


@pytest.mark.parametrize('labels', [[1, 2], [True, False], [1., 2.], ['1', '2'], ['007', '7'],
                                    pd.Categorical(['b', 'a'], ['b', 'a'])])
@pytest.mark.parametrize('task', [ONE, MANY])
def test_labels_come_back_as_they_were(labels, task, tmp_path):
    df,hf = rows(list(labels)),make_objects()
    if task==MANY: df['label'] = [[o] for o in df.label]
    dls = HFTextDataLoaders.from_df(df, hf, task=task, valid_col='is_valid')
    learn = quiet(hf_learner(dls, hf.model))
    again = quiet(load_hf_learner(learn.save_pretrained(tmp_path/'model')))
    options = dict(threshold=0) if task==MANY else {}
    for o in (learn, again):
        pred = o.hf_predict(df.text[0], **options)
        for label in (pred['labels'] if task==MANY else [pred['label']]):
            assert repr(label) in [*map(repr, labels)]
        json.dumps(pred)
    assert again.validate(dl=again.dls.test_dl(df, with_labels=True))[0] > 0


@pytest.mark.parametrize('task', [ONE, MANY])
def test_enums_of_strings_are_strings(task):
    df = rows([*Word])
    if task==MANY: df['label'] = [[o] for o in df.label]
    dls = HFTextDataLoaders.from_df(df, make_objects(), task=task, valid_col='is_valid')
    assert [*map(repr, dls.vocab)] == ["'a'", "'b'"]


def test_numbers_from_numpy_come_back_as_integers():
    hf = make_objects()
    dblock = DataBlock((HFTextBlock(*hf), CategoryBlock), get_x=ColReader('text'), get_y=ColReader('label'),
                       splitter=ColSplitter())
    df = rows([0, 1]).astype(dict(label=np.int64))
    learn = quiet(hf_learner(dblock.dataloaders(df), hf.model))
    assert type(learn.hf_predict('the film')['label']) is int


def test_an_unknown_label_is_shown_as_it_is():
    df = rows([1, 2]).astype(dict(label=int))
    with pytest.raises(ValueError, match=mentions('vocab=', 'row 0', 1, "'1'", "'2'")):
        HFTextDataLoaders.from_df(df, make_objects(), task=ONE, vocab=['1', '2'], valid_col='is_valid')


def test_read_csv_reads_all_columns(tmp_path):
    path = csv_of(['007', '7'], tmp_path/'a.csv')
    df = read_csv(path, ['text'], ['label'])
    assert df.label.tolist()[:2] == ['007', '7']
    assert df.is_valid.dtype == bool


@pytest.mark.parametrize('sep', [';', '\t', '|'])
def test_another_separator_is_named(sep, tmp_path):
    path = csv_of(['a', 'b'], tmp_path/'rows.csv', sep=sep)
    with pytest.raises(ValueError, match=mentions('csv=', path, repr(sep), 'csv_kwargs=')):
        HFTextDataLoaders.from_csv(path, make_objects())
    dls = HFTextDataLoaders.from_csv(path, make_objects(), csv_kwargs=dict(sep=sep), valid_col='is_valid')
    assert list(dls.vocab) == ['a', 'b']


@pytest.mark.parametrize(('cell', 'read'), [
    ("['O' 'B-PER' 'O']", ['O', 'B-PER', 'O']), ("['a' 'b'\n 'c']", ['a', 'b', 'c']), ("['a b' ' c']", ['a b', ' c']),
    ("[\"it's\" 'b']", ["it's", 'b']), ("['a', 'b']", ['a', 'b']), ("['a' 1]", None), ('["a" , "b"]', ['a', 'b'])])
def test_lists_as_numpy_writes_them(cell, read): assert read_list(cell) == read


def test_arrays_that_pandas_wrote_are_read_as_lists(tmp_path):
    words = [np.array('the film warm'.split()), np.array('plot dull'.split())]*4
    tags = [np.array(['O', 'B-X', 'O']), np.array(['B-X', 'O'])]*4
    pd.DataFrame(dict(tokens=words, labels=tags, is_valid=[False]*6 + [True]*2)).to_csv(tmp_path/'a.csv', index=False)
    hf = make_objects(auto_model=AutoModelForTokenClassification, num_labels=2)
    dls = HFTextDataLoaders.from_csv(tmp_path/'a.csv', hf, task='token-classification', valid_col='is_valid')
    assert dls.train_ds.items.tokens.tolist()[:2] == [o.tolist() for o in words[:2]]
    assert list(dls.vocab) == ['O', 'B-X']
