"Every row exactly once, in batches of similar length, whatever the size, the seed and the number of workers."
import pickle

import numpy as np
import pytest
import torch
from conftest import make_objects, make_texts
from datasets import Dataset
from fastai.data.all import CategoryBlock, ColReader, ColSplitter, DataBlock
from hypothesis import given, settings
from hypothesis import strategies as st

from blurlike.all import HFInputs, HFTextBlock, HFTextDataLoaders, padding_share
from blurlike.loader import bucketed_order
from blurlike.predict import token_batches

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
    lengths = [[HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', bs=8, seed=s, **o).one_batch()[0]['attention_mask'].sum(1).float().std() for s in range(8)]
               for o in ({}, dict(pool=1))]
    assert sum(lengths[0]) < sum(lengths[1])/2


def test_the_rows_of_the_partial_batch_are_not_always_the_shortest():
    rng,last = np.random.default_rng(0),set()
    for _ in range(200): last |= set(bucketed_order(np.arange(35), 8, rng)[-3:].tolist())
    assert last == set(range(3)) | {i for b in range(1, 4) for i in range(34-8*b-2, 34-8*b+1)}


@given(st.integers(1, 40), st.integers(0, 2**32-1))
def test_bucketing_pads_less_than_chance(bs, seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 200, size=40*bs)
    def padding(order): return 1 - lengths.sum()/sum(lengths[o].max()*len(o) for o in np.split(order, range(bs, len(order), bs)))
    bucketed = padding(bucketed_order(lengths, bs, rng))
    assert bucketed <= 0.12
    assert bucketed <= padding(rng.permutation(len(lengths)))


@given(lengths, st.integers(1, 2000), st.booleans())
def test_token_batches_hold_every_text_once_within_the_budget(lengths, max_tokens, equal):
    batches = token_batches(lengths, max_tokens, equal)
    assert sorted(i for b in batches for i in b) == list(range(len(lengths)))
    for b in batches: assert len(b)==1 or len(b)*max(1, lengths[b].max()) <= max_tokens
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
    def epochs(seed): return [rows(dl) for dl in [HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', bs=8, seed=seed).train]*2]
    assert epochs(3) == epochs(3)
    assert epochs(3)[0] != epochs(3)[1]
    assert epochs(3) != epochs(4)


@pytest.mark.parametrize('num_workers', [1, 2])
def test_workers_give_the_same_batches_without_a_warning(num_workers, df, hf, capfd, recwarn):
    one, many = (HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', bs=8, seed=3, num_workers=n) for n in (0, num_workers))
    assert rows(one.train) == rows(many.train)
    assert rows(one.valid) == rows(many.valid)
    assert 'fork' not in capfd.readouterr().err
    assert not [w for w in recwarn if 'fork' in str(w.message)]


def test_a_loader_survives_pickling(dls):
    copy = pickle.loads(pickle.dumps(dls))
    assert rows(copy.valid) == rows(dls.valid)
    assert copy.truncation_report().equals(dls.truncation_report())


def test_new_keeps_what_is_not_changed(dls, monkeypatch):
    monkeypatch.setattr(type(dls.train), '_survey', lambda self: pytest.fail('rows were read again'))
    smaller = dls.train.new(bs=3)
    assert (smaller.bs, smaller.seed, smaller.hf_block) == (3, dls.train.seed, dls.hf_block)


def test_the_last_partial_batch_is_kept_unless_dropped(df, hf):
    def sizes(**kwargs): return [len(y) for _,y in HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', bs=33, **kwargs).train]
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
def test_pairs_are_truncated_as_the_tokenizer_says(truncation, hf):
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
    dblock = DataBlock(blocks=(HFTextBlock(*hf), CategoryBlock), get_x=ColReader('text'), get_y=ColReader('label'), splitter=ColSplitter())
    dblock.summary(df)
    assert 'Collating items in a batch' in capsys.readouterr().out


@pytest.mark.parametrize('getter', [ColReader('text'), lambda r: r['text'], lambda r: r.text, lambda r: r.to_dict()['text'], lambda r: r.iloc[0],
                                    lambda r: dict(r)['text']], ids=['ColReader', 'item', 'attribute', 'to_dict', 'iloc', 'dict'])
def test_any_way_to_get_a_text_from_a_row_works(getter, df, hf):
    dblock = DataBlock(blocks=(HFTextBlock(*hf), CategoryBlock), get_x=getter, get_y=ColReader('label'), splitter=ColSplitter())
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


@pytest.mark.parametrize('make', [HFTextDataLoaders.from_df, lambda df, *args, **kwargs: HFTextDataLoaders.from_dataset(Dataset.from_pandas(df), *args, **kwargs)],
                         ids=['df', 'dataset'])
def test_splits_of_ones_own(make, df, hf):
    dls = make(df, hf, splits=([5, 6, 7], [1, 3]))
    assert [dls.train.do_item(i)[0] for i in range(3)] == df.text[[5, 6, 7]].tolist()
    assert [dls.valid.do_item(i)[0] for i in range(2)] == df.text[[1, 3]].tolist()


def test_a_batch_that_goes_between_processes_carries_tensors_alone(dls):
    batch = dls.hf_block.encode(['the film', 'the plot dull'])
    assert batch.hf_block is dls.hf_block
    sent = pickle.loads(pickle.dumps(batch))
    assert isinstance(sent, HFInputs)
    assert {k: v.tolist() for k,v in sent.items()} == {k: v.tolist() for k,v in batch.items()}
    assert sent.hf_block is sent.encoding is None
