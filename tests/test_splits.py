"Training and validation rows: every class is trained on, and what is not used does not matter."
import json

import pandas as pd
import pytest
from conftest import make_objects, make_texts, mentions
from datasets import ClassLabel, Dataset, DatasetDict, Value
from hypothesis import given
from hypothesis import strategies as st

from blurlike.all import HFTextDataLoaders, hf_learner, load_hf_learner
from blurlike.data.dataloaders import _moved

ONE,MANY = 'sequence-classification','multi-label-classification'


def rare(task=ONE, n=40):
    "Rows of two common classes and of three with one row each"
    df = make_texts(n)
    df['label'] = [*df.label[:-3], 'x', 'y', 'z']
    if task==MANY: df['label'] = [[o, 'all'] for o in df.label]
    return df


def vocab_of(task): return sorted({'bad', 'good', 'x', 'y', 'z', *(['all'] if task==MANY else [])})


@pytest.mark.parametrize('seed', range(6))
@pytest.mark.parametrize('task', [ONE, MANY])
def test_a_random_split_trains_on_every_class(task, seed, capsys):
    df,hf = rare(task),make_objects()
    kwargs = dict(task=task, valid_pct=0.5, seed=seed, device='cpu')
    made = [HFTextDataLoaders.from_df(df, hf, **kwargs),
            HFTextDataLoaders.from_dataset(Dataset.from_pandas(df), hf, **kwargs)]
    for dls in made:
        assert list(dls.vocab) == vocab_of(task)
        assert len(dls.train_ds) + len(dls.valid_ds) == len(df)
    moved = min(len(o.valid_ds) for o in made) < 20
    assert moved == ('validation rows to training' in capsys.readouterr().out)


def test_a_folder_trains_on_every_class(tmp_path):
    for i,o in enumerate(rare().itertuples()):
        (tmp_path/o.label).mkdir(exist_ok=True)
        (tmp_path/o.label/f'{i}.txt').write_text(o.text)
    for seed in range(4):
        dls = HFTextDataLoaders.from_folder(tmp_path, make_objects(), valid_pct=0.5, seed=seed)
        assert list(dls.vocab) == vocab_of(ONE)


@pytest.mark.parametrize('task', [ONE, MANY])
def test_a_given_split_names_the_classes_to_pass(task):
    df,hf = rare(task),make_objects()
    df['is_valid'] = df.index >= 20
    vocab = vocab_of(task)
    for kwargs in (dict(valid_col='is_valid'), dict(splits=(range(20), range(20, 40)))):
        with pytest.raises(ValueError, match=mentions('3 of 20', 'row 37', "'x'", f'vocab={vocab}')):
            HFTextDataLoaders.from_df(df, hf, task=task, **kwargs)
        assert HFTextDataLoaders.from_df(df, hf, task=task, vocab=vocab, **kwargs).vocab == vocab
    ds = Dataset.from_pandas(df)
    halves = DatasetDict(train=ds.select(range(20)), test=ds.select(range(20, 40)))
    with pytest.raises(ValueError, match=mentions('3 of 20', f'vocab={vocab}')):
        HFTextDataLoaders.from_dataset(halves, hf, task=task)


def test_rows_that_all_have_a_class_of_their_own_are_refused():
    df = make_texts(10).assign(label=[str(i) for i in range(10)])
    with pytest.raises(ValueError, match=mentions('2 validation rows', 'vocab=')):
        HFTextDataLoaders.from_df(df, make_objects(), task=ONE)


@given(st.lists(st.sampled_from('abcdef'), min_size=1, max_size=30), st.randoms())
def test_moving_keeps_all_rows_and_moves_only_what_is_needed(labels, rng):
    rows = rng.sample(range(len(labels)), len(labels))
    cut = rng.randint(0, len(rows))
    train,valid = _moved((rows[:cut], rows[cut:]), [{o} for o in labels])
    assert sorted([*train, *valid]) == list(range(len(labels)))
    assert {labels[i] for i in train} == set(labels)
    assert len(train) - cut == len(set(labels) - {labels[i] for i in rows[:cut]})


def test_classes_that_differ_in_case_or_spaces_are_worth_a_line(capsys):
    df = make_texts(40)
    df.loc[::5, 'label'] = df.label[::5] + ' '
    HFTextDataLoaders.from_df(df, make_objects(), task=ONE)
    assert "'bad', 'bad '" in capsys.readouterr().out


