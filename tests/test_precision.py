"Lower precisions predict nearly the same, and an unsupported precision raises."
import re

import pytest
import torch
from conftest import make_objects, mentions
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from transformers import AutoModelForSequenceClassification

from blurlike.all import HFCallback, HFTextDataLoaders, hf_adamw, hf_learner
from blurlike.core.precision import (
    best_precision,
    check_precision,
    evaluating,
    in_int8,
    train_in_fp32,
    without_cudnn_attention,
)

TOLERANCE = dict(fp32=0, bf16=0.02, int8=0.1)


def probs(learn, texts, precision=None):
    return torch.tensor([o['probs'] for o in learn.hf_predict(texts, precision=precision)])


@pytest.mark.parametrize('precision', TOLERANCE)
def test_fewer_bits_agree_with_the_weights(precision, learn, df):
    learn.fit(3, 1e-3)
    off = (probs(learn, df.text.tolist(), precision) - probs(learn, df.text.tolist())).abs().max()
    assert off <= TOLERANCE[precision]
    assert precision == 'fp32' or off > 0


def test_the_model_is_as_it_was(learn, df):
    before = {k: v.clone() for k,v in learn.model.state_dict().items()}
    learn.model.train()
    for o in TOLERANCE: learn.hf_predict(df.text.tolist(), precision=o)
    assert learn.model.training
    assert all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items())
    learn.fit(1)


def test_the_int8_copy_is_made_once_for_given_weights(learn, df):
    texts = df.text.tolist()
    copy = in_int8(learn.model)
    assert in_int8(learn.model) is copy
    old = probs(learn, texts, 'int8')
    learn.fit(2, 1e-2)
    assert in_int8(learn.model) is not copy
    assert (probs(learn, texts, 'int8') - probs(learn, texts)).abs().max() < (old - probs(learn, texts)).abs().max()


