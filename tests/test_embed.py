"The vectors of texts are those of a model by hand, for every task, pooling and architecture, in any batch or thread."
import json

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ARCHITECTURES, make_objects, make_texts, mentions
from huggingface_hub.errors import LocalEntryNotFoundError
from hypothesis import given, settings
from hypothesis import strategies as st
from test_matrix import TASKS, make_learner
from test_padding import READ_PADDING
from test_threads import in_threads
from transformers import AutoModel, AutoModelForSeq2SeqLM, AutoModelForTextEncoding

from blurlike.all import HFEmbedder, HFIndex, HFTextDataLoaders, hf_learner, minilm_checkpoint
from blurlike.core.objects import position_limit
from blurlike.data.block import HFTextBlock
from blurlike.embed import POOLINGS, Embedding, embed_texts, pool

TEXTS = make_texts(40, seed=4).text.tolist()
WRITING = {'summarization': 't5', 'translation': 'bart', 'text2text-generation': 't5', 'causal-lm': 'gpt2'}
HAND = dict(mean=lambda o: o.mean(0), cls=lambda o: o[0], last=lambda o: o[-1], max=lambda o: o.amax(0))
close = dict(rtol=0, atol=1e-6)


def by_hand(body, tokenizer, text, pooling='mean', max_length=64):
    "The vector of one text, without padding"
    enc = tokenizer(text, truncation=True, max_length=max_length, return_tensors='pt')
    enc = {k: v for k,v in enc.items() if k in ('input_ids', 'attention_mask')}
    with torch.no_grad(): return HAND[pooling](body(**enc).last_hidden_state[0]).numpy()


def same(found, body, tokenizer, texts, **kwargs):
    "Fail unless the vectors in `found` are those of `texts`"
    np.testing.assert_allclose(found, np.stack([by_hand(body, tokenizer, o, **kwargs) for o in texts]), **close)


# ---- pooling

@given(n=st.lists(st.integers(1, 6), min_size=1, max_size=4), width=st.integers(6, 9), seed=st.integers(0, 99),
       pooling=st.sampled_from(sorted(POOLINGS)))
@settings(deadline=None)
def test_neither_the_side_nor_the_length_of_padding_matters(n, width, seed, pooling):
    rng,rows = torch.Generator().manual_seed(seed),[]
    texts = [torch.randn(o, 3, generator=rng) for o in n]
    for left in (True, False):
        states,mask = torch.full((len(n), width, 3), float('nan')),torch.zeros(len(n), width, dtype=torch.long)
        for i,o in enumerate(texts):
            at = slice(width-len(o), width) if left else slice(len(o))
            states[i,at],mask[i,at] = o,1
        rows.append(pool(states, mask, pooling))
    for found in rows: torch.testing.assert_close(found, torch.stack([HAND[pooling](o) for o in texts]))


@pytest.mark.parametrize('pooling', sorted(POOLINGS))
def test_poolings_are_those_of_sentence_transformers(pooling):
    Pooling,theirs = pytest.importorskip('sentence_transformers.models').Pooling,pooling.replace('last', 'lasttoken')
    states,mask = torch.randn(3, 5, 8),torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 1, 1, 1]])
    expected = Pooling(8, theirs)(dict(token_embeddings=states, attention_mask=mask))['sentence_embedding']
    torch.testing.assert_close(pool(states, mask, pooling), expected)


# ---- learners

@pytest.mark.parametrize('task', sorted(TASKS))
def test_a_learner_of_any_task(task):
    learn = make_learner(WRITING.get(task, 'bert'), task)
    learn.model.train()
    found = learn.hf_embed(TEXTS, batch_tokens=256)
    assert all(o.training for o in learn.model.modules())
    inner = learn.model.eval().base_model
    body = inner.get_encoder() if inner.config.is_encoder_decoder else inner
    same(found, body, learn.dls.hf_block.hf_tokenizer, TEXTS)
    assert found.dtype == np.float32


@pytest.mark.parametrize('pooling', POOLINGS)
@pytest.mark.parametrize('arch', ['gpt2', 'xlnet', 'bert']) # XLNet pads on the left
def test_every_pooling(arch, pooling):
    learn = make_learner(arch, 'sequence-classification')
    found = learn.hf_embed(TEXTS[:12], pooling)
    same(found, learn.model.eval().base_model, learn.dls.hf_block.hf_tokenizer, TEXTS[:12], pooling=pooling)