@pytest.mark.parametrize('named', [dict(valid_col='is_valid', valid_pct=0.3), dict(valid_pct=0.3, splits=([0], [1])),
                                   dict(valid_col='is_valid', splits=([0], [1]))])
def test_a_split_is_chosen_in_one_way(named, df):
    with pytest.raises(ValueError, match=mentions(*(f'{k}={v!r}' for k,v in named.items()))):
        HFTextDataLoaders.from_df(df, make_objects(), **named)
    with pytest.raises(ValueError, match=mentions(*(f'{k}={v!r}' for k,v in named.items()))):
        HFTextDataLoaders.from_dataset(Dataset.from_pandas(df), make_objects(), **named)


def test_a_folder_for_validation_that_does_not_exist_is_named(tmp_path):
    for split in ('train', 'test'):
        for i,o in enumerate(make_texts(8).itertuples()):
            (tmp_path/split/o.label).mkdir(parents=True, exist_ok=True)
            (tmp_path/split/o.label/f'{i}.txt').write_text(o.text)
    with pytest.raises(ValueError, match=mentions("valid='valid'", "'test'", 'valid_pct=')):
        HFTextDataLoaders.from_folder(tmp_path, make_objects())
    assert len(HFTextDataLoaders.from_folder(tmp_path, make_objects(), valid='test').train_ds) == 8
    assert len(HFTextDataLoaders.from_folder(tmp_path, make_objects(), valid_pct=0.25).train_ds) == 12


def test_a_split_that_would_be_ignored_is_refused():
    ds = Dataset.from_pandas(make_texts(40))
    both = DatasetDict(train=ds, dev=ds)
    with pytest.raises(ValueError, match=mentions("valid='test'", 'Dataset')):
        HFTextDataLoaders.from_dataset(ds, make_objects(), valid='test')
    with pytest.raises(ValueError, match=mentions("valid='dev'", 'valid_pct=0.1')):
        HFTextDataLoaders.from_dataset(both, make_objects(), valid='dev', valid_pct=0.1)


def test_a_random_transform_of_a_dataset_draws_again_in_each_epoch():
    ds,n = dataset(),iter(range(10_000))
    ds.set_transform(lambda o: o | dict(text=[' '.join('abcdefghij'[int(c)] for c in str(next(n))) for _ in o['text']]))
    dls = loaders(ds, valid_pct=0.25)
    first,second = ([t for x,_ in dls.train for t in dls.hf_block.decode(x)] for _ in range(2))
    assert not set(first) & set(second)


# ---- All rows

@pytest.mark.parametrize('named', [dict(valid_pct=0), dict(splits=(range(40), []))])
@pytest.mark.parametrize('task', [ONE, MANY])
def test_training_on_all_rows(task, named, tmp_path):
    df,hf = rare(task),make_objects(num_labels=len(vocab_of(task)))
    kwargs = dict(task=task, device='cpu', bs=8) | named
    for dls in (HFTextDataLoaders.from_df(df, hf, **kwargs),
                HFTextDataLoaders.from_dataset(Dataset.from_pandas(df), hf, **kwargs)):
        assert [len(dls.train_ds), len(dls.valid_ds), list(dls.vocab)] == [40, 0, vocab_of(task)]
        learn = hf_learner(dls, hf.model)
        with learn.no_bar(), learn.no_logging(): learn.fine_tune(1, 1e-3)
        assert learn.recorder.values[-1][1] is None # no validation loss
        learn.save_pretrained(tmp_path/'model')
        preds = [o.hf_predict(df.text[0])['probs'] for o in (learn, load_hf_learner(tmp_path/'model'))]
        assert preds[0] == pytest.approx(preds[1])
        with pytest.raises(ValueError, match=mentions('dl=None')): learn.calibrate()


def test_a_folder_trains_on_all_files(tmp_path):
    for i,o in enumerate(rare().itertuples()):
        (tmp_path/o.label).mkdir(exist_ok=True)
        (tmp_path/o.label/f'{i}.txt').write_text(o.text)
    dls = HFTextDataLoaders.from_folder(tmp_path, make_objects(), valid_pct=0)
    assert [len(dls.train_ds), len(dls.valid_ds), list(dls.vocab)] == [40, 0, vocab_of(ONE)]


# ---- Datasets

def dataset(): return Dataset.from_pandas(make_texts(40).assign(other=1), preserve_index=False)

