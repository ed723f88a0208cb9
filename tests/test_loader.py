"Every epoch has every row exactly once, in batches of similar length, for any batch size, seed and number of workers."
import pickle
import random
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_objects, make_texts, mentions
from datasets import ClassLabel, Dataset, DatasetDict
from fastai.data.all import (
    CategoryBlock,
    ColReader,
    ColSplitter,
    DataBlock,
    EndSplitter,
    IndexSplitter,
    ItemTransform,
    L,
    RandomSplitter,
    RegressionBlock,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import blurlike.data.loader
from blurlike.all import (
    HFInputs,
    HFTextBlock,
    HFTextDataLoaders,
    hf_learner,
    load_hf_learner,
    padding_share,
)
from blurlike.text.batching import bucketed_order, cut_batches, token_batches
from blurlike.text.lengths import text_columns
from blurlike.text.rows import StreamSamples
from blurlike.text.tokens import RowTemplate, tokenize

lengths = st.lists(st.integers(0, 300), max_size=400).map(np.array)


def rows(dl): return [x['input_ids'].tolist() for x,_ in dl]


@given(lengths, st.integers(1, 40), st.integers(1, 60), st.integers(0, 2**32-1))
def test_bucketing_orders_every_row_exactly_once(lengths, bs, pool, seed):
    order = bucketed_order(lengths, bs, np.random.default_rng(seed), pool)
    assert sorted(order) == list(range(len(lengths)))


@given(lengths, st.integers(1, 40), st.integers(0, 2**32-1))
def test_the_longest_row_is_in_the_first_batch(lengths, bs, seed):
    order = bucketed_order(lengths, bs, np.random.default_rng(seed))
    if len(lengths): assert lengths[order[:bs]].max() == lengths.max()


def test_a_pool_of_one_leaves_batches_to_chance(df, hf):
    def spread(**kwargs):
        dls = [HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', bs=8, seed=s, **kwargs) for s in range(8)]
        return sum(o.one_batch()[0]['attention_mask'].sum(1).float().std() for o in dls)
    assert spread() < spread(pool=1)/2


def test_the_rows_of_the_partial_batch_are_not_always_the_shortest():
    rng,last = np.random.default_rng(0),set()
    for _ in range(200): last |= set(bucketed_order(np.arange(35), 8, rng)[-3:].tolist())
    assert last == set(range(3)) | {i for b in range(1, 4) for i in range(34-8*b-2, 34-8*b+1)}


@given(st.integers(1, 40), st.integers(0, 2**32-1))
def test_bucketing_pads_less_than_chance(bs, seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 200, size=40*bs)
    def padding(order):
        return 1 - lengths.sum()/sum(lengths[o].max()*len(o) for o in np.split(order, range(bs, len(order), bs)))
    bucketed = padding(bucketed_order(lengths, bs, rng))
    assert bucketed <= 0.12
    assert bucketed <= padding(rng.permutation(len(lengths)))


@given(lengths, st.integers(1, 2000), st.booleans())
def test_token_batches_hold_every_text_once_within_the_budget(lengths, batch_tokens, equal):
    batches = token_batches(lengths, batch_tokens, equal)
    assert sorted(i for b in batches for i in b) == list(range(len(lengths)))
    for b in batches: assert len(b)==1 or len(b)*max(1, lengths[b].max()) <= batch_tokens
    if equal: assert all(len(set(lengths[b])) == 1 for b in batches)


@settings(max_examples=10, deadline=None)
@given(n=st.integers(2, 60), bs=st.integers(1, 25), seed=st.integers(0, 1000))
def test_an_epoch_shows_every_row_exactly_once(n, bs, seed):
    df = make_texts(n+1, seed).assign(is_valid=[i==n for i in range(n+1)])
    df.loc[n, 'label'] = 'bad'
    hf = make_objects()
    dls = HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', bs=bs, seed=seed, device='cpu')
    seen = sorted(t for x,_ in dls.train for t in dls.hf_block.decode(x))
    assert seen == sorted(df.text[:n])
    assert sum(1 for _ in dls.train) == len(dls.train)


def test_the_same_seed_gives_the_same_epochs_and_another_seed_others(df, hf):
    def epochs(seed):
        return [rows(dl) for dl in [HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', bs=8, seed=seed).train]*2]
    assert epochs(3) == epochs(3)
    assert epochs(3)[0] != epochs(3)[1]
    assert epochs(3) != epochs(4)


@pytest.mark.parametrize('num_workers', [1, 2])
def test_workers_give_the_same_batches_without_a_warning(num_workers, df, hf, capfd, recwarn):
    one, many = (HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', bs=8, seed=3, num_workers=n)
                 for n in (0, num_workers))
    assert rows(one.train) == rows(many.train)
    assert rows(one.valid) == rows(many.valid)
    assert 'fork' not in capfd.readouterr().err
    # Python's own, from 3.12 on
    assert not [w for w in recwarn if 'fork' in str(w.message) and w.category is not DeprecationWarning]


def test_a_loader_survives_pickling(dls):
    copy = pickle.loads(pickle.dumps(dls))
    assert rows(copy.valid) == rows(dls.valid)
    assert copy.truncation_report().equals(dls.truncation_report())


def test_new_keeps_what_is_not_changed(dls, monkeypatch):
    monkeypatch.setattr(type(dls.train), '_tokenize_all', lambda self: pytest.fail('rows were read again'))
    smaller = dls.train.new(bs=3)
    assert (smaller.bs, smaller.seed, smaller.hf_block) == (3, dls.train.seed, dls.hf_block)


def test_the_last_partial_batch_is_kept_unless_dropped(df, hf):
    def sizes(**kwargs):
        return [len(y) for _,y in HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', bs=33, **kwargs).train]
    assert sizes() == [33, 33, 14]
    assert sizes(drop_last=True) == [33, 33]


def test_one_batch_is_a_dict_of_tensors_that_the_model_takes(dls, hf):
    xb,yb = dls.one_batch()
    assert isinstance(xb, dict)
    assert set(xb) == {'input_ids', 'attention_mask', 'token_type_ids'}
    assert all(v.device == torch.device(dls.device) and v.shape == xb['input_ids'].shape for v in xb.values())
    assert hf.model(**xb, labels=yb.as_subclass(torch.Tensor)).loss.ndim == 0


def test_fixed_padding_gives_every_batch_the_same_shape(df, hf):
    dls = HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', bs=8, padding='max_length', max_length=24)
    assert {x['input_ids'].shape[1] for dl in dls.loaders for x,_ in dl} == {24}


def test_predictions_come_in_the_callers_order(learn, df):
    preds,targs = learn.get_preds()
    expected = [learn.dls.vocab.o2i[o] for o in df.label[80:]]
    assert targs.tolist() == expected
    dl = learn.dls.test_dl(df.text[80:].tolist())
    assert torch.allclose(learn.get_preds(dl=dl)[0], preds, atol=1e-6)
    probs = torch.tensor([o['probs'] for o in learn.hf_predict(df.text[80:].tolist())])
    assert torch.allclose(probs, preds, atol=1e-5)


def test_a_bucketed_epoch_is_nearly_free_of_padding(df, hf):
    dls = HFTextDataLoaders.from_df(make_texts(2000), hf, bs=16)
    assert padding_share(dls.train) < 0.04 < padding_share(dls.train.new(shuffle=False, sort=False))


def test_truncation_is_counted(df, hf):
    dls = HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', max_length=10)
    lengths = np.array([len(o) for o in hf.tokenizer(df.text.tolist())['input_ids']])
    for name,part in (('train', lengths[:80]), ('valid', lengths[80:])):
        row = dls.truncation_report().loc[name]
        assert row['truncated'] == (part > 10).sum()
        assert row['tokens_lost'] == (part - 10).clip(0).sum()
    untouched = HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', truncation=False).truncation_report()
    assert untouched['truncated'].sum() == 0


@pytest.mark.parametrize('truncation', [True, 'longest_first', 'only_first', 'only_second'])
def test_pairs_are_truncated_as_by_the_tokenizer(truncation, hf):
    pair = ('the film warm the film warm', 'the plot dull the plot dull')
    block = HFTextBlock(*hf, max_length=12, truncation=truncation)
    expected = hf.tokenizer(*pair, truncation=truncation, max_length=12)
    assert block.encode([pair])['input_ids'][0].tolist() == expected['input_ids']
    assert block.encode([pair])['token_type_ids'][0].tolist() == expected['token_type_ids']


def test_lists_of_words_are_encoded_as_words(hf):
    block = HFTextBlock(*hf, is_split_into_words=True)
    words = [['the', 'film'], ['the', 'plot', 'dull']]
    expected = hf.tokenizer(words, is_split_into_words=True, padding=True)['input_ids']
    assert block.encode(words)['input_ids'].tolist() == expected
    assert block.token_lengths(words).tolist() == [4, 5]


def test_other_tokenizer_options_reach_the_tokenizer(hf):
    block = HFTextBlock(*hf, tok_kwargs={'add_special_tokens': False})
    assert block.encode(['the film'])['input_ids'].tolist() == [hf.tokenizer.convert_tokens_to_ids(['the', 'film'])]
    assert block.token_lengths(['the film']).tolist() == [2]


def test_a_datablock_is_summarized(df, hf, capsys):
    dblock = DataBlock(blocks=(HFTextBlock(*hf), CategoryBlock), get_x=ColReader('text'), get_y=ColReader('label'),
                       splitter=ColSplitter())
    dblock.summary(df)
    assert 'Collating items in a batch' in capsys.readouterr().out


@pytest.mark.parametrize('getter', [ColReader('text'), lambda r: r['text'], lambda r: r.text,
                                    lambda r: r.to_dict()['text'], lambda r: r.iloc[0],
                                    lambda r: dict(r)['text']],
                                    ids=['ColReader', 'item', 'attribute', 'to_dict', 'iloc', 'dict'])
def test_any_way_to_get_a_text_from_a_row_works(getter, df, hf):
    dblock = DataBlock(blocks=(HFTextBlock(*hf), CategoryBlock), get_x=getter, get_y=ColReader('label'),
                       splitter=ColSplitter())
    dl = dblock.dataloaders(df, bs=8).valid
    assert [dl.do_item(i)[0] for i in range(40)] == df.text[80:].tolist()


def test_looking_at_a_batch_does_not_change_the_epochs_to_come(df, hf):
    looked,not_looked = (HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', bs=8, seed=3).train for _ in range(2))
    looked.show_batch()
    looked.one_batch()
    assert rows(looked) == rows(not_looked)


def test_looking_does_not_always_show_the_longest_texts(df, hf):
    dl = HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', bs=8, seed=3).train
    longest = max(dl.token_lengths)
    assert any(dl.one_batch()[0]['input_ids'].shape[1] < longest for _ in range(20))
    assert next(iter(dl))[0]['input_ids'].shape[1] == longest


@pytest.mark.parametrize('source', ['df', 'dataset'])
def test_custom_splits(source, df, hf):
    splits = [5, 6, 7],[1, 3]
    if source=='df': dls = HFTextDataLoaders.from_df(df, hf, splits=splits)
    else: dls = HFTextDataLoaders.from_dataset(Dataset.from_pandas(df), hf, splits=splits)
    assert [dls.train.do_item(i)[0] for i in range(3)] == df.text[[5, 6, 7]].tolist()
    assert [dls.valid.do_item(i)[0] for i in range(2)] == df.text[[1, 3]].tolist()


@pytest.mark.parametrize('splitter', [RandomSplitter(seed=1), IndexSplitter([1, 3]), EndSplitter()])
def test_splits_by_a_fastai_splitter(splitter, df, hf):
    expected = [L(o) for o in splitter(df)]
    for dls in (HFTextDataLoaders.from_df(df, hf, splits=splitter),
                HFTextDataLoaders.from_dataset(Dataset.from_pandas(df), hf, splits=splitter)):
        for dl,rows in zip(dls.loaders, expected, strict=True):
            assert [dl.create_item(i)[0] for i in range(dl.n)] == df.text[rows].tolist()


NUMBERED = [dict(text=1, label=0, is_valid=2), dict(text=0, label=2, is_valid=1), dict(text=2, label=1, is_valid=0)]


@pytest.mark.parametrize('names', NUMBERED)
@pytest.mark.parametrize('cut', [False, True])
def test_columns_named_by_numbers_are_read_by_name(names, cut, df, hf, tmp_path):
    "In any order, with other columns or without"
    numbered = df.rename(columns=names)[sorted(names.values())]
    if not cut: numbered.insert(0, 'other', 'wrong')
    args = dict(zip(('text_col', 'label_col', 'valid_col'), names.values(), strict=True))
    dls,same = HFTextDataLoaders.from_df(numbered, hf, **args),HFTextDataLoaders.from_df(df, hf, valid_col='is_valid')
    for dl,other in zip(dls.loaders, same.loaders, strict=True):
        assert [dl.create_item(i) for i in range(dl.n)] == [other.create_item(i) for i in range(dl.n)]
    test = dls.test_dl(numbered, with_labels=True)
    assert [test.create_item(i)[0] for i in range(3)] == df.text[:3].tolist()
    hf_learner(dls, hf.model).save_pretrained(tmp_path)
    loaded = load_hf_learner(tmp_path).dls.test_dl(numbered, with_labels=True)
    assert [loaded.create_item(i)[0] for i in range(3)] == df.text[:3].tolist()


def test_a_csv_file_without_a_header(df, hf, tmp_path):
    df[['label', 'text']].to_csv(tmp_path/'rows.csv', header=False, index=False)
    dls = HFTextDataLoaders.from_csv(tmp_path/'rows.csv', hf, csv_kwargs=dict(header=None), text_col=1, label_col=0)
    assert dls.train.create_item(0)[0] in set(df.text)
    assert list(dls.vocab) == ['bad', 'good']


def test_pairs_and_several_labels_in_numbered_columns(df):
    rows = pd.DataFrame({1: df.text, 0: df.label, 5: [1, 0]*60, 3: [0, 1]*60, 4: [0, 0]*60})
    dls = HFTextDataLoaders.from_df(rows, make_objects(num_labels=3), text_col=(1, 0), label_col=[5, 3, 4], seed=0,
                                    task='multi-label-classification')
    assert list(dls.vocab) == ['5', '3', '4']
    i = dls.train_ds.items.index[0]
    text,targets = dls.train.create_item(0)
    assert (text, targets.tolist()) == ((df.text[i], df.label[i]), rows.loc[i, [5, 3, 4]].tolist())


def test_a_batch_that_goes_between_processes_carries_tensors_alone(dls):
    batch = dls.hf_block.encode(['the film', 'the plot dull'])
    assert batch.hf_block is dls.hf_block
    sent = pickle.loads(pickle.dumps(batch))
    assert isinstance(sent, HFInputs)
    assert {k: v.tolist() for k,v in sent.items()} == {k: v.tolist() for k,v in batch.items()}
    assert sent.hf_block is sent.source is None


def batch_sizes(dl): return [tuple(x['input_ids'].shape) for x,_ in dl]


@given(lengths, st.integers(300, 2000), st.integers(1, 60), st.integers(0, 2**32-1))
def test_token_budgets_order_every_row_exactly_once_and_are_found_again_by_cutting(lengths, batch_tokens, pool, seed):
    order = bucketed_order(lengths, None, np.random.default_rng(seed), pool, batch_tokens=batch_tokens)
    assert sorted(order) == list(range(len(lengths)))
    batches = [lengths[order[o]] for o in cut_batches(lengths[order], batch_tokens)]
    assert all(len(b)*b.max() <= batch_tokens for b in batches)
    assert all((len(b)+1)*b.max() > batch_tokens for b in batches[:-1]) or not any(b.max() for b in batches)


@settings(max_examples=10, deadline=None)
@given(n=st.integers(2, 60), batch_tokens=st.integers(120, 600), seed=st.integers(0, 1000))
def test_an_epoch_of_token_budgets_shows_every_row_once_and_knows_how_many_batches_it_has(n, batch_tokens, seed):
    df = make_texts(n+1, seed).assign(is_valid=[i==n for i in range(n+1)])
    df.loc[n, 'label'] = 'bad'
    dls = HFTextDataLoaders.from_df(df, make_objects(), valid_col='is_valid', batch_tokens=batch_tokens, seed=seed,
                                    device='cpu')
    for _ in range(2):
        n_batches,batches = len(dls.train),list(dls.train)
        assert sorted(t for x,_ in batches for t in dls.hf_block.decode(x)) == sorted(df.text[:n])
        assert len(batches) == n_batches
        assert all(x['input_ids'].numel() <= batch_tokens for x,_ in batches)


def test_token_budgets_are_the_same_with_the_same_seed_and_with_workers(df, hf):
    def epochs(**kwargs):
        dl = HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', batch_tokens=200, seed=3, **kwargs).train
        return [rows(dl) for _ in range(2)]
    assert epochs() == epochs() == epochs(num_workers=2)


def test_predictions_of_token_budgets_come_in_the_callers_order(df, hf):
    learn = hf_learner(HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', batch_tokens=150, seed=0), hf.model)
    small = hf_learner(HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', bs=1, seed=0), hf.model)
    assert torch.allclose(learn.get_preds()[0], small.get_preds()[0], atol=1e-5)
    learn.fit(1)
    assert len(learn.recorder.losses) == sum(1 for _ in learn.recorder.lrs)


def test_a_row_longer_than_batch_tokens_raises(df, hf):
    df = df.copy()
    df.loc[7, 'text'] = 'word ' * 60
    df.index = [f'row-{i}' for i in range(len(df))]
    with pytest.raises(ValueError, match=mentions('batch_tokens=30', "'row-7'")):
        HFTextDataLoaders.from_df(df, hf, splits=(range(40), range(40, 100)), batch_tokens=30)
    assert len(HFTextDataLoaders.from_df(df, hf, splits=(range(40), range(40, 100)), batch_tokens=30,
                                         max_length=30).train)


@pytest.mark.parametrize(('options', 'facts'),
                         [(dict(batch_tokens=0), ['batch_tokens=0']),
                          (dict(batch_tokens=100, drop_last=True), ['drop_last=True', 'batch_tokens']),
                          (dict(batch_tokens=100, precompute_lengths=False),
                           ['batch_tokens=100', 'precompute_lengths=False'])])
def test_contradictory_loader_options_raise(options, facts, df, hf):
    with pytest.raises(ValueError, match=mentions(*facts)):
        HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', **options)


@pytest.mark.parametrize('num_workers', [0, 2])
def test_rows_that_are_read_pool_by_pool_come_once_and_by_similar_length(num_workers, hf):
    df = make_texts(700).assign(is_valid=[i >= 680 for i in range(700)])
    dls = HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', bs=8, pool=20, precompute_lengths=False, seed=1,
                                    num_workers=num_workers)
    assert dls.train.token_lengths is None
    epochs = [list(dls.train) for _ in range(2)]
    for batches in epochs:
        assert sorted(t for x,_ in batches for t in dls.hf_block.decode(x)) == sorted(df.text[:680])
        assert len(batches) == len(dls.train) == 85
        assert padding_share(batches) < padding_share(dls.train.new(precompute_lengths=True, shuffle=False,
                                                                    sort=False))/2
    assert [x['input_ids'].tolist() for x,_ in epochs[0]] != [x['input_ids'].tolist() for x,_ in epochs[1]]


@pytest.mark.parametrize('num_workers', [0, 1, 2])
@pytest.mark.parametrize('ds_idx', [0, 1])
def test_predictions_keep_the_order_of_the_rows_with_pools_and_workers(num_workers, ds_idx, hf):
    df = make_texts(120).assign(is_valid=[i >= 60 for i in range(120)])
    dls = HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', bs=4, pool=3, precompute_lengths=False, seed=1,
                                    num_workers=num_workers, device='cpu')
    learn = hf_learner(dls, hf.model)
    with learn.no_bar(): preds,targs = learn.get_preds(ds_idx=ds_idx)
    rows = df[df.is_valid==bool(ds_idx)]
    assert [dls.vocab[i] for i in targs] == rows.label.tolist()
    expected = [o['probs'] for o in learn.hf_predict(rows.text)]
    for a,b in zip(preds.tolist(), expected, strict=True): assert a == pytest.approx(b, abs=1e-5)


def test_an_invalid_row_raises_when_its_pool_is_read(df, hf):
    df = df.copy()
    df.loc[5, 'text'] = None
    dls = HFTextDataLoaders.from_df(df, hf, splits=(range(80), range(80, 100)), bs=8, precompute_lengths=False)
    with pytest.raises(ValueError, match=mentions('row 5', 'nan')): list(dls.train)


def test_many_rows_are_not_read_beforehand(df, hf, monkeypatch):
    monkeypatch.setattr(blurlike.data.loader, 'PRECOMPUTED_ROWS', 50)
    dls = HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', bs=8)
    assert (dls.train.token_lengths is None, dls.valid.token_lengths is None) == (True, False)
    assert dls.truncation_report().loc['train', 'rows'] == 80


@pytest.fixture
def streams(df):
    ds = Dataset.from_pandas(df[['text', 'label']]).cast_column('label', ClassLabel(names=['good', 'bad']))
    return ds.to_iterable_dataset(num_shards=4).skip(20), ds.select(range(20))


def test_a_stream_shows_every_row_once_an_epoch(streams, hf, df):
    dls = HFTextDataLoaders.from_dataset(dict(train=streams[0], valid=streams[1]), hf, n=100, bs=8, pool=3, seed=0)
    for _ in range(2): assert sorted(t for x,_ in dls.train for t in dls.hf_block.decode(x)) == sorted(df.text[20:])
    assert len(dls.train) == 13
    assert dls.vocab == ['good', 'bad']
    dls.one_batch()
    dls.show_batch(show=False)


def test_a_learner_trains_on_a_stream(streams, hf):
    learn = hf_learner(HFTextDataLoaders.from_dataset(dict(train=streams[0], test=streams[1]), hf, n=80, bs=8, seed=0),
                       hf.model)
    learn.fit_one_cycle(2, 1e-3)
    assert len(learn.recorder.losses) == 20
    assert len(learn.hf_predict(['a text'])) == 1
    pickle.loads(pickle.dumps(learn.dls.new_empty()))


def test_a_stream_gets_the_number_of_each_epoch(streams, hf):
    epochs = []
    class Stream:
        def __iter__(self): return iter([])
        def set_epoch(self, epoch): epochs.append(epoch)
    samples = StreamSamples(Stream(), type('Datasets', (), dict(tls=[]))(), 1)
    samples.epoch(), samples.epoch(looking=True), samples.epoch()
    assert epochs == [0, 1, 1]


@pytest.mark.parametrize(('options', 'facts'), [
    (dict(), ['n=None']), (dict(n=110), ['n=', 100]), (dict(n=80, num_workers=2), ['num_workers=2']),
    (dict(n=80, batch_tokens=100), ['batch_tokens']),
    (dict(n=80, valid_pct=.2), ['valid_pct']), (dict(n=80, valid='dev'), ["valid='dev'", "'train'", "'valid'"]),
    (dict(n=80, label_col=None, task='masked-lm'), ["task='masked-lm'"])])
def test_options_that_streams_do_not_support_raise(options, facts, streams, hf):
    with pytest.raises(ValueError, match=mentions(*facts)):
        list(HFTextDataLoaders.from_dataset(dict(train=streams[0], valid=streams[1]), hf, bs=8, **options).train)


def test_a_single_stream_raises(streams, hf):
    with pytest.raises(ValueError, match=mentions('dataset', 'train=', 'valid=')):
        HFTextDataLoaders.from_dataset(streams[0], hf)


def test_errors_number_rows_as_the_dataset_does(df, hf):
    ds = Dataset.from_pandas(df[['text', 'label']].assign(text=[None if i==33 else o for i,o in enumerate(df.text)]))
    with pytest.raises(ValueError, match=mentions('row 33', None)):
        HFTextDataLoaders.from_dataset(ds, hf, splits=([*range(20, 100)], [*range(20)]))


SIDES = st.sampled_from(['left', 'right'])


@settings(max_examples=20, deadline=None)
@given(texts=st.lists(st.text(st.characters(categories=['L', 'P', 'Z']), max_size=60), min_size=1, max_size=12),
       pairs=st.booleans(), max_length=st.sampled_from([8, 16]), side=SIDES, cut=SIDES,
       truncation=st.sampled_from([True, 'longest_first']), multiple=st.sampled_from([None, 8]))
def test_rows_of_a_table_are_those_of_the_tokenizer(texts, pairs, max_length, side, cut, truncation, multiple):
    tokenizer = make_objects().tokenizer
    tokenizer.padding_side,tokenizer.truncation_side = side,cut
    if pairs: texts = list(zip(texts, texts[::-1], strict=True))
    parts = [tokenize(o, tokenizer) for o in text_columns(texts)]
    table = RowTemplate(tokenizer, pairs).rows(parts, max_length, truncation, left=cut=='left')
    values = dict(input_ids=tokenizer.pad_token_id, token_type_ids=tokenizer.pad_token_type_id)
    for i in range(0, len(texts), 3):
        theirs = tokenizer(*text_columns(texts[i:i+3]), padding=True, pad_to_multiple_of=multiple, return_tensors='pt',
                           truncation=truncation, max_length=max_length)
        ours = table.pad(range(i, min(i+3, len(texts))), values, multiple=multiple, left=side=='left')
        assert ours.keys()==theirs.keys()
        assert all(torch.equal(ours[k], v) for k,v in theirs.items())


@settings(max_examples=20, deadline=None)
@given(texts=st.lists(st.text(st.sampled_from('the film plot '), max_size=80), min_size=1, max_size=6),
       stride=st.integers(0, 5), side=SIDES)
def test_windows_are_those_of_the_tokenizer(texts, stride, side):
    tokenizer = make_objects().tokenizer
    tokenizer.truncation_side = side
    table = RowTemplate(tokenizer).windows([tokenize(texts, tokenizer)], 8, stride, left=side=='left')
    theirs = tokenizer(texts, truncation=True, max_length=8, stride=stride, return_overflowing_tokens=True)
    assert [table.column(i).tolist() for i in range(len(table.bounds)-1)]==theirs['input_ids']
    assert np.diff(table.windows).tolist()==np.bincount(theirs['overflow_to_sample_mapping']).tolist()
    assert table.full_lengths.tolist()==[len(o) for o in tokenizer(texts)['input_ids']]


@pytest.mark.parametrize('options', [
    dict(), dict(padding='max_length'), dict(pad_to_multiple_of=8),
    dict(tok_kwargs=dict(add_special_tokens=False)), dict(tok_kwargs=dict(return_special_tokens_mask=True)),
    dict(tok_kwargs=dict(return_length=True)), dict(padding=False)])
@pytest.mark.parametrize('pairs', [False, True])
@pytest.mark.parametrize('arch', ['bert', 'roberta', 'xlnet'])
def test_a_block_encodes_as_its_tokenizer(options, pairs, arch):
    hf = make_objects(arch)
    block = HFTextBlock(*hf[:3], max_length=16, task='sequence-classification', **options)
    texts = ['a film', 'a longer text than fits into sixteen tokens of a small tokenizer, by far', 'warm and funny']
    if options.get('padding') is False: texts = texts[:1]
    if pairs: texts = [('another', o) for o in texts]
    kwargs = dict(padding=block.padding, pad_to_multiple_of=block.pad_to_multiple_of) | options.get('tok_kwargs', {})
    theirs = hf.tokenizer(*text_columns(texts), truncation=True, max_length=16, return_tensors='pt', **kwargs)
    ours = block.encode(texts)
    assert {'input_ids', 'attention_mask'} <= set(ours)
    assert all(torch.equal(v, theirs[k]) for k,v in ours.items() if k!='sequence_ids')


@pytest.fixture
def calls(monkeypatch):
    "The number of times that each text is tokenized"
    import blurlike.data.block as module
    counts,original = Counter(),module.tokenize
    def counted(texts, *args, **kwargs):
        counts.update(map(repr, texts))
        return original(texts, *args, **kwargs)
    monkeypatch.setattr(module, 'tokenize', counted)
    return counts


@pytest.mark.parametrize('options', [
    dict(), dict(windows=True, max_length=8), dict(batch_tokens=200), dict(text_col=('text', 'other')),
    dict(task='masked-lm', label_col=None), dict(task='token-classification', text_col='words', label_col='tags'),
    dict(task='question-answering', text_col=('other', 'text'), label_col='answer')])
def test_a_text_is_tokenized_once_in_the_life_of_the_loaders(options, df, hf, calls):
    df = df.assign(text=[f'{o} {i}' for i,o in enumerate(df.text)])
    words = [o.split() for o in df.text]
    df = df.assign(other=[f'what {i}' for i in range(len(df))], words=words, tags=[['O']*len(o) for o in words],
                   answer=[(o[0], 0) for o in words])
    size = {} if 'batch_tokens' in options else dict(bs=8)
    dls = HFTextDataLoaders.from_df(df, hf._replace(model=None), valid_col='is_valid', seed=0, **size, **options)
    for _ in range(2): list(dls.train), list(dls.valid)
    dls.truncation_report()
    dls.train.new(shuffle=False).one_batch()
    assert len(calls) >= len(df)
    assert set(calls.values())=={1}
    dls.show_batch(max_n=3) # finds where its own texts are cut
    assert sum(o > 1 for o in calls.values()) <= 6 # of pairs, both texts


def test_a_lambda_that_always_reads_the_same_is_tokenized_once(df, hf, calls):
    dblock = DataBlock(blocks=(HFTextBlock(*hf), CategoryBlock), get_x=lambda row: row['text'].upper(),
                       get_y=ColReader('label'), splitter=ColSplitter())
    dls = dblock.dataloaders(df.assign(text=[f'{o} {i}' for i,o in enumerate(df.text)]), bs=8)
    for _ in range(2): list(dls.train)
    assert set(calls.values())=={1}


def test_texts_that_change_at_random_are_tokenized_anew_each_epoch(df, hf):
    class Shorten(ItemTransform):
        def encodes(self, sample): return (' '.join(sample[0].split()[:random.randint(1, 3)]), *sample[1:])
    dblock = DataBlock(blocks=(HFTextBlock(*hf), CategoryBlock), get_x=ColReader('text'), get_y=ColReader('label'),
                       splitter=ColSplitter(), item_tfms=Shorten())
    dl = dblock.dataloaders(df, bs=8).train
    epochs = [sorted(t for x,_ in dl for t in dl.hf_block.decode(x)) for _ in range(2)]
    assert epochs[0] != epochs[1]
    assert all(len(o.split()) <= 3 for texts in epochs for o in texts)


def test_a_block_does_not_change(df, hf):
    block = HFTextBlock(*hf)
    before = dict(vars(block))
    def loaders(targets, get_y):
        dblock = DataBlock(blocks=(block, targets), get_x=ColReader('text'), get_y=get_y, splitter=ColSplitter())
        return dblock.dataloaders(df, bs=8)
    numbers = loaders(RegressionBlock, lambda row: len(row['text'])/7)
    classes = loaders(CategoryBlock, ColReader('label'))
    assert (numbers.hf_block.task.name, classes.hf_block.task.name) == ('regression', 'sequence-classification')
    assert vars(block)==before


@pytest.mark.parametrize('options', [dict(bs=8, precompute_lengths=False), dict(batch_tokens=200), dict(bs=8)])
def test_predictions_of_a_shuffled_loader_are_put_back_in_order(options, df, hf):
    learn = hf_learner(HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', seed=0, **options), hf.model)
    targets = [learn.dls.vocab.o2i[o] for o in df.label[~df.is_valid]]
    preds,found = learn.get_preds(dl=learn.dls.train)
    assert found.tolist() == targets
    assert torch.allclose(preds, torch.tensor([o['probs'] for o in learn.hf_predict(df.text[~df.is_valid].tolist())]),
                          atol=1e-5)


def test_pairs_of_lists_of_words_make_an_epoch(df, hf):
    pairs = df.assign(text=[o.split() for o in df.text], other=[o.split()[::-1] for o in df.text])
    dls = HFTextDataLoaders.from_df(pairs, hf, text_col=('text', 'other'), task='sequence-classification',
                                    valid_col='is_valid', bs=8, is_split_into_words=True)
    assert sum(len(y) for _,y in dls.train) == (~df.is_valid).sum()


def test_a_dict_of_datasets_equals_a_datasetdict(df, hf):
    named = {k: Dataset.from_pandas(df[df.is_valid==v][['text', 'label']], preserve_index=False)
             for k,v in dict(train=False, valid=True).items()}
    ours,theirs = (HFTextDataLoaders.from_dataset(o, hf, bs=8, seed=0) for o in (named, DatasetDict(named)))
    assert [len(o) for o in (ours.train_ds, ours.valid_ds)]==[80, 40]
    for a,b in zip(ours.train, theirs.train, strict=True): assert a[0]['input_ids'].tolist()==b[0]['input_ids'].tolist()
    with pytest.raises(ValueError, match=mentions('dataset', 'DataFrame', 'from_df')):
        HFTextDataLoaders.from_dataset(dict(train=df, valid=df), hf)


@pytest.mark.parametrize('trained_on', ['frame', 'dataset', 'stream'])
def test_new_rows_may_come_in_any_form(trained_on, df, hf, streams):
    frame = df[['text', 'label']]
    named = Dataset.from_pandas(frame).cast_column('label', ClassLabel(names=['good', 'bad']))
    dls = (HFTextDataLoaders.from_df(frame, hf, bs=8, seed=0) if trained_on=='frame' else
           HFTextDataLoaders.from_dataset(*((named, hf) if trained_on=='dataset'
                                            else (dict(train=streams[0], valid=streams[1]), hf)), bs=8, seed=0, n=80))
    labels = [dls.vocab.o2i[o] for o in frame.label]
    for rows in (frame, named, Dataset.from_pandas(frame), frame.to_dict('records')):
        dl = dls.test_dl(rows, with_labels=True, sort=False)
        texts,found = zip(*((t, y) for x,ys in dl for t,y in zip(dls.hf_block.decode(x), ys.tolist(), strict=True)),
                          strict=True)
        assert list(texts) == frame.text.tolist()
        assert list(found) == labels
        assert len(dls.test_dl(rows).one_batch()) == 1
    assert len(dls.test_dl(frame.text.tolist()).one_batch()) == 1
    with pytest.raises(ValueError, match=mentions('test_items')): dls.test_dl(streams[0])


@pytest.mark.parametrize(('train', 'valid', 'about'), [
    (.1, .1, []), (.2, 0, ['16 of 80']), (.2, 1, ['16 of 80']), (0, .2, ['8 of 40']), (1, 1, ['80 of 80'])])
def test_rows_that_are_cut_are_said_once(train, valid, about, capsys):
    texts = ['the film '*(20 if i < n*share else 3) for n,share in ((80, train), (40, valid)) for i in range(n)]
    df = pd.DataFrame(dict(text=texts, label=['good', 'bad']*60))
    dls = HFTextDataLoaders.from_df(df, make_objects(), splits=(range(80), range(80, 120)), max_length=16, bs=8)
    lines = [o for o in capsys.readouterr().out.splitlines() if 'max_length=16' in o]
    assert len(lines)==len(about)
    assert all(a in o for a,o in zip(about, lines, strict=True))
    dls.train.new(bs=4)
    dls.train.new(shuffle=False)
    assert not capsys.readouterr().out
    dls.test_dl(texts[:1])
    assert ('1 of 1' in capsys.readouterr().out) == (train > 0 and valid <= .1) # not after such a line on `valid`


def test_rows_in_windows_are_not_cut(df, hf, capsys):
    HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', max_length=8, windows=True)
    HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', truncation=False)
    assert 'max_length' not in capsys.readouterr().out
