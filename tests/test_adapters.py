"Adapters of peft: the base stays as it is, and what was trained is what is saved."
import json
import os
import re
import shutil
import sys
import time
from types import SimpleNamespace

import bitsandbytes
import pytest
import torch
from conftest import make_config, make_objects, make_texts, mentions
from fastai.callback.core import Callback
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from hub_server import serving
from peft import (
    IA3Config,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from test_hub import Process
from test_matrix import ASKS, CELLS, CONFIGS, LIMITS, ROWS, WRITING, Gradients, assert_same, make_dls
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, BitsAndBytesConfig, pipeline
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from blurlike.all import (
    HFCallback,
    HFCheckpoint,
    HFObjects,
    HFTextDataLoaders,
    find_batch_size,
    hf_learner,
    hf_splitter,
    load_hf_learner,
)
from blurlike.core.objects import inner_model
from blurlike.scale import score
from blurlike.ship import hub

TEXTS = ['the film warm', 'the plot dull the cast sour']


def save_base(folder, model, tokenizer):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def base(hf, tmp_path):
    "The folder of a model with its tokenizer"
    return save_base(tmp_path/'base', hf.model, hf.tokenizer)


@pytest.fixture
def dls(df, base):
    "Rows that leave room for learned tokens"
    return HFTextDataLoaders.from_df(df, base, valid_col='is_valid', bs=8, seed=0, device='cpu', max_length=61)


def lora(**kwargs): return LoraConfig(**dict(r=4, target_modules=['query', 'value']) | kwargs)
def model_of(base): return AutoModelForSequenceClassification.from_pretrained(base)


def run(learn, f):
    "Run `f` on a learner without output"
    with learn.no_bar(), learn.no_logging(): f(learn)
    return learn


def tune(learn): return run(learn, lambda o: o.fine_tune(1, 1e-2))
def trainable(model): return {n for n,p in model.named_parameters() if p.requires_grad}
def state(model): return {n: p.detach().clone() for n,p in model.named_parameters()}
def probs(learn): return [o['probs'] for o in learn.hf_predict(TEXTS)]


def moved(before, model):
    "The names of the parameters whose values or dtypes have changed"
    return {n for n,p in model.named_parameters() if p.dtype!=before[n].dtype or not torch.equal(p, before[n])}


# ---- three faults of models with adapters

FREEZING = [lambda o: o.freeze(), lambda o: o.unfreeze(), lambda o: o.freeze_to(1), lambda o: o.freeze_to(-2),
            lambda o: o.fine_tune(1, 1e-2), lambda o: o.fit_one_cycle(1, slice(1e-4, 1e-2))]


@pytest.mark.filterwarnings('ignore:Freezing')
@pytest.mark.parametrize('plain', [False, True])
def test_freezing_never_wakes_the_base(dls, hf, plain):
    model = get_peft_model(hf.model, lora(task_type='SEQ_CLS'))
    names,before = trainable(model),state(model)
    learn = (Learner(dls, model, CrossEntropyLossFlat(), cbs=[HFCallback], splitter=hf_splitter) if plain
             else hf_learner(dls, model))
    for f in FREEZING:
        run(learn, f)
        assert trainable(model) <= names
    run(learn, lambda o: o.unfreeze())
    assert trainable(model)==names
    assert moved(before, model)==names


def test_what_fine_tune_learned_is_what_is_saved(dls, base, tmp_path):
    learn = tune(hf_learner(dls, get_peft_model(model_of(base), lora(task_type='SEQ_CLS'))))
    again = load_hf_learner(learn.save_pretrained(tmp_path/'adapter'), device='cpu')
    assert_same(learn.hf_predict(TEXTS), again.hf_predict(TEXTS))


def test_an_adapter_does_not_replace_a_whole_model(dls, base):
    learn = hf_learner(dls, lora=True)
    before = (base/'model.safetensors').read_bytes()
    with pytest.raises(FileExistsError, match=mentions('path=', base, 'merge=True')): learn.save_pretrained(base)
    assert (base/'model.safetensors').read_bytes()==before
    assert not (base/'adapter_config.json').exists()


# ---- every task

def assert_close(a, b):
    "Assert that predictions are equal, up to rounding; perplexities may be large numbers"
    if isinstance(a, float): assert a==pytest.approx(b, rel=1e-5, abs=1e-5)
    elif isinstance(a, dict): assert_close(list(a.items()), list(b.items()))
    elif isinstance(a, (list, tuple)):
        for x,y in zip(a, b, strict=True): assert_close(x, y)
    else: assert a==b


ARCHS = 'bert', 't5', 'gpt2', 'modernbert'


def adapted_learner(arch, task, folder, dtype=torch.float32, **kwargs):
    "A learner with an adapter on a base in `folder`, a LoRA adapter by default"
    config,tokenizer = make_config(arch, **CONFIGS.get((arch, task), CONFIGS.get(task, {})))
    tokenizer.model_max_length = 61 # leaves room for learned tokens
    dls = make_dls(task, HFObjects(arch, config, tokenizer, None))
    for k,v in dls.hf_block.task.config_kwargs(dls).items(): setattr(config, k, v)
    torch.manual_seed(0)
    auto_model = dls.hf_block.task.auto_model
    save_base(folder, auto_model.from_config(config), tokenizer)
    model = auto_model.from_pretrained(folder, dtype=dtype)
    return hf_learner(dls, model, metrics=[], **kwargs or dict(lora=True))


@pytest.mark.parametrize(('arch', 'task'), [o for o in CELLS if o[0] in ARCHS and o not in LIMITS])
def test_each_task_trains_saves_loads_and_merges(arch, task, tmp_path):
    learn = adapted_learner(arch, task, tmp_path/'base')
    before = state(learn.model)
    changed = moved(before, tune(learn).model)
    assert any('lora_' in o for o in changed)
    assert all('lora_' in o or '.modules_to_save.' in o for o in changed)
    texts = ASKS.get(task, lambda xs, _: xs)(ROWS[task][0], learn.dls.hf_block.hf_tokenizer)
    expected = learn.hf_predict(texts, many=True)
    for merge in (False, True):
        folder = learn.save_pretrained(tmp_path/f'merge={merge}', merge=merge)
        assert (folder/'config.json').exists()==merge
        assert_close(load_hf_learner(folder, device='cpu').hf_predict(texts, many=True), expected)
    assert not moved(before, learn.model) - changed


def test_a_language_model_generates_the_same_after_loading(tmp_path):
    learn = tune(adapted_learner('t5', 'translation', tmp_path/'base'))
    again = load_hf_learner(learn.save_pretrained(tmp_path/'adapter'), device='cpu')
    assert learn.hf_generate(TEXTS)==again.hf_generate(TEXTS)


# ---- options

def test_options_that_do_not_fit_are_refused(dls, base):
    with pytest.raises(ValueError, match=mentions('lora=True', 'peft_config=')):
        hf_learner(dls, lora=True, peft_config=lora())
    with pytest.raises(TypeError, match=mentions('peft_config=', "{'r': 8}")): hf_learner(dls, peft_config={'r': 8})
    with pytest.raises(TypeError, match=mentions('lora=LoraConfig', 'peft_config=')): hf_learner(dls, lora=lora())
    with pytest.raises(TypeError, match=mentions('lora=8')): hf_learner(dls, lora=8)
    adapted = get_peft_model(model_of(base), lora(task_type='SEQ_CLS'))
    with pytest.raises(ValueError, match=mentions('model=', 'lora=')): hf_learner(dls, adapted, lora=True)
    with pytest.raises(ValueError, match=mentions("target_modules=['nowhere']", 'BertForSequenceClassification',
                                                  "'query'", "'dense'")):
        hf_learner(dls, peft_config=lora(target_modules=['nowhere']))
    with pytest.raises(ValueError, match=mentions('gradient_checkpointing=True', 'Identity')):
        hf_learner(dls, nn.Identity(), gradient_checkpointing=True)


def test_a_line_names_target_modules_that_the_model_lacks(dls, capsys):
    learn = hf_learner(dls, peft_config=lora(target_modules=['query', 'vlaue']))
    assert any('query' in o for o in trainable(learn.model))
    assert "has no 'vlaue'" in capsys.readouterr().out
    hf_learner(dls, peft_config=lora())
    assert 'target_modules' not in capsys.readouterr().out


def test_without_peft_the_error_names_the_extra(dls, monkeypatch):
    monkeypatch.setitem(sys.modules, 'peft', None)
    with pytest.raises(ImportError, match=mentions('peft', 'blurlike[peft]')): hf_learner(dls, lora=True)


def test_a_configuration_is_not_changed(dls):
    config = lora()
    before = str(config)
    assert hf_learner(dls, peft_config=config).model.peft_config['default'].modules_to_save
    assert str(config)==before


def test_the_default_rate_is_higher_with_adapters(dls):
    assert hf_learner(dls, lora=True).lr > hf_learner(dls).lr
    assert hf_learner(dls, lora=True, lr=1e-4).lr==1e-4


def test_fine_tune_does_not_starve_the_adapters(dls):
    learn = tune(hf_learner(dls, lora=True))
    assert [o['lr'] for o in learn.opt.hypers]==pytest.approx([learn.opt.hypers[-1]['lr']])
    assert max(learn.recorder.hps['lr'])==pytest.approx(5e-3, rel=.01)


def test_the_summary_counts_trainable_and_all_parameters(dls):
    learn = hf_learner(dls, lora=True)
    sizes = [(p.numel(), p.requires_grad) for p in learn.model.parameters()]
    train = sum(n for n,on in sizes if on)
    text = learn.summary()
    assert f'Total trainable params: {train:,}' in text
    kept = sum(p.numel() for n,p in learn.model.named_parameters() if 'original_module' in n) # is never called
    assert f'Total params: {sum(n for n,_ in sizes) - kept:,}' in text


@pytest.mark.parametrize('config', [
    IA3Config(), PromptTuningConfig(num_virtual_tokens=3, task_type='SEQ_CLS'), lora(use_dora=True), lora(bias='all')],
    ids=['ia3', 'prompts', 'dora', 'bias'])
def test_other_kinds_of_adapters_train_and_load(dls, base, config, tmp_path):
    learn = hf_learner(dls, peft_config=config)
    names,before = trainable(learn.model),state(learn.model)
    assert moved(before, tune(learn).model)==names
    again = load_hf_learner(learn.save_pretrained(tmp_path/'adapter'), device='cpu')
    assert_same(probs(learn), probs(again))


def test_prompts_cannot_be_merged(dls, tmp_path):
    learn = hf_learner(dls, peft_config=PromptTuningConfig(num_virtual_tokens=3, task_type='SEQ_CLS'))
    with pytest.raises(ValueError, match=mentions('merge=True')): learn.save_pretrained(tmp_path/'whole', merge=True)


def test_an_adapter_with_a_name_of_its_own_is_saved_as_others_are(dls, base, tmp_path):
    model = get_peft_model(model_of(base), lora(task_type='SEQ_CLS'), adapter_name='mine')
    learn = tune(hf_learner(dls, model))
    again = load_hf_learner(learn.save_pretrained(tmp_path/'adapter'), device='cpu')
    assert_same(probs(learn), probs(again))


DTYPES = torch.float32, torch.bfloat16


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('precision', ['int8', 'bf16'])
def test_predictions_in_other_precisions(df, body, precision, dtype):
    dls = HFTextDataLoaders.from_df(df, body, valid_col='is_valid', bs=8, seed=0, device='cpu') # trains a pooler too
    learn = tune(hf_learner(dls, lora=True, model_kwargs=dict(dtype=dtype)))
    for a,b in zip(learn.hf_predict(TEXTS, precision=precision), probs(learn), strict=True):
        assert a['probs']==pytest.approx(b, abs=.02)


@pytest.mark.parametrize('dtype', DTYPES)
def test_an_onnx_file_has_the_adapter_in_it(df, body, dtype, tmp_path):
    dls = HFTextDataLoaders.from_df(df, body, valid_col='is_valid', bs=8, seed=0, device='cpu')
    learn = tune(hf_learner(dls, lora=True, model_kwargs=dict(dtype=dtype)))
    exported = probs(load_hf_learner(learn.export_onnx(tmp_path/'onnx')))
    for a,b in zip(exported, probs(learn), strict=True):
        assert a==pytest.approx(b, abs=1e-5 if dtype is torch.float32 else .02)


# ---- embeddings that are also the weights of the output layer

def predicted(learn, task):
    return learn.hf_predict(ASKS.get(task, lambda xs, _: xs)(ROWS[task][0], learn.dls.hf_block.hf_tokenizer), many=True)


TIED = [dict(target_modules=['wte', 'c_attn']), dict(target_modules=['wte'], ensure_weight_tying=True),
        dict(target_modules=['wte', 'lm_head']), dict(target_modules=['lm_head']), dict(target_modules=['c_attn']),
        dict(target_modules=['c_attn'], modules_to_save=['wte']),
        dict(target_modules=['c_attn'], modules_to_save=['wte'], ensure_weight_tying=True),
        dict(target_modules=['c_attn'], trainable_token_indices=[3, 4])]


@pytest.mark.filterwarnings('ignore:Model has')
@pytest.mark.parametrize('config', TIED, ids=str)
def test_a_merged_model_with_tied_embeddings_predicts_the_same(config, tmp_path):
    learn = tune(adapted_learner('gpt2', 'causal-lm', tmp_path/'base', peft_config=LoraConfig(r=4, **config)))
    folder = learn.save_pretrained(tmp_path/'whole', merge=True)
    assert_close(predicted(load_hf_learner(folder, device='cpu'), 'causal-lm'), predicted(learn, 'causal-lm'))


@pytest.mark.filterwarnings('ignore:Model has')
@pytest.mark.parametrize(('arch', 'task', 'target'), [('t5', 'translation', 'embed_tokens'),
                                                      ('bert', 'masked-lm', 'word_embeddings')])
def test_tied_embeddings_that_cannot_be_saved_apart_are_refused(arch, task, target, tmp_path):
    config = LoraConfig(r=4, target_modules=[target])
    learn = tune(adapted_learner(arch, task, tmp_path/'base', peft_config=config))
    with pytest.raises(ValueError, match=r'merge=True.*(embed_tokens|word_embeddings|shared)'):
        learn.save_pretrained(tmp_path/'whole', merge=True)
    again = load_hf_learner(learn.save_pretrained(tmp_path/'adapter'), device='cpu')
    assert_close(predicted(again, task), predicted(learn, task))


@pytest.mark.filterwarnings('ignore:Model has')
@pytest.mark.parametrize('tying', [False, True])
def test_tied_embeddings_in_16_bits_train(tying, tmp_path):
    config = LoraConfig(r=4, target_modules=['c_attn'], modules_to_save=['wte'], ensure_weight_tying=tying)
    learn = adapted_learner('gpt2', 'causal-lm', tmp_path/'base', torch.bfloat16, peft_config=config)
    names,before = trainable(learn.model),state(learn.model)
    assert moved(before, tune(learn).model)==names
    assert {before[o].dtype for o in names}=={torch.float32}
    assert {before[o].dtype for o in before.keys() - names}=={torch.bfloat16}
    again = load_hf_learner(learn.save_pretrained(tmp_path/'adapter'), device='cpu')
    assert_close(predicted(again, 'causal-lm'), predicted(learn, 'causal-lm'))


# ---- modules that the checkpoint lacks

@pytest.fixture
def body(hf, tmp_path):
    "The folder of a body without a pooler"
    return save_base(tmp_path/'body', AutoModel.from_config(hf.config, add_pooling_layer=False), hf.tokenizer)


def test_a_random_pooler_is_saved_with_the_adapter(df, body, tmp_path):
    dls = HFTextDataLoaders.from_df(df, body, valid_col='is_valid', bs=8, seed=0, device='cpu')
    learn = tune(hf_learner(dls, lora=True))
    torch.manual_seed(1)
    again = load_hf_learner(learn.save_pretrained(tmp_path/'adapter'), device='cpu')
    assert_same(probs(learn), probs(again))


def test_a_random_pooler_that_is_not_saved_is_refused(df, body):
    dls = HFTextDataLoaders.from_df(df, body, valid_col='is_valid', bs=8, seed=0, device='cpu')
    model = get_peft_model(hf_learner(dls).model, lora(task_type='SEQ_CLS'))
    with pytest.raises(ValueError, match=mentions('model=', 'modules_to_save', 'bert.pooler.dense')):
        hf_learner(dls, model)


def test_an_adapter_without_the_pooler_is_refused(df, body, tmp_path):
    dls = HFTextDataLoaders.from_df(df, body, valid_col='is_valid', bs=8, seed=0, device='cpu')
    model = get_peft_model(model_of(body), lora(task_type='SEQ_CLS'))
    folder = hf_learner(dls, model).save_pretrained(tmp_path/'adapter')
    with pytest.raises(ValueError, match=mentions('pooler')): load_hf_learner(folder)


# ---- learned tokens

PROMPTS = {'prompts': PromptTuningConfig(num_virtual_tokens=3), 'p-tuning': PromptEncoderConfig(num_virtual_tokens=3),
           'prefix': PrefixTuningConfig(num_virtual_tokens=3)}


def reads_prompts(arch, task, kind):
    "Whether learned tokens work, which other cells refuse: encoders have no cache, and decoders need tokens"
    if task in ('masked-lm', 'multiple-choice'): return False
    if task in (*WRITING, 'causal-lm'): return True
    return kind!='prefix' and (arch!='t5' or task=='token-classification')


KINDS = [(a, t, k) for a,t in CELLS if a in ARCHS and (a, t) not in LIMITS for k in PROMPTS]


@pytest.mark.parametrize(('arch', 'task', 'kind'), [o for o in KINDS if reads_prompts(*o)][::2])
def test_learned_tokens_train_and_load(arch, task, kind, tmp_path):
    learn = adapted_learner(arch, task, tmp_path/'base', peft_config=PROMPTS[kind])
    names,before = trainable(learn.model),state(learn.model)
    assert moved(before, tune(learn).model)==names
    again = load_hf_learner(learn.save_pretrained(tmp_path/'adapter'), device='cpu')
    assert_close(predicted(again, task), predicted(learn, task))


@pytest.mark.parametrize(('arch', 'task', 'kind'), [o for o in KINDS if not reads_prompts(*o)][::2])
def test_learned_tokens_that_do_not_work_are_refused(arch, task, kind, tmp_path):
    config = PROMPTS[kind]
    with pytest.raises(ValueError, match=mentions(f'peft_config={type(config).__name__}', 'LoraConfig')):
        adapted_learner(arch, task, tmp_path/'base', peft_config=config)


def test_learned_tokens_need_positions(df, base):
    dls = HFTextDataLoaders.from_df(df, base, valid_col='is_valid', bs=8, device='cpu', max_length=62)
    with pytest.raises(ValueError, match=mentions('max_length=62', 'num_virtual_tokens=3', 'max_length=61')):
        hf_learner(dls, peft_config=PROMPTS['prompts'])


def test_a_prefix_does_not_work_with_gradient_checkpointing(tmp_path):
    options = dict(peft_config=PROMPTS['prefix'], gradient_checkpointing=True)
    with pytest.raises(ValueError, match=mentions('gradient_checkpointing=True', 'PrefixTuningConfig', 'LoraConfig')):
        adapted_learner('gpt2', 'causal-lm', tmp_path/'base', **options)
    options['peft_config'] = PROMPTS['prompts']
    tune(adapted_learner('gpt2', 'causal-lm', tmp_path/'base', **options))


# ---- question answering

def test_peft_drops_token_types_in_question_answering(tmp_path):
    "If this fails, peft passes them on: remove `_with_all_inputs` and `_check_inputs`"
    learn = adapted_learner('bert', 'question-answering', tmp_path/'base')
    dls,ids = learn.dls,torch.arange(4, 12)[None]
    auto_model = dls.hf_block.task.auto_model
    model = get_peft_model(auto_model.from_pretrained(tmp_path/'base'), lora(task_type='QUESTION_ANS'))
    with torch.no_grad():
        a,b = (model.eval()(input_ids=ids, token_type_ids=f(ids)) for f in (torch.zeros_like, torch.ones_like))
    assert torch.equal(a.start_logits, b.start_logits)
    with pytest.raises(ValueError, match=mentions('model=', 'token_type_ids')): hf_learner(dls, model)


# ---- what others read

CLASSES = 'bad', 'good', 'so-so'


@pytest.fixture
def three(df, body):
    "A learner with three classes, on a base without a head"
    df['label'] = [CLASSES[i%3] for i in range(len(df))]
    dls = HFTextDataLoaders.from_df(df, body, valid_col='is_valid', bs=8, seed=0, device='cpu')
    return tune(hf_learner(dls, lora=True))


def softmax_of(model, learn):
    inputs = learn.dls.hf_block.hf_tokenizer(TEXTS, padding=True, return_tensors='pt')
    with torch.no_grad(): return model.eval()(**inputs).logits.softmax(-1).tolist()


def test_the_files_of_an_adapter(three, tmp_path):
    folder = three.save_pretrained(tmp_path/'adapter')
    assert {o.name for o in folder.iterdir()}=={'README.md', 'adapter_config.json', 'adapter_model.safetensors', 'base',
                                                'blurlike.json', 'tokenizer.json', 'tokenizer_config.json'}
    sizes = [sum(p.numel() for p in o) for o in (hf_splitter(three.model)[0], three.model.parameters())]
    assert (folder/'adapter_model.safetensors').stat().st_size < 4*sizes[0] + 10_000 < 4*sizes[1]


def test_pipeline_and_peft_read_an_adapter(three, body, tmp_path):
    folder = three.save_pretrained(tmp_path/'adapter')
    config = AutoConfig.from_pretrained(folder, subfolder='base')
    expected = three.hf_predict(TEXTS)
    inner = AutoModelForSequenceClassification.from_pretrained(folder, config=config)
    theirs = pipeline('text-classification', model=inner, tokenizer=str(folder), device='cpu')(TEXTS)
    assert [o['label'] for o in theirs]==[o['label'] for o in expected]
    assert [o['score'] for o in theirs]==pytest.approx([o['score'] for o in expected], abs=1e-5)
    model = PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(body, num_labels=3), folder)
    assert_same(softmax_of(model, three), probs(three))