# transformers builds no Funnel from a configuration that names no class
@pytest.mark.parametrize('arch', sorted({*ARCHITECTURES} - READ_PADDING - {'funnel'}))
def test_batches_do_not_change_a_vector(arch):
    hf = make_objects(arch, auto_model=AutoModel)
    hf.tokenizer.model_max_length = 64
    block = HFTextBlock(*hf, task=Embedding())
    found,alone = embed_texts(TEXTS[:6], hf.model, block),[embed_texts(o, hf.model, block) for o in TEXTS[:6]]
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, alone, rtol=0, atol=1e-5)


def test_one_text_gives_a_vector_and_none_give_no_rows(learn):
    rows = learn.hf_embed(TEXTS[:1])
    assert rows.shape == (1, 32)
    np.testing.assert_array_equal(learn.hf_embed(TEXTS[0]), rows[0])
    assert learn.hf_embed([]).shape == (0, 32)
    assert learn.hf_embed(pd.Series(TEXTS[:3])).shape == (3, 32)


def test_pairs_are_tuples(learn):
    tokenizer = learn.dls.hf_block.hf_tokenizer
    enc = tokenizer('the film', 'the plot', return_tensors='pt')
    with torch.no_grad(): expected = learn.model.eval().base_model(**enc).last_hidden_state[0].mean(0)
    for found in (learn.hf_embed(('the film', 'the plot')), learn.hf_embed([('the film', 'the plot')])[0]):
        np.testing.assert_allclose(found, expected, **close)


def test_a_text_in_windows_has_one_vector_of_all_its_tokens(df, hf):
    dls = HFTextDataLoaders.from_df(df, hf, bs=4, max_length=8, windows=True, stride=0, device='cpu')
    learn,text = hf_learner(dls, hf.model),' '.join(['warm film']*6)
    content = hf.tokenizer(text, add_special_tokens=False)['input_ids']
    first,last = hf.tokenizer('')['input_ids']
    windows = [torch.tensor([[first, *content[i:i+6], last]]) for i in range(0, len(content), 6)]
    assert len(windows) > 1
    with torch.no_grad(): states = [hf.model.eval().base_model(o).last_hidden_state[0] for o in windows]
    np.testing.assert_allclose(learn.hf_embed([text, 'warm'])[0], torch.cat(states).mean(0), **close)


def test_vectors_of_length_1(learn):
    found = learn.hf_embed(TEXTS, normalize=True)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    plain = learn.hf_embed(TEXTS)
    np.testing.assert_allclose(found, plain/np.linalg.norm(plain, axis=1, keepdims=True), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('precision', ['bf16', 'int8'])
def test_lower_precision_is_close(precision, learn):
    a,b = learn.hf_embed(TEXTS, normalize=True),learn.hf_embed(TEXTS, precision=precision, normalize=True)
    assert 0 < np.abs(a - b).max() < .05
    assert (a*b).sum(1).min() > .99


def test_weights_in_16_bits_give_vectors_in_32(learn):
    a = learn.hf_embed(TEXTS, normalize=True)
    learn.model.bfloat16()
    b = learn.hf_embed(TEXTS, normalize=True)
    assert b.dtype == np.float32
    assert (a*b).sum(1).min() > .99


def test_adapters_are_part_of_the_body(df):
    peft = pytest.importorskip('peft')
    hf = make_objects()
    dls = HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', bs=8, seed=0, device='cpu')
    learn = hf_learner(dls, hf.model, peft_config=peft.LoraConfig(target_modules='all-linear', init_lora_weights=False))
    learn.model.train()
    found = learn.hf_embed(TEXTS)
    learn.model.eval()
    same(found, learn.model.get_base_model().base_model, hf.tokenizer, TEXTS)
    with learn.model.disable_adapter(): assert np.abs(found - learn.hf_embed(TEXTS)).max() > 1e-3
    int8 = learn.hf_embed(TEXTS, precision='int8')
    assert np.abs(found - int8).max() < .2


def test_learned_prompts_are_refused(df):
    peft = pytest.importorskip('peft')
    hf = make_objects()
    dls = HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', bs=8, seed=0, max_length=60, device='cpu')
    learn = hf_learner(dls, hf.model, peft_config=peft.PromptTuningConfig(num_virtual_tokens=2, task_type='SEQ_CLS'))
    with pytest.raises(ValueError, match=mentions('model=')): learn.hf_embed(TEXTS)


def test_threads_that_embed_and_predict_with_a_model_in_training_mode(learn):
    for o in learn.model.modules():
        if isinstance(o, torch.nn.Dropout): o.p = .5
    learn.model.train()
    expected,preds = learn.hf_embed(TEXTS),[o['score'] for o in learn.hf_predict(TEXTS)]
    def embed(): return learn.hf_embed(TEXTS, batch_tokens=128)
    def predict(): return [o['score'] for o in learn.hf_predict(TEXTS, batch_tokens=128)]
    for i,o in enumerate(in_threads([embed, predict]*8, 4)):
        np.testing.assert_allclose(o, preds if i%2 else expected, rtol=0, atol=1e-5)
    assert all(o.training for o in learn.model.modules())


def test_what_cannot_be_embedded_is_refused(learn):
    for arg,value in dict(pooling='average', batch_tokens=0, precision='fp8').items():
        with pytest.raises(ValueError, match=mentions(f'{arg}={value!r}')): learn.hf_embed(TEXTS, **{arg: value})
    with pytest.raises(ValueError, match=mentions('texts[1]', '2 of 4')): learn.hf_embed(['a', 3, 'b', None])
    with pytest.raises(ValueError, match=mentions('texts=DataFrame(...)')): learn.hf_embed(make_texts(3))
    learn.model = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match=mentions('model=Linear(...)')): learn.hf_embed(TEXTS)