def test_no_change_of_the_weights_is_too_small_for_a_new_int8_copy():
    model = make_objects().model
    for p in model.parameters():
        copy = in_int8(model)
        p.data.view(-1)[len(p.data.view(-1))//3] += 1e-3
        assert in_int8(model) is not copy


def test_a_permutation_of_the_weights_gets_a_new_int8_copy():
    model = make_objects().model
    copy,weight = in_int8(model),model.classifier.weight
    weight.data = weight.data.flip(0)
    assert in_int8(model) is not copy


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_the_int8_copy_of_a_model_in_16_bits_follows_its_weights(dtype):
    model = make_objects().model.to(dtype)
    copy = in_int8(model)
    assert in_int8(model) is copy
    with torch.no_grad(): model.classifier.bias[0] += 1
    assert in_int8(model) is not copy


@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
@pytest.mark.parametrize('train', [True, False])
def test_one_line_says_that_a_precision_is_emulated(precision, train, learn, df, monkeypatch, capsys):
    monkeypatch.setattr('blurlike.core.precision.has_native_arithmetic', lambda *args: False)
    for _ in range(2):
        if train: hf_learner(learn.dls, learn.model, precision=precision)
        else: learn.hf_predict(df.text[0], precision=precision)
    line, = capsys.readouterr().out.strip().splitlines()
    assert re.search(mentions(f'precision={precision!r}', "best_precision('cpu')"), line)


def test_fp32_is_refused_for_16_bit_weights(df, hf):
    learn = hf_learner(HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', device='cpu'), hf.model.bfloat16())
    with pytest.raises(ValueError, match=mentions("precision='fp32'", 'bfloat16', 'dtype=torch.float32')):
        learn.hf_predict('the film', precision='fp32')
    assert learn.hf_predict('the film')['probs'] == learn.hf_predict('the film', precision='bf16')['probs']


@pytest.mark.parametrize(('machine', 'amx', 'fast'), [('x86_64', False, False), ('x86_64', True, True),
                                                      ('aarch64', False, True)])
def test_bf16_is_chosen_where_it_is_faster(machine, amx, fast, monkeypatch):
    monkeypatch.setattr('blurlike.core.compat.has_native_arithmetic', lambda *args: True)
    monkeypatch.setattr('platform.machine', lambda: machine)
    monkeypatch.setattr(torch.cpu, '_is_amx_tile_supported', lambda: amx)
    assert best_precision('cpu') == ('bf16' if fast else 'fp32')


def test_nothing_is_said_of_a_native_precision(learn, df, monkeypatch, capsys):
    monkeypatch.setattr('blurlike.core.precision.has_native_arithmetic', lambda *args: True)
    hf_learner(learn.dls, learn.model, precision='bf16')
    learn.hf_predict(df.text[0], precision='bf16')
    assert not capsys.readouterr().out


def test_a_device_may_be_a_string(): assert best_precision('cpu') == best_precision(torch.device('cpu'))


@pytest.mark.parametrize('arch', 'distilbert roberta deberta-v2 albert electra mpnet xlnet opt llama'.split())
def test_architectures_predict_in_8_bits(arch, df):
    hf = make_objects(arch)
    learn = hf_learner(HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', bs=8, device='cpu'), hf.model)
    assert (probs(learn, df.text.tolist(), 'int8') - probs(learn, df.text.tolist())).abs().max() < 0.1


def test_an_unknown_precision_raises(learn):
    pattern = mentions("precision='int4'", "'fp32'", "'bf16'", "'fp16'", "'int8'")
    with pytest.raises(ValueError, match=pattern): learn.hf_predict('a text', precision='int4')


def test_8_bits_need_a_cpu_and_linear_layers(learn):
    with pytest.raises(ValueError, match=mentions('Embedding')): in_int8(torch.nn.Embedding(2, 2))
    on_meta = torch.nn.Linear(2, 2, device='meta')
    with pytest.raises(ValueError, match=mentions("precision='int8'", 'meta')): in_int8(on_meta)


def test_a_precision_that_the_device_does_not_support_raises(learn, monkeypatch):
    def refuse(*args, **kwargs): raise RuntimeError('no such kernel')
    monkeypatch.setattr(torch, 'autocast', refuse)
    pattern = mentions("precision='bf16'", 'cpu', 'no such kernel')
    with pytest.raises(ValueError, match=pattern), evaluating(learn.model, 'bf16'): pass


def test_an_exported_model_keeps_its_precision():
    model = torch.nn.Linear(2, 2)
    model.precision = 'fp32'
    with pytest.raises(ValueError, match=mentions("'fp32'", "'int8'")), evaluating(model, 'int8'): pass
    with evaluating(model, 'fp32') as m: assert m is model


def test_cudnn_attention_is_off_while_a_learner_runs(learn):
    cuda,seen = torch.backends.cuda,[]
    learn.model.register_forward_hook(lambda *_: seen.append(cuda.cudnn_sdp_enabled()))
    learn.fit(1)
    learn.validate()
    learn.hf_predict('a text')
    assert seen
    assert not any(seen)
    assert cuda.cudnn_sdp_enabled()


def test_cudnn_attention_stays_on_if_it_is_the_only_kernel(monkeypatch):
    cuda = torch.backends.cuda
    for o in ('flash_sdp_enabled', 'mem_efficient_sdp_enabled'): monkeypatch.setattr(cuda, o, lambda: False)
    with without_cudnn_attention(): assert cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize('training', [True, False])
def test_making_the_int8_copy_leaves_the_mode(training, learn):
    learn.model.train(training)
    assert not in_int8(learn.model).training
    assert [o.training for o in learn.model.modules()] == [training]*len(list(learn.model.modules()))


# ---- Weights in 16 bits

def plain(dls, model): return Learner(dls, model, CrossEntropyLossFlat(), opt_func=hf_adamw, cbs=HFCallback, lr=5e-5)

def by_hf_learner(dls, model): return hf_learner(dls, model)

def in_bf16(dls, model): return hf_learner(dls, model, precision='bf16')


@pytest.mark.parametrize('make', [plain, by_hf_learner, in_bf16])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_a_model_in_16_bits_is_trained_as_the_same_model_in_32(make, dtype, df, hf, capsys):
    models = [make_objects().model.to(dtype).to(o) for o in (dtype, torch.float32)]
    before = [o.detach().clone().float() for o in models[0].bert.encoder.parameters()]
    for model in models:
        dls = HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', bs=8, seed=0, device='cpu')
        learn = make(dls, model)
        torch.manual_seed(0)
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 2e-5)
    assert all(o.dtype is torch.float32 for o in models[0].parameters())
    for a,b in zip(*(o.parameters() for o in models), strict=True): assert torch.equal(a, b)
    moved = [(a != b).float().mean() for a,b in zip(models[0].bert.encoder.parameters(), before, strict=True)]
    assert min(moved) > 0.9
    assert re.search(mentions('BertForSequenceClassification', str(dtype)[6:], 'float32'), capsys.readouterr().out)


def test_a_model_that_only_predicts_keeps_its_dtype(dls):
    learn = hf_learner(dls, make_objects().model.bfloat16())
    with learn.no_bar(), learn.no_logging(): learn.validate()
    learn.hf_predict('the film')
    assert learn.model.dtype is torch.bfloat16


def test_what_is_saved_after_training_says_that_it_is_float32(dls, tmp_path):
    learn = hf_learner(dls, make_objects().model.bfloat16())
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    again = AutoModelForSequenceClassification.from_pretrained(learn.save_pretrained(tmp_path/'model'), dtype='auto')
    assert again.dtype is torch.float32


def test_a_frozen_base_of_adapters_stays_in_16_bits():
    model = make_objects().model.half()
    model.peft_config = dict(default=None) # as peft marks its models
    model.bert.requires_grad_(False)
    assert train_in_fp32(model) is torch.float16
    assert {o.dtype for o in model.bert.parameters()} == {torch.float16}
    assert {o.dtype for o in model.classifier.parameters()} == {torch.float32}


def test_a_check_draws_no_random_numbers():
    before = torch.get_rng_state()
    for o in ('bf16', 'fp32'): check_precision(o, torch.device('cpu'))
    assert torch.equal(torch.get_rng_state(), before)