def loaders(ds, **kwargs):
    return HFTextDataLoaders.from_dataset(ds, make_objects(), **dict(task=ONE, device='cpu', bs=8) | kwargs)

def others(ds):
    "Splits like `ds` in the columns that are used"
    return dict(types=ds.remove_columns('other').add_column('other', ['a']*40), fewer=ds.remove_columns('other'),
                more=ds.add_column('more', [[1]]*40), large=ds.cast_column('text', Value('large_string')),
                small=ds.cast_column('text', Value('string')).cast_column('label', Value('string')))


def same(a, b):
    for x,y in zip(a.valid, b.valid, strict=True): assert repr(x) == repr(y)


@pytest.mark.parametrize('name', others(dataset()))
def test_columns_that_are_not_used_do_not_matter(name):
    ds = dataset()
    other = others(ds)[name]
    expected = loaders(DatasetDict(train=ds, test=ds))
    for splits in (dict(train=ds, test=other), dict(train=other, test=ds)):
        same(loaders(splits), expected)
        stream = splits['train'].to_iterable_dataset()
        same(loaders(dict(train=stream, test=splits['test']), n=40), expected)
        mapped = stream.map(lambda o: dict(o, new=len(o['text'])))
        assert mapped.features is None
        same(loaders(dict(train=mapped, test=splits['test']), n=40), expected)


@pytest.mark.parametrize('form', [dict(type='pandas'), dict(type='arrow'), dict(type='numpy'), dict(type='torch'),
                                  dict(type=None, columns=['text']), dict(type='pandas', columns=['other'])])
def test_formats_do_not_matter(form):
    ds,shown = dataset(),dataset().with_format(**form)
    expected = loaders(DatasetDict(train=ds, test=ds))
    same(loaders(DatasetDict(train=shown, test=shown)), expected)
    same(loaders(shown, seed=1), loaders(ds, seed=1))
    same(loaders(shown.add_column('v', [i%3==0 for i in range(40)]), valid_col='v'),
         loaders(ds.add_column('v', [i%3==0 for i in range(40)]), valid_col='v'))
    new = expected.test_dl(shown, with_labels=True)
    for x,y in zip(new, expected.test_dl(ds, with_labels=True), strict=True): assert repr(x) == repr(y)


def test_class_names_and_formats():
    ds = dataset().class_encode_column('label')
    for form in ('pandas', 'arrow', None): assert loaders(ds.with_format(form)).vocab == ['bad', 'good']


def test_a_function_that_formats_rows_is_kept():
    ds = dataset().with_transform(lambda o: o | dict(text=[t.upper() for t in o['text']]))
    assert loaders(ds).train_ds[0][0].isupper()


def test_splits_with_other_class_names_are_refused():
    ds = Dataset.from_dict(dict(text=list('abcd'), label=[0, 1, 0, 1]))
    named = [ds.cast_column('label', ClassLabel(names=o)) for o in (['p', 'q'], ['q', 'p'])]
    with pytest.raises(ValueError, match=mentions("'label'", "'p', 'q'", "'q', 'p'")):
        loaders(DatasetDict(train=named[0], test=named[1]))
    assert loaders(DatasetDict(train=named[0], test=ds)).vocab == ['p', 'q']


def test_a_validation_split_without_the_columns_is_refused():
    ds = dataset()
    with pytest.raises(ValueError, match=mentions("label_col='label'", "'text'", "'other'")):
        loaders(DatasetDict(train=ds, test=ds.remove_columns('label')))


def test_rows_of_a_stream_with_changing_columns():
    rows = [o | dict(extra=i if i%2 else str(i)) for i,o in enumerate(make_texts(40).to_dict('records'))]
    def read(): yield from map(json.loads, map(json.dumps, rows))
    from datasets import IterableDataset
    stream = IterableDataset.from_generator(read)
    assert loaders(dict(train=stream, test=stream), n=40).vocab == ['bad', 'good']


def test_a_frame_and_its_dataset_give_the_same_rows():
    df = pd.DataFrame(dict(text=['a', 'b', 'c', 'd'], label=['x', 'y']*2))
    a = HFTextDataLoaders.from_df(df, make_objects(), task=ONE, splits=([0, 1], [2, 3]), device='cpu')
    same(a, loaders(Dataset.from_pandas(df), splits=([0, 1], [2, 3])))