def test_pipeline_reads_the_folder_of_an_adapter_with_two_labels(dls, tmp_path):
    learn = tune(hf_learner(dls, lora=True))
    theirs = pipeline('text-classification', model=str(learn.save_pretrained(tmp_path/'adapter')), device='cpu')(TEXTS)
    assert [o['score'] for o in theirs]==pytest.approx([o['score'] for o in learn.hf_predict(TEXTS)], abs=1e-5)


def test_a_merged_model_needs_no_peft(three, tmp_path, monkeypatch):
    folder = three.save_pretrained(tmp_path/'whole', merge=True)
    monkeypatch.setitem(sys.modules, 'peft', None)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert type(model) is type(inner_model(three.model))
    assert_same(softmax_of(model, three), probs(three))
    assert 'peft' not in (folder/'README.md').read_text()


def test_the_code_of_the_card_runs(three, tmp_path):
    folder = three.save_pretrained(tmp_path/'adapter')
    card = (folder/'README.md').read_text()
    assert 'library_name: peft' in card
    codes = [o.partition('```')[0] for o in card.split('```python\n')[1:]]
    assert len(codes)==2
    for o in codes: exec(o.replace('PATH', str(folder)), {})


# ---- loading

def test_a_loaded_adapter_trains_on(dls, base, tmp_path):
    folder = tune(hf_learner(dls, lora=True)).save_pretrained(tmp_path/'adapter')
    learn = load_hf_learner(folder, dls=dls)
    names,before = trainable(learn.model),state(learn.model)
    assert names=={n for n in before if 'lora_' in n or '.modules_to_save.' in n}
    assert moved(before, tune(learn).model)==names
    assert_same(probs(learn), probs(load_hf_learner(learn.save_pretrained(folder), device='cpu')))
    saved = json.loads((folder/'adapter_config.json').read_text())['modules_to_save']
    assert len(saved)==len(set(saved))


