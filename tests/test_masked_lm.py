"Masked language models: which tokens are masked, reproducible masks, and predictions as in the pipeline."
import math

import numpy as np
import pytest
import torch
from conftest import ARCHITECTURES, make_objects, make_texts, mentions
from datasets import Dataset
from fastai.data.block import DataBlock
from fastai.data.transforms import ColReader, ColSplitter
from fastai.interpret import Interpretation
from fastai.learner import Learner, load_learner
from fastai.losses import CrossEntropyLossFlat
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForMaskedLM, pipeline

from blurlike.all import (
    HFCallback,
    HFLoss,
    HFObjects,
    HFTextBlock,
    HFTextDataLoaders,
    Masking,
    all_maskings,
    get_masking,
    hf_learner,
    hf_splitter,
)
from blurlike.tasks.corpus import table_of

ENCODERS = ('albert', 'bert', 'deberta-v2', 'fnet', 'modernbert', 'roberta') # the matrix has them all
NAMES = ('bert', 'span', 'whole-word')


def make_mlm(arch='bert', **kwargs):
    "A tiny masked model of architecture `arch`, and its tokenizer"
    return make_objects(arch, auto_model=AutoModelForMaskedLM, **kwargs)


def loaders(df, hf, **kwargs):
    return HFTextDataLoaders.from_df(df, hf, **{**dict(task='masked-lm', valid_col='is_valid', bs=8, seed=0,
                                                       device='cpu'), **kwargs})


@pytest.mark.parametrize('name', ['span', 'whole-word'])
def test_a_text_without_spaces_is_not_masked_whole(name):
    eligible,masking = torch.ones(40, dtype=torch.bool),get_masking(name)(HF.tokenizer, 0.15)
    for seed in range(5):
        chosen = masking.choose(eligible, torch.zeros(40, dtype=torch.long), rng(seed))
        assert 0 < chosen.sum() <= 16


def test_two_text_columns_are_refused():
    df = make_texts(20).assign(other='the plot')
    with pytest.raises(ValueError, match=mentions('20 of 20', "task='masked-lm'")):
        loaders(df, HF, text_col=['text', 'other'], splits=(range(20), []), valid_col=None)


def rng(seed=0): return torch.Generator().manual_seed(seed)


HF = make_mlm()


@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=40), seed=st.integers(0, 2**32),
       name=st.sampled_from(NAMES),
       probability=st.floats(0.05, 0.9))
@settings(max_examples=150, deadline=None)
def test_a_strategy_masks_only_eligible_tokens_and_keeps_their_ids_as_targets(sizes, seed, name, probability):
    words = torch.tensor([-1, *np.repeat(np.arange(len(sizes)), sizes).tolist(), -1])
    ids = torch.tensor([2, *[5 + i%30 for i in range(len(words)-2)], 3])
    eligible = words >= 0
    before = ids.clone()
    masked,labels = get_masking(name)(HF.tokenizer, probability)(ids, eligible, words, rng(seed))
    hidden = labels >= 0
    assert torch.equal(ids, before)
    assert hidden.any()
    assert not (hidden & ~eligible).any()
    assert torch.equal(masked[~hidden], ids[~hidden])
    assert torch.equal(labels[hidden], ids[hidden])
    if name != 'bert': assert not set(words[hidden].tolist()) & set(words[~hidden].tolist())
    if name == 'whole-word': assert hidden.sum() <= max(round(probability*eligible.sum().item()), max(sizes))
    if name == 'span': assert hidden.sum() >= probability*eligible.sum() - 1e-6


@pytest.mark.parametrize('name', NAMES)
def test_15_percent_is_masked_as_in_bert(name):
    n = 4000
    ids,words = torch.full((n,), 7),torch.arange(n)
    masked,labels = get_masking(name)(HF.tokenizer)(ids, torch.ones(n).bool(), words, rng())
    hidden = labels >= 0
    assert hidden.float().mean().item() == pytest.approx(0.15, abs=0.02)
    assert (masked[hidden]==HF.tokenizer.mask_token_id).float().mean().item() == pytest.approx(0.8, abs=0.06)
    assert (masked[hidden]==7).float().mean().item() == pytest.approx(0.1, abs=0.05)