def test_a_body_with_fewer_states_than_tokens_is_refused():
    learn = make_learner('funnel', 'sequence-classification')
    with pytest.raises(ValueError, match=mentions("pooling='mean'")): learn.hf_embed(TEXTS)


def test_an_onnx_file_is_refused(learn, tmp_path):
    for o in ('onnx', 'onnxruntime', 'onnxscript'): pytest.importorskip(o)
    from blurlike.all import load_hf_learner
    learn.export_onnx(tmp_path/'model')
    exported = load_hf_learner(tmp_path/'model')
    with pytest.raises(ValueError, match=mentions('model=OnnxModel(...)')): exported.hf_embed('a')
    with pytest.raises(OSError, match=mentions('checkpoint=')): HFEmbedder(tmp_path/'model')


# ---- checkpoints

@pytest.fixture
def folder(tmp_path):
    "A function that saves a model, and its tokenizer"
    def folder(arch, auto_model=AutoModel):
        hf = make_objects(arch, auto_model=auto_model)
        hf.tokenizer.model_max_length = 64
        for o in (hf.model, hf.tokenizer): o.save_pretrained(tmp_path/arch)
        return tmp_path/arch
    return folder


@pytest.mark.parametrize(('arch', 'saved'), [('bert', AutoModel), ('gpt2', AutoModel), ('roberta', AutoModel),
                                             ('t5', AutoModelForSeq2SeqLM), ('t5', AutoModelForTextEncoding),
                                             ('bart', AutoModelForSeq2SeqLM), ('distilbert', AutoModel)])
def test_a_checkpoint_without_a_learner(arch, saved, folder, capsys):
    path = folder(arch, saved)
    embed = HFEmbedder(path, device='cpu')
    model = saved.from_pretrained(path).eval()
    body = model.get_encoder() if arch in ('t5', 'bart') else model
    same(embed(TEXTS), body, embed.block.hf_tokenizer, TEXTS, max_length=embed.block.max_length)
    assert capsys.readouterr().out == ''


def test_the_body_of_a_classifier(learn, tmp_path, capsys):
    folder = learn.save_pretrained(tmp_path/'model')
    np.testing.assert_allclose(HFEmbedder(folder, device='cpu')(TEXTS), learn.hf_embed(TEXTS), **close)
    assert 'classifier' not in capsys.readouterr().out


def test_missing_weights_are_refused(folder):
    from safetensors.torch import load_file, save_file
    path = folder('bert')
    weights = load_file(path/'model.safetensors')
    save_file({k: v for k,v in weights.items() if 'layer.1' not in k}, path/'model.safetensors', dict(format='pt'))
    with pytest.raises(ValueError, match=mentions('checkpoint=', str(path))): HFEmbedder(path)
    with pytest.raises(OSError, match=mentions("checkpoint='nowhere'")): HFEmbedder('nowhere')


def test_the_files_of_sentence_transformers_are_followed(folder):
    path = folder('bert')
    (path/'1_Pooling').mkdir()
    (path/'1_Pooling'/'config.json').write_text(json.dumps(dict(pooling_mode_max_tokens=True)))
    (path/'sentence_bert_config.json').write_text(json.dumps(dict(max_seq_length=7)))
    embed = HFEmbedder(path, device='cpu')
    tokenizer = embed.block.hf_tokenizer
    same(embed(TEXTS), embed.model, tokenizer, TEXTS, pooling='max', max_length=7)
    same(HFEmbedder(path, 'cls', max_length=9, device='cpu')(TEXTS), embed.model, tokenizer, TEXTS, pooling='cls',
         max_length=9)
    (path/'1_Pooling'/'config.json').write_text(json.dumps(dict(pooling_mode=['mean', 'max'])))
    with pytest.raises(ValueError, match=mentions('checkpoint=', "'mean'", "'max'")): HFEmbedder(path)


