"Adapters of peft: the base stays as it is, and what was trained is what is saved."
import json
import os
import shutil
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import make_config, make_objects, make_texts, mentions
from fastai.callback.core import Callback
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from hub_server import serving
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from test_hub import Process
from test_matrix import ASKS, CELLS, CONFIGS, LIMITS, ROWS, Gradients, assert_same, make_dls
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, pipeline

from blurlike.all import (
    HFCallback,
    HFCheckpoint,
    HFObjects,
    HFTextDataLoaders,
    hf_learner,
    hf_splitter,
    load_hf_learner,
)
from blurlike.core.objects import inner_model
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
def dls(df, base): return HFTextDataLoaders.from_df(df, base, valid_col='is_valid', bs=8, seed=0, device='cpu')


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


def adapted_learner(arch, task, folder):
    "A learner with a LoRA adapter on a base in `folder`"
    config,tokenizer = make_config(arch, **CONFIGS.get((arch, task), CONFIGS.get(task, {})))
    tokenizer.model_max_length = 64
    dls = make_dls(task, HFObjects(arch, config, tokenizer, None))
    for k,v in dls.hf_block.task.config_kwargs(dls).items(): setattr(config, k, v)
    torch.manual_seed(0)
    auto_model = dls.hf_block.task.auto_model
    save_base(folder, auto_model.from_config(config), tokenizer)
    return hf_learner(dls, auto_model.from_pretrained(folder), metrics=[], lora=True)


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
    adapted = get_peft_model(model_of(base), lora(task_type='SEQ_CLS'))
    with pytest.raises(ValueError, match=mentions('model=', 'lora=')): hf_learner(dls, adapted, lora=True)
    with pytest.raises(ValueError, match=mentions('peft_config=LoraConfig', 'BertForSequenceClassification')):
        hf_learner(dls, peft_config=lora(target_modules=['nowhere']))
    with pytest.raises(ValueError, match=mentions('gradient_checkpointing=True', 'Identity')):
        hf_learner(dls, nn.Identity(), gradient_checkpointing=True)


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


@pytest.mark.parametrize('precision', ['int8', 'bf16'])
def test_predictions_in_other_precisions(dls, precision):
    learn = tune(hf_learner(dls, lora=True))
    for a,b in zip(learn.hf_predict(TEXTS, precision=precision), probs(learn), strict=True):
        assert a['probs']==pytest.approx(b, abs=.02)


def test_an_onnx_file_has_the_adapter_in_it(dls, tmp_path):
    learn = tune(hf_learner(dls, lora=True))
    assert_same(probs(load_hf_learner(learn.export_onnx(tmp_path/'onnx'))), probs(learn))


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


def test_adapters_are_pushed_to_the_hub_and_pulled_from_it(dls, base, tmp_path):
    learn = tune(hf_learner(dls, lora=True))
    folder = str(learn.save_pretrained(tmp_path/'adapter'))
    with serving() as hub:
        process = Process(hub, tmp_path/'home')
        try:
            push = "load_hf_learner(folder, device='cpu').push_to_hub(name, merge=merge)"
            process(push, folder=folder, name='ada/adapter', merge=False)
            process(push, folder=folder, name='ada/whole', merge=True)
            for name in ('ada/adapter', 'ada/whole'):
                code = 'res = load_hf_learner(name, device="cpu").hf_predict(texts)'
                assert_same(process(code, name=name, texts=TEXTS), learn.hf_predict(TEXTS))
            with pytest.raises(RuntimeError, match=mentions('FileExistsError', "repo_id='ada/whole'", 'merge=True')):
                process(push, folder=folder, name='ada/whole', merge=False)
            file = tmp_path/'adapter'/'adapter_config.json'
            file.write_text(json.dumps(json.loads(file.read_text()) | dict(base_model_name_or_path='ada/whole')))
            assert process('res = str(load_hf_learner(folder).model.get_base_model().config.name_or_path)',
                           folder=folder)=='ada/whole'
        finally: process.close()


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


def test_find_batch_size_and_lr_find_leave_the_base_alone(dls):
    learn = hf_learner(dls, lora=True)
    names,before = trainable(learn.model),state(learn.model)
    run(learn, lambda o: o.lr_find(show_plot=False, num_it=5))
    assert not moved(before, learn.model)
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
    assert cli([*args, '--out', str(base)])==1
    assert str(base) in capsys.readouterr().err


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
    monkeypatch.setattr(hub, 'HfApi', lambda **_: Api(['config.json', name]))
    with pytest.raises(FileExistsError, match=mentions("repo_id='ada/whole'", 'merge=True')):
        hub.push_folder(tmp_path, 'ada/whole')


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