def test_spans_are_as_long_as_in_the_paper():
    n = 20000
    labels = get_masking('span')(HF.tokenizer, 0.02)(torch.full((n,), 7), torch.ones(n).bool(), torch.arange(n),
                                                     rng())[1]
    runs = [len(o) for o in ''.join('x' if o >= 0 else ' ' for o in labels.tolist()).split()]
    p = 0.2*0.8**np.arange(10)
    assert np.mean(runs) == pytest.approx((p*np.arange(1, 11)).sum()/p.sum(), abs=0.6)


def test_validation_always_masks_the_same_tokens(df):
    seen = []
    for bs,num_workers in ((8, 0), (3, 0), (5, 2)):
        dls = loaders(df, HF, val_bs=bs, num_workers=num_workers)
        for _ in range(2):
            hidden = {}
            for x,y in dls.valid:
                whole = torch.where(y >= 0, y, x['input_ids'])
                for w,o,m in zip(whole, y, x['attention_mask'].bool(), strict=True):
                    hidden[tuple(w[m].tolist())] = o[m].tolist()
            seen.append(hidden)
    assert all(o == seen[0] for o in seen)
    assert len({str(o) for o in seen[0].values()}) > len(seen[0])//2


def test_training_masks_other_tokens_each_epoch_whatever_the_batches(df):
    def epoch(dls): return {tuple(torch.where(b >= 0, b, a).tolist()): b.tolist() for x,y in dls.train
                            for a,b in zip(x['input_ids'], y, strict=True)}
    def make(**kwargs): return loaders(df, HF, padding='max_length', max_length=48, **kwargs)
    one = make()
    first,second = epoch(one),epoch(one)
    assert set(first) == set(second)
    assert first != second
    for kwargs in ({}, dict(bs=3), dict(num_workers=2)):
        same = make(**kwargs)
        assert [epoch(same), epoch(same)] == [first, second]


def test_special_tokens_padding_and_unknown_tokens_are_never_masked(df):
    odd = df.assign(text=[f'{o} [SEP] 東京都 [MASK]' for o in df.text])
    for packing in (False, True):
        for x,y in loaders(odd, HF, packing=packing, mask_probability=0.9, max_length=32).train:
            assert not torch.isin(y, torch.tensor(HF.tokenizer.all_special_ids)).any()
            assert (y[~x['attention_mask'].bool()] == -100).all()
            assert (x['input_ids'][:,0] == HF.tokenizer.cls_token_id).all()


def test_texts_without_words_keep_the_weights_finite(df):
    hf = make_mlm()
    empty = df.assign(text=['' if i%2 else ' \n' for i in range(len(df))])
    for loss_func in (None, HFLoss()):
        learn = hf_learner(loaders(empty, hf), hf.model, loss_func=loss_func)
        with learn.no_bar(), learn.no_logging(): learn.fit(1)
        assert all(torch.isfinite(p).all() for p in hf.model.parameters())


def test_every_row_with_a_word_has_a_masked_token(df):
    short = df.assign(text='film')
    for _,y in loaders(short, HF).train: assert ((y >= 0).sum(1) == 1).all()


@given(texts=st.lists(st.text(alphabet='abc .é', max_size=30), min_size=1, max_size=8), size=st.integers(5, 40))
@settings(max_examples=50, deadline=None)
def test_packed_blocks_hold_every_token_of_every_text_in_order(texts, size):
    block = HFTextBlock(*HF, task='masked-lm', packing=True, block_size=size)
    sep = HF.tokenizer.sep_token_id
    spoken = [o for t in texts if (o := HF.tokenizer(t, add_special_tokens=False)['input_ids'])]
    whole = [i for o in spoken for i in [*o, sep]][:-1]
    if not whole:
        with pytest.raises(ValueError, match=mentions(len(texts))): block.task.prepare([(o,) for o in texts], block, {})
        return
    blocks = block.task.prepare([(o,) for o in texts], block, {})
    assert [i for o, in blocks for i in o.ids[o.columns['sequence_ids'] >= 0]] == whole
    for o, in blocks:
        x,y = block.task.collate(table_of([o]), [0], block)
        assert x['input_ids'].shape[1] <= size
        assert torch.where(y >= 0, y, x['input_ids'])[0].tolist() == o.ids.tolist()
        assert (o.ids[0], o.ids[-1]) == (HF.tokenizer.cls_token_id, sep)
        assert (o.columns['sequence_ids'][1:-1] >= 0).all()