def test_the_outputs_follow_the_order_of_the_data(df, dls, base, tmp_path):
    learn = tune(hf_learner(dls, lora=True))
    folder = learn.save_pretrained(tmp_path/'adapter')
    other = HFTextDataLoaders.from_df(df, base, valid_col='is_valid', bs=8, device='cpu', vocab=['good', 'bad'])
    assert_same([o[::-1] for o in probs(load_hf_learner(folder, dls=other))], probs(learn))


def test_a_base_that_is_missing_is_named(dls, base, tmp_path):
    folder = hf_learner(dls, lora=True).save_pretrained(tmp_path/'adapter')
    shutil.rmtree(base)
    with pytest.raises(OSError, match=mentions(folder, 'base_model_name_or_path=', base)): load_hf_learner(folder)


@pytest.mark.parametrize('own', [True, False])
def test_a_base_on_the_hub_that_cannot_be_reached_is_named(dls, tmp_path, own):
    folder = hf_learner(dls, lora=True).save_pretrained(tmp_path/'adapter')
    if not own: shutil.rmtree(folder/'base')
    info = json.loads((folder/'adapter_config.json').read_text())
    (folder/'adapter_config.json').write_text(json.dumps(info | dict(base_model_name_or_path='ada/no-such-base')))
    with pytest.raises(OSError, match=mentions(folder, "base_model_name_or_path='ada/no-such-base'")):
        load_hf_learner(folder)