def test_more_layers_of_sentence_transformers_are_named(folder):
    path = folder('bert')
    types = [f'sentence_transformers.models.{o}' for o in ('Transformer', 'Pooling', 'Dense', 'Normalize')]
    (path/'modules.json').write_text(json.dumps([dict(idx=i, type=o) for i,o in enumerate(types)]))
    with pytest.raises(ValueError, match=mentions('checkpoint=', "'Dense'")): HFEmbedder(path)
    assert HFEmbedder(path, 'mean', device='cpu')(TEXTS).shape == (len(TEXTS), 32)


def test_adapters_without_a_model_are_named(tmp_path):
    (tmp_path/'adapter_config.json').write_text('{"peft_type": "LORA"}')
    with pytest.raises(ValueError, match=mentions('checkpoint=', str(tmp_path), 'load_hf_learner')):
        HFEmbedder(tmp_path)


def test_minilm_is_what_sentence_transformers_computes():
    st = pytest.importorskip('sentence_transformers')
    texts = [*TEXTS[:5], ' '.join(TEXTS), '', 'Zoë 🎬']
    expected = st.SentenceTransformer(str(minilm_checkpoint()), device='cpu').encode(texts)
    embed = HFEmbedder(minilm_checkpoint(), device='cpu')
    np.testing.assert_allclose(embed(texts), expected, **close)
    assert np.linalg.norm(embed(texts, normalize=False), axis=1).max() > 1.01


# ---- search

@pytest.fixture(scope='module')
def index():
    texts = pd.Series(TEXTS, index=[f'row {i}' for i in range(len(TEXTS))])
    return HFIndex(texts, make_learner('bert', 'sequence-classification'))


def test_the_best_row_is_first(index):
    for i in (0, 7, 39):
        found = index.most_similar(TEXTS[i], k=len(TEXTS))
        assert list(found.columns) == ['text', 'score']
        assert TEXTS[i] == found.text.iloc[0] == found.text[f'row {i}']
        assert found.score.iloc[0] == pytest.approx(1, abs=1e-5)
        assert found.score.is_monotonic_decreasing
        vectors = index.vectors
        np.testing.assert_allclose(found.score[index.texts.index], vectors @ vectors[i], rtol=0, atol=1e-5)


def test_what_cannot_be_searched_is_refused(index):
    with pytest.raises(ValueError, match=mentions('k=0')): index.most_similar('a', k=0)
    with pytest.raises(ValueError, match=mentions('query=', "'a'")): index.most_similar(['a', 'b'])
    for texts in ('a text', make_texts(3), []):
        with pytest.raises(ValueError, match=mentions('texts=')): HFIndex(texts, index.embed)
    with pytest.raises(ValueError, match=mentions('vectors', 2, 40)): HFIndex(TEXTS, index.embed, np.ones((2, 4)))


def test_any_function_may_embed(index):
    by_length = HFIndex(['a', 'bb', 'ccc'], lambda o: np.ones(2) if isinstance(o, str) else [[1, len(t)] for t in o])
    assert by_length.most_similar('x').text.tolist() == ['a', 'bb', 'ccc']
    assert len(HFIndex(TEXTS, index.embed, index.vectors)) == len(TEXTS)


def test_a_stored_length_that_counts_special_positions(tmp_path):
    hf = make_objects('roberta', auto_model=AutoModel, max_position_embeddings=66)
    for o in (hf.model, hf.tokenizer): o.save_pretrained(tmp_path)
    (tmp_path/'sentence_bert_config.json').write_text(json.dumps(dict(max_seq_length=66)))
    assert HFEmbedder(tmp_path).block.max_length == position_limit(hf.model) < 66
    (tmp_path/'sentence_bert_config.json').write_text(json.dumps(dict(max_seq_length=9)))
    assert HFEmbedder(tmp_path).block.max_length == 9


def test_settings_that_cannot_be_downloaded_are_not_guessed(monkeypatch):
    def cached(*args):
        try: raise LocalEntryNotFoundError('offline')
        except LocalEntryNotFoundError as e: raise OSError('cannot connect') from e
    monkeypatch.setattr('blurlike.embed.cached_file', cached)
    with pytest.raises(OSError, match=mentions('ada/model', 'pooling=', 'max_length=')): HFEmbedder('ada/model')