@pytest.mark.parametrize('arch', ENCODERS)
def test_an_encoder_trains_predicts_saves_and_loads(arch, df, tmp_path):
    hf = make_mlm(arch)
    dls = loaders(df, hf)
    batch = dls.valid.one_batch()
    losses = []
    for loss_func in (HFLoss(), None, CrossEntropyLossFlat()):
        learn = hf_learner(dls, hf.model, loss_func=loss_func, lr=1e-2, metrics=[])
        with learn.no_bar(): losses.append(learn.validate(dl=[batch])[0])
    assert losses[1:] == [pytest.approx(losses[0], abs=1e-5)]*2
    learn = hf_learner(dls, hf.model, lr=1e-2)
    with learn.no_bar(), learn.no_logging():
        before = learn.validate()[1]
        learn.fit(1)
        assert learn.validate()[1] < before
    mask = hf.tokenizer.mask_token
    texts = [f'the film {mask}', f'the {mask} dull the cast {mask} the script', f'{mask}']
    ours = [learn.hf_predict(o, top_k=3) for o in texts] # one by one: ConvBERT's convolutions see padding
    learn.save_pretrained(tmp_path/'model')
    for theirs,o in zip(pipeline('fill-mask', model=str(tmp_path/'model'), device='cpu')(texts, top_k=3), ours,
                        strict=True):
        flat = lambda x: [b for a in x for b in (a if isinstance(a, list) else [a])]
        assert len(flat(theirs)) == len(flat(o))
        for a,b in zip(flat(theirs), flat(o), strict=True):
            assert {**a, 'score': pytest.approx(a['score'], abs=1e-5)} == b


def test_targets_limit_the_predicted_words(df):
    hf = make_mlm()
    learn = hf_learner(loaders(df, hf), hf.model)
    ours = learn.hf_predict('the [MASK] warm', targets=['film', 'plot'])
    assert {o['token_str'] for o in ours} == {'film', 'plot'}
    fill = pipeline('fill-mask', model=learn.model.eval(), tokenizer=hf.tokenizer, device='cpu')
    theirs = fill('the [MASK] warm', targets=['film', 'plot'])
    assert [o['score'] for o in ours] == pytest.approx([o['score'] for o in theirs], abs=1e-6)


def test_texts_without_a_mask_raise(df):
    hf = make_mlm()
    learn = hf_learner(loaders(df, hf, max_length=8), hf.model)
    with pytest.raises(ValueError, match=mentions('1 of 2', "'the film'", '[MASK]')):
        learn.hf_predict(['[MASK]', 'the film'])
    with pytest.raises(ValueError, match=mentions('max_length=8', '[MASK]')):
        learn.hf_predict('the film '*10 + '[MASK]')


def test_unsuitable_models_and_tokenizers_raise(df, hf):
    from transformers import AutoModelForCausalLM
    make_tokenizer,options = ARCHITECTURES['gpt2']
    tokenizer = make_tokenizer()
    config = AutoConfig.for_model('gpt2', vocab_size=len(tokenizer), **options)
    with pytest.raises(ValueError, match="'gpt2'"): HFTextBlock('gpt2', config, tokenizer, task='masked-lm')
    gpt = HFObjects('gpt2', config, tokenizer, AutoModelForCausalLM.from_config(config))
    with pytest.raises(ValueError, match=mentions(type(tokenizer).__name__, 'causal-lm')): loaders(df, gpt)
    with pytest.raises(ValueError, match=mentions('BertForSequenceClassification', 'masked-lm')):
        hf_learner(loaders(df, HF), hf.model)


def test_whole_words_need_a_fast_tokenizer(df, monkeypatch):
    hf = make_mlm()
    words,single = (HFTextBlock(*hf, task='masked-lm', masking=o) for o in ('whole-word', 'bert'))
    monkeypatch.setattr(type(hf.tokenizer), 'is_fast', False)
    with pytest.raises(ValueError, match=mentions("masking='whole-word'", 'BertTokenizer')):
        words.task.prepare([('film',)], words, {})
    assert single.task.prepare([('film',)], single, {})[0][0].ids.tolist() == hf.tokenizer('film')['input_ids']