@pytest.mark.parametrize('missing', ['adapter_model.safetensors', 'tokenizer.json'])
def test_an_incomplete_adapter_is_refused(dls, tmp_path, missing):
    folder = hf_learner(dls, lora=True).save_pretrained(tmp_path/'adapter')
    (folder/missing).unlink()
    if missing=='tokenizer.json': (folder/'tokenizer_config.json').unlink()
    with pytest.raises(FileNotFoundError, match=mentions(folder, missing)): load_hf_learner(folder)


def test_an_adapter_that_another_program_saved_is_loaded(dls, base, hf, tmp_path):
    learn = tune(hf_learner(dls, lora=True))
    learn.model.save_pretrained(tmp_path/'adapter')
    hf.tokenizer.save_pretrained(tmp_path/'adapter')
    assert_same(probs(load_hf_learner(tmp_path/'adapter', device='cpu')), probs(learn))


def test_a_relative_base_is_found_from_elsewhere(dls, base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    learn = hf_learner(dls, model_of('base'), lora=True)
    learn.save_pretrained('adapter')
    monkeypatch.chdir('/')
    assert_same(probs(load_hf_learner(tmp_path/'adapter', device='cpu')), probs(learn))


# ---- folders

def test_a_base_that_was_trained_is_saved_merged(dls, base, tmp_path):
    model = tune(hf_learner(dls, model_of(base))).model
    learn = tune(hf_learner(dls, model, lora=True))
    with pytest.raises(ValueError, match=mentions('merge=True', base)): learn.save_pretrained(tmp_path/'adapter')
    assert_same(probs(load_hf_learner(learn.save_pretrained(tmp_path/'whole', merge=True), device='cpu')), probs(learn))


def test_a_model_without_a_checkpoint_is_saved_merged(df, hf, tmp_path):
    dls = HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', bs=8, device='cpu')
    learn = tune(hf_learner(dls, hf.model, lora=True))
    with pytest.raises(ValueError, match=mentions('merge=True')): learn.save_pretrained(tmp_path/'adapter')
    assert not (tmp_path/'adapter').exists()
    assert_same(probs(load_hf_learner(learn.save_pretrained(tmp_path/'whole', merge=True), device='cpu')), probs(learn))


def test_a_merged_model_replaces_an_adapter_and_keeps_other_files(dls, tmp_path):
    learn = hf_learner(dls, lora=True)
    folder = learn.save_pretrained(tmp_path/'model')
    (folder/'notes.md').write_text('mine')
    learn.save_pretrained(folder)
    learn.save_pretrained(folder, merge=True)
    assert {'adapter_config.json', 'adapter_model.safetensors', 'base'}.isdisjoint(os.listdir(folder))
    assert (folder/'notes.md').read_text()=='mine'
    assert_same(probs(load_hf_learner(folder, device='cpu')), probs(learn))


@pytest.fixture(scope='module')
def on_hub(tmp_path_factory):
    "A Hub, a process of a user with a token, and one without"
    with serving() as server:
        both = [Process(server, tmp_path_factory.mktemp('home'), o) for o in ('hf_ada', None)]
        try: yield server,*both
        finally:
            for o in both: o.close()


ON_BASE = """
import pandas as pd
dls = HFTextDataLoaders.from_df(pd.DataFrame(rows), 'ada/base', valid_col='is_valid', bs=8, seed=0, device='cpu')
{}
with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
learn.push_to_hub('ada/adapter')
config = learn.model.peft_config['default']
res = learn.hf_predict(texts),config.base_model_name_or_path,config.revision,str(learn.model_card())
"""
WAYS = {"learn = load_hf_learner('ada/base', dls=dls, lora=True, revision='v1')": 'v1',
        'learn = hf_learner(dls, lora=True)': None}


def test_adapters_are_pushed_to_the_hub_and_pulled_from_it(df, dls, on_hub, tmp_path):
    server,process,reader = on_hub
    folder = str(hf_learner(dls).save_pretrained(tmp_path/'base'))
    rows = df[:16].assign(is_valid=[False]*8 + [True]*8).to_dict('list')
    process("load_hf_learner(folder, device='cpu').push_to_hub('ada/base')", folder=folder)
    refs = server.repos['model', 'ada/base'].refs
    refs['v1'] = refs['main']
    for way,revision in WAYS.items():
        expected,name,rev,card = process(ON_BASE.format(way), rows=rows, texts=TEXTS)
        assert (name, rev)==('ada/base', revision)
        assert 'base_model: ada/base' in card
        code = 'res = load_hf_learner("ada/adapter", device="cpu").hf_predict(texts)'
        assert_same(reader(code, texts=TEXTS), expected)
    with pytest.raises(RuntimeError, match=mentions('FileExistsError', "repo_id='ada/base'", 'merge=True')):
        process("learn.push_to_hub('ada/base')")


@pytest.mark.parametrize('options', [{}, dict(lora=True)])
def test_the_card_names_the_base_of_the_model(dls, base, options):
    "The tokenizer may be that of another checkpoint"
    model = model_of(base)
    model.name_or_path = model.config.name_or_path = 'ada/base'
    dls.hf_block.hf_config.name_or_path = 'ada/tokenizer'
    assert hf_learner(dls, model, **options).model_card().data.base_model=='ada/base'


def test_an_adapter_whose_base_is_a_folder_is_pushed_merged(dls, base, on_hub, tmp_path):
    server,process,_ = on_hub
    learn = tune(hf_learner(dls, lora=True))
    folder = str(learn.save_pretrained(tmp_path/'adapter'))
    push = "load_hf_learner(folder, device='cpu').push_to_hub('ada/whole', merge=merge)"
    with pytest.raises(RuntimeError, match=mentions('ValueError', "repo_id='ada/whole'", base, 'merge=True')):
        process(push, folder=folder, merge=False)
    assert ('model', 'ada/whole') not in server.repos
    process(push, folder=folder, merge=True)
    code = 'res = load_hf_learner("ada/whole", device="cpu").hf_predict(texts)'
    assert_same(process(code, texts=TEXTS), learn.hf_predict(TEXTS))


def test_the_configuration_of_the_base_is_loaded_with_its_revision_and_token(dls, on_hub, tmp_path):
    "An adapter that another program saved has no configuration of its own"
    server,process,reader = on_hub
    learn = tune(hf_learner(dls, lora=True))
    folder,whole = learn.save_pretrained(tmp_path/'adapter'),str(hf_learner(dls).save_pretrained(tmp_path/'whole'))
    shutil.rmtree(folder/'base')
    file,own = folder/'adapter_config.json',dict(base_model_name_or_path='ada/secret', revision='v1')
    file.write_text(json.dumps(json.loads(file.read_text()) | own))
    process("load_hf_learner(folder, device='cpu').push_to_hub('ada/secret', private=True)", folder=whole)
    repo = server.repos['model', 'ada/secret']
    repo.refs |= dict(v1=repo.refs['main'], main=next(iter(repo.commits))) # the main branch is empty
    code = 'res = load_hf_learner(folder, device="cpu"{}).hf_predict(texts)'
    with pytest.raises(RuntimeError, match=mentions('OSError', "base_model_name_or_path='ada/secret'")):
        reader(code.format(''), folder=str(folder), texts=TEXTS)
    answer = reader(code.format(', token="hf_ada"'), folder=str(folder), texts=TEXTS)
    assert_same(answer, learn.hf_predict(TEXTS))


# ---- precision

def test_a_base_in_16_bits_stays_so_while_its_adapter_trains(dls, tmp_path):
    learn = hf_learner(dls, lora=True, model_kwargs=dict(dtype=torch.bfloat16))
    before = state(learn.model)
    names = trainable(learn.model)
    assert {before[o].dtype for o in names}=={torch.float32}
    assert {before[o].dtype for o in before.keys() - names if 'original_module' not in o}=={torch.bfloat16}
    assert moved(before, tune(learn).model)==names
    again = load_hf_learner(learn.save_pretrained(tmp_path/'adapter'), device='cpu')
    assert {p.dtype for n,p in again.model.named_parameters() if 'base_layer' in n}=={torch.bfloat16}
    assert_same(probs(again), probs(learn))


@pytest.mark.parametrize('arch', ['gpt2', 'llama'])
def test_a_language_model_in_16_bits_trains(arch, tmp_path):
    "Its output layer has no adapter, and its logits have 16 bits"
    learn = adapted_learner(arch, 'causal-lm', tmp_path/'base', torch.bfloat16)
    names,before = trainable(learn.model),state(learn.model)
    assert moved(before, tune(learn).model)==names
    assert learn.recorder.losses[-1].dtype==torch.float32


def test_a_model_of_the_user_with_a_base_in_16_bits_trains(dls, base):
    model = get_peft_model(AutoModelForSequenceClassification.from_pretrained(base, dtype=torch.bfloat16),
                           lora(task_type='SEQ_CLS', modules_to_save=['pooler']))
    learn = hf_learner(dls, model)
    names,before = trainable(model),state(model)
    assert {before[o].dtype for o in names}=={torch.float32}
    assert moved(before, tune(learn).model)==names
    assert len(probs(learn))==2


class Linear8(nn.Linear):
    "A linear layer with weights in 8 bits"
    @classmethod
    def of(cls, layer):
        res = cls(layer.in_features, layer.out_features)
        res.scale = layer.weight.abs().max().item()/127
        res.weight = nn.Parameter((layer.weight/res.scale).round().to(torch.int8), requires_grad=False)
        res.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
        return res

    def forward(self, x): return nn.functional.linear(x, self.weight.to(x.dtype)*self.scale, self.bias)


def test_a_base_in_8_bits_stays_as_it_is(dls, base):
    model = model_of(base)
    for m in [o for o in model.bert.modules() if not isinstance(o, nn.Linear)]:
        for n,o in m.named_children():
            if isinstance(o, nn.Linear): setattr(m, n, Linear8.of(o))
    model.is_quantized = True
    learn = hf_learner(dls, model, peft_config=lora())
    names,before = trainable(learn.model),state(learn.model)
    assert torch.int8 in {o.dtype for o in before.values()}
    assert moved(before, tune(learn).model)==names


# transformers' own way to a quantized model, with a quantizer that needs no GPU

@register_quantization_config('eight')
class Eight(QuantizationConfigMixin):
    def __init__(self, **kwargs): self.quant_method = 'eight'


@register_quantizer('eight')
class EightQuantizer(HfQuantizer):
    is_serializable = is_trainable = True

    def _process_model_after_weight_loading(self, model, **kwargs):
        assert not self.pre_quantized # the files have float32 weights
        for m in [o for o in model.bert.modules() if not isinstance(o, nn.Linear)]:
            for n,o in m.named_children():
                if isinstance(o, nn.Linear): setattr(m, n, Linear8.of(o))
        return model


def test_an_adapter_of_a_quantized_base_trains_loads_and_merges_elsewhere(dls, base, tmp_path):
    learn = hf_learner(dls, lora=True, model_kwargs=dict(quantization_config=Eight()))
    names,before = trainable(learn.model),state(learn.model)
    assert inner_model(learn.model).is_quantized
    assert torch.int8 in {o.dtype for o in before.values()}
    assert moved(before, tune(learn).model)==names
    with pytest.raises(ValueError, match=mentions('merge=True', 'PeftModel.from_pretrained')):
        learn.save_pretrained(tmp_path/'whole', merge=True)
    folder = learn.save_pretrained(tmp_path/'adapter')
    again = load_hf_learner(folder, device='cpu')
    assert inner_model(again.model).is_quantized
    assert_same(probs(again), probs(learn))
    model = PeftModel.from_pretrained(model_of(base), folder, is_trainable=True)
    whole = load_hf_learner(hf_learner(dls, model).save_pretrained(tmp_path/'whole', merge=True), device='cpu')
    for a,b in zip(probs(whole), probs(learn), strict=True): assert a==pytest.approx(b, abs=.02)


@pytest.mark.parametrize('bits', [4, 8])
def test_a_head_is_trained_on_a_base_of_bitsandbytes(bits, dls, base, tmp_path):
    how = BitsAndBytesConfig(**{f'load_in_{bits}bit': True}, bnb_4bit_compute_dtype=torch.float32)
    learn = hf_learner(dls, lora=True, model_kwargs=dict(quantization_config=how))
    names,before = trainable(learn.model),state(learn.model)
    kinds = {type(o).__name__ for o in inner_model(learn.model).bert.modules()}
    assert f'Linear{bits}bit' + 'Lt'*(bits==8) in kinds
    assert any('classifier' in o for o in names)
    assert moved(before, tune(learn).model)==names
    again = load_hf_learner(learn.save_pretrained(tmp_path/'adapter'), device='cpu')
    assert inner_model(again.model).is_quantized
    assert_same(probs(again), probs(learn))


def test_a_prediction_leaves_the_gradients_of_a_4_bit_base(df, tmp_path):
    hf = make_objects(hidden_size=64, intermediate_size=64) # multiples of 64, which a kernel without gradients needs
    base = save_base(tmp_path/'base', hf.model, hf.tokenizer)
    dls = HFTextDataLoaders.from_df(df, base, valid_col='is_valid', bs=8, seed=0, device='cpu')
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    for kwargs in (dict(lora=True), dict(peft_config=lora())):
        model = hf_learner(dls, model_kwargs=dict(quantization_config=how), **kwargs).model
        layers = [o for o in model.modules() if isinstance(o, bitsandbytes.nn.Linear4bit)]
        assert layers
        assert not any(o.support_avx512bf16_for_cpu for o in layers) # fails if the attribute has another name
        inputs = dls.one_batch()[0].for_model()
        def gradients(model=model, inputs=inputs):
            torch.manual_seed(0)
            model.train().zero_grad()
            model(**inputs).logits.sum().backward()
            return {n: p.grad.clone() for n,p in model.named_parameters() if p.grad is not None}
        before = gradients()
        with torch.no_grad(): model.eval()(**inputs)
        after = gradients()
        assert before.keys() == after.keys()
        for k,v in before.items(): assert torch.allclose(v, after[k])


# ---- gradient checkpointing

@pytest.mark.parametrize('arch', ['bert', 'llama'])
@pytest.mark.parametrize('how', ['whole', 'frozen', 'adapters'])
def test_gradient_checkpointing_gives_the_same_gradients(df, arch, how):
    grads,hf = [],make_objects(arch)
    dls = HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', bs=8, seed=0, device='cpu')
    batch = dls.one_batch()
    for on in (False, True):
        hf = make_objects(arch)
        torch.manual_seed(0)
        learn = hf_learner(dls, hf.model, lora=how=='adapters', gradient_checkpointing=on)
        assert inner_model(learn.model).is_activation_checkpointing==on
        if how=='frozen': learn.freeze_to(2)
        cb = KeepTraining([batch])
        torch.manual_seed(0)
        run(learn, lambda o, cb=cb: o.fit(1, cbs=cb))
        grads.append(cb.seen)
    assert len(grads[0]) > 0
    assert torch.equal(*grads)


class KeepTraining(Gradients):
    "Gradients with dropout: layers are checkpointed only in training mode"
    def before_train(self): self.learn.dl = self.batches


# ---- checkpoints

class Stop(Callback):
    order = 2000
    def after_step(self):
        if self.train_iter==7: raise KeyboardInterrupt


def test_a_run_with_an_adapter_continues_bit_for_bit(df, base, tmp_path):
    def learner(*cbs):
        dls = HFTextDataLoaders.from_df(df, base, valid_col='is_valid', bs=8, seed=0, device='cpu')
        torch.manual_seed(0)
        return hf_learner(dls, lora=True, cbs=cbs)
    def fit(o):
        torch.manual_seed(0)
        o.fit_one_cycle(2, 1e-2)
    whole = run(learner(), fit)
    with pytest.raises(KeyboardInterrupt): run(learner(HFCheckpoint(tmp_path/'run', every=2), Stop), fit)
    rest = run(learner(HFCheckpoint(tmp_path/'run', every=2)), fit)
    assert not moved(state(whole.model), rest.model)
    assert whole.recorder.values==rest.recorder.values
    weights = sum(p.nbytes for p in whole.model.parameters())
    folder = max((tmp_path/'run').iterdir(), key=lambda o: o.stat().st_mtime)
    assert not (folder/'model.safetensors').exists()
    trained = sum(p.nbytes for p in hf_splitter(whole.model)[0])
    files = [o.stat().st_size for o in folder.glob('*.safetensors')]
    assert sum(files) < 5*trained + 50_000
    assert trained < weights/2


# ---- extras

def test_the_splitter_of_adapters_is_one_group_that_holds_what_is_saved(dls):
    learn = hf_learner(dls, lora=True)
    names = trainable(learn.model)
    learn.model.requires_grad_(False)
    group, = hf_splitter(learn.model)
    assert {n for n,p in learn.model.named_parameters() if any(p is o for o in group)}==names


@pytest.mark.parametrize('find', [lambda o: o.lr_find(show_plot=False, num_it=5),
                                  lambda o: find_batch_size(o, max_bs=4, show=False)], ids=['rate', 'batch size'])
def test_searching_leaves_the_model_as_it_is(dls, find):
    learn = hf_learner(dls, lora=True)
    names,before = trainable(learn.model),state(learn.model)
    run(learn, find)
    assert not moved(before, learn.model)
    assert all(p.grad is None for p in learn.model.parameters())
    assert trainable(learn.model)==names


def test_texts_of_another_length_are_predicted_too(dls):
    learn = tune(hf_learner(dls, lora=True))
    texts = make_texts(9, seed=5).text.tolist()
    assert_same(learn.hf_predict(texts), [learn.hf_predict(o) for o in texts])


def test_the_command_line_trains_an_adapter(df, base, tmp_path, capsys):
    from blurlike.cli import run as cli
    df.to_csv(tmp_path/'rows.csv', index=False)
    args = ['train', str(tmp_path/'rows.csv'), '--checkpoint', str(base), '--valid-col', 'is_valid', '--epochs', '1',
            '--lora']
    assert cli([*args, '--out', str(tmp_path/'adapter')])==0
    assert (tmp_path/'adapter'/'adapter_config.json').exists()
    assert len(load_hf_learner(tmp_path/'adapter', device='cpu').hf_predict(TEXTS))==2
    shutil.copytree(base, tmp_path/'both')
    (tmp_path/'both'/'adapter_config.json').write_text('{}')
    (tmp_path/'both'/'adapter_model.safetensors').touch()
    for out in (base, tmp_path/'both'): # before training
        assert cli([*args, '--out', str(out)])==1
        assert re.search(mentions('--out=', out, 'merge=True'), capsys.readouterr().err)


# ---- what is neither trained nor saved is refused

class Api:
    "A Hub with one repository, to which nothing may be committed"
    def __init__(self, names): self.names = names
    def create_repo(self, repo_id, **kwargs): return SimpleNamespace(repo_id=repo_id)
    def list_repo_files(self, *args, **kwargs): return self.names
    def create_commit(self, *args, **kwargs): raise AssertionError


@pytest.mark.parametrize('name', ['model-00001-of-00002.safetensors', 'pytorch_model.bin', 'consolidated.safetensors',
                                  'pytorch_model-00001-of-00002.bin', 'pytorch_model.safetensors'])
def test_an_adapter_does_not_replace_a_whole_model_on_the_hub(tmp_path, monkeypatch, name):
    (tmp_path/'adapter_config.json').write_text('{}')
    (tmp_path/'adapter_model.safetensors').touch()
    for there in (['config.json', name], ['config.json', name, 'adapter_model.safetensors']):
        monkeypatch.setattr(hub, 'HfApi', lambda there=there, **_: Api(there))
        with pytest.raises(FileExistsError, match=mentions("repo_id='ada/whole'", 'merge=True')):
            hub.push_folder(tmp_path, 'ada/whole')


def test_an_onnx_export_does_not_replace_a_model_on_the_hub(tmp_path, monkeypatch):
    (tmp_path/'config.json').write_text('{}')
    monkeypatch.setattr(hub, 'HfApi', lambda **_: Api(['config.json', 'model.safetensors']))
    with pytest.raises(FileExistsError, match=mentions("repo_id='ada/whole'")): hub.push_folder(tmp_path, 'ada/whole')


def two_groups(model):
    inner = model.get_base_model()
    return [list(inner.bert.parameters()), list(inner.classifier.parameters())]


def test_a_splitter_of_the_user_never_wakes_the_base(dls):
    learn = hf_learner(dls, lora=True, splitter=two_groups)
    names,before = trainable(learn.model),state(learn.model)
    tune(learn)
    assert len(learn.opt.param_lists)==2
    assert trainable(learn.model)==names
    assert moved(before, learn.model)==names


def test_a_splitter_without_adapters_is_refused(dls):
    with pytest.raises(ValueError, match=mentions('splitter=')):
        tune(hf_learner(dls, lora=True, splitter=lambda o: [list(o.get_base_model().bert.embeddings.parameters())]))


def test_a_plain_learner_does_not_train_the_base(dls, base):
    model = get_peft_model(model_of(base), lora(task_type='SEQ_CLS'))
    before = state(model)
    learn = Learner(dls, model, CrossEntropyLossFlat(), cbs=[HFCallback], splitter=two_groups)
    with pytest.raises(ValueError, match=mentions('splitter=hf_splitter')): tune(learn)
    assert not moved(before, model)


def test_a_head_that_is_not_saved_keeps_its_order(df, dls, tmp_path):
    folder = tune(hf_learner(dls)).save_pretrained(tmp_path/'trained')
    other = HFTextDataLoaders.from_df(df, folder, valid_col='is_valid', bs=8, device='cpu', vocab=['good', 'bad'])
    model = get_peft_model(model_of(folder), lora())
    before = state(model)
    with pytest.raises(ValueError, match=mentions("vocab=['bad', 'good']", 'modules_to_save')):
        hf_learner(other, model)
    assert not moved(before, model)
    hf_learner(other, get_peft_model(model_of(folder), lora(modules_to_save=['classifier'])))


def test_a_random_head_that_is_not_saved_is_refused(df, hf, tmp_path):
    folder = save_base(tmp_path/'body', AutoModel.from_config(hf.config), hf.tokenizer)
    dls = HFTextDataLoaders.from_df(df, folder, valid_col='is_valid', bs=8, device='cpu')
    with pytest.raises(ValueError, match=mentions('model=', 'classifier', 'modules_to_save')):
        hf_learner(dls, get_peft_model(model_of(folder), lora()))
    hf_learner(dls, get_peft_model(model_of(folder), lora(modules_to_save=['classifier'])))


def test_a_trained_head_may_stay_as_it_is(dls, base, tmp_path):
    learn = tune(hf_learner(dls, get_peft_model(model_of(base), lora())))
    assert_same(probs(learn), probs(load_hf_learner(learn.save_pretrained(tmp_path/'adapter'), device='cpu')))


@pytest.mark.parametrize('change', [dict(lora_alpha=64), dict(r=2)])
def test_a_run_does_not_continue_with_another_adapter(dls, base, tmp_path, capsys, change):
    def learner(*cbs, **kwargs):
        return hf_learner(dls, peft_config=lora(**dict(lora_alpha=8) | kwargs), cbs=cbs)
    def fit(o): o.fit_one_cycle(1, 1e-2)
    with pytest.raises(KeyboardInterrupt): run(learner(HFCheckpoint(tmp_path/'run', every=2), Stop), fit)
    seen = []
    class Count(Callback):
        def after_step(self): seen.append(self.train_iter)
    with pytest.raises(ValueError, match=mentions(*change, 'resume=False')):
        run(learner(HFCheckpoint(tmp_path/'run', every=2), Count, **change), fit)
    assert not seen


def change_base(base):
    model = model_of(base)
    with torch.no_grad(): model.bert.encoder.layer[0].attention.self.query.weight.add_(.1)
    model.save_pretrained(base)


def test_a_run_does_not_continue_on_another_base(dls, base, tmp_path):
    def learner(): return hf_learner(dls, lora=True, cbs=[HFCheckpoint(tmp_path/'run', every=2), Stop])
    def fit(o): o.fit_one_cycle(1, 1e-2)
    with pytest.raises(KeyboardInterrupt): run(learner(), fit)
    with pytest.raises(KeyboardInterrupt): run(learner(), fit)
    change_base(base)
    with pytest.raises(ValueError, match=mentions('base_weights', 'resume=False')): run(learner(), fit)


def test_scores_of_another_base_are_not_continued(dls, df, base, tmp_path):
    folder = hf_learner(dls, lora=True).save_pretrained(tmp_path/'adapter')
    df[:8].to_csv(tmp_path/'rows.csv', index=False)
    def run_scores(): score(tmp_path/'rows.csv', folder, tmp_path/'scores', prefix='pred_')
    for _ in range(2): run_scores()
    change_base(base)
    with pytest.raises(ValueError, match=mentions('model')): run_scores()


def test_the_time_of_a_checkpoint_is_estimated_from_what_is_saved(dls):
    learn = hf_learner(dls, lora=True)
    learn.model.large = nn.Parameter(torch.empty(0).new_empty(1).expand(10**11), requires_grad=False) # 400 GB
    cb = HFCheckpoint('unused')
    cb.learn,cb.spent,cb.last,cb.began = learn,0,None,time.perf_counter() - 1000
    assert cb.is_due()


@pytest.mark.parametrize('config', [PromptTuningConfig(num_virtual_tokens=3, task_type='SEQ_CLS'), IA3Config()],
                         ids=['prompts', 'ia3'])
def test_all_of_a_loaded_adapter_trains_on(dls, config, tmp_path):
    learn = tune(hf_learner(dls, peft_config=config))
    names = trainable(learn.model)
    again = load_hf_learner(learn.save_pretrained(tmp_path/'adapter'), dls=dls)
    before = state(again.model)
    assert trainable(again.model)==names
    assert moved(before, tune(again).model)==names
    assert_same(probs(again), probs(load_hf_learner(again.save_pretrained(tmp_path/'adapter'), device='cpu')))


def test_adapters_that_transformers_loaded_are_refused(dls, tmp_path):
    folder = hf_learner(dls, lora=True).save_pretrained(tmp_path/'adapter')
    with pytest.raises(ValueError, match=mentions('model=', 'load_hf_learner', 'PeftModel.from_pretrained')):
        hf_learner(dls, AutoModelForSequenceClassification.from_pretrained(folder))


def test_a_configuration_for_another_task_is_refused(dls):
    with pytest.raises(ValueError, match=mentions('peft_config=LoraConfig', 'BertForSequenceClassification')):
        hf_learner(dls, peft_config=lora(task_type='CAUSAL_LM'))


def test_the_revision_of_the_base_is_saved(dls):
    learn = hf_learner(dls, lora=True, model_kwargs=dict(revision='v1'))
    assert learn.model.peft_config['default'].revision=='v1'