@pytest.mark.parametrize(('options', 'facts'), [
    (dict(masking='random'), ["masking='random'", *map(repr, NAMES)]),
    (dict(mask_probability=0), ['mask_probability=0']),
    (dict(block_size=4, packing=True), ['block_size=4', 5]), (dict(windows=True), ['windows=True']),
    (dict(mask_prob=0.2), ["'mask_prob'", "'mask_probability'"])])
def test_invalid_options_raise(options, facts, df):
    with pytest.raises((TypeError, ValueError), match=mentions(*facts)): loaders(df, HF, **options)


def test_a_custom_strategy_is_chosen_by_class_or_name_and_saved_by_name(df, tmp_path):
    class FirstToken(Masking):
        name = 'first-token'
        def choose(self, eligible, word_ids, rng): return torch.arange(len(eligible))==0
    for masking in (FirstToken, 'first-token'):
        dls = loaders(df, HF, masking=masking)
        for _,y in dls.train: assert ((y >= 0).nonzero()[:,1] == 1).all()
        assert dls.hf_block.task.params()['masking'] == 'first-token'
    assert 'first-token' in all_maskings()
    hf_learner(dls, HF.model).save_pretrained(tmp_path/'model')


@pytest.mark.parametrize('options', [dict(packing=True, block_size=16), dict(masking='span')])
def test_tables_interpretation_and_new_texts_work(options, df, capsys, tmp_path):
    hf = make_mlm()
    dls = loaders(df, hf, **options)
    learn = hf_learner(dls, hf.model)
    with learn.no_bar(), learn.no_logging():
        dls.show_batch(max_n=9)
        assert '[MASK]' in capsys.readouterr().out
        learn.show_results(max_n=2)
        interp = Interpretation.from_learner(learn)
        interp.plot_top_losses(3)
        loss = learn.validate(dl=learn.dls.test_dl(make_texts(6, seed=3)))[0]
        learn.export(tmp_path/'learn.pkl')
        again = load_learner(tmp_path/'learn.pkl')
        dl = again.dls.test_dl(make_texts(6, seed=3).text.tolist())
        with again.no_bar(): assert again.validate(dl=dl)[0] == pytest.approx(loss, abs=1e-6)
        probs,targs,decoded = learn.get_preds(with_decoded=True)
        assert len(probs) == len(targs) == len(decoded) == len(dls.valid_ds)
    assert 'prediction' in capsys.readouterr().out


def test_perplexity_and_accuracy_count_tokens_and_not_batches(df):
    dls = loaders(df, HF, val_bs=3)
    learn = hf_learner(dls, HF.model)
    with learn.no_bar(), learn.no_logging(): _,perplexity,accuracy = learn.validate()
    total = n = right = 0
    for x,y in dls.valid:
        with torch.no_grad(): logits = HF.model.eval()(**x).logits
        total += torch.nn.functional.cross_entropy(logits[y >= 0], y[y >= 0], reduction='sum').item()
        right,n = right + (logits.argmax(-1)==y)[y >= 0].sum().item(),n + (y >= 0).sum().item()
    assert perplexity == pytest.approx(math.exp(total/n), rel=1e-4)
    assert accuracy == pytest.approx(right/n)


def test_every_level_and_source_gives_the_same_batches(df):
    block = HFTextBlock(*HF, task='masked-lm', masking='whole-word')
    dblock = DataBlock(blocks=(block,), get_x=ColReader('text'), splitter=ColSplitter())
    mid = dblock.dataloaders(df, bs=8, device='cpu')
    ds = HFTextDataLoaders.from_dataset(Dataset.from_pandas(df), HF, task='masked-lm', masking='whole-word',
                                        valid_col='is_valid', bs=8, device='cpu')
    high = loaders(df, HF, masking='whole-word')
    batches = [o.valid.one_batch() for o in (mid, ds, high)]
    assert all(torch.equal(o[0]['input_ids'], batches[0][0]['input_ids']) for o in batches)
    assert all(torch.equal(o[1], batches[0][1]) for o in batches)
    learn = Learner(mid, HF.model, loss_func=CrossEntropyLossFlat(), metrics=block.task.metrics(), cbs=[HFCallback],
                    splitter=hf_splitter)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    assert learn.predict('the film warm')[0] is not None
