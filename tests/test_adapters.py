"Adapters of peft: the base stays as it is, and what was trained is what is saved."
import json
from copy import deepcopy

import pytest
import torch
from conftest import make_objects, make_texts, mentions
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from peft import LoraConfig, get_peft_model

from blurlike.all import HFCallback, HFTextDataLoaders, hf_learner, hf_splitter, load_hf_learner

TEXTS = ['the film warm', 'the plot dull the cast sour']


@pytest.fixture
def base(hf, tmp_path):
    "The folder of a model with its tokenizer"
    hf.model.save_pretrained(tmp_path/'base')
    hf.tokenizer.save_pretrained(tmp_path/'base')
    return tmp_path/'base'


@pytest.fixture
def dls(df, base): return HFTextDataLoaders.from_df(df, base, valid_col='is_valid', bs=8, seed=0, device='cpu')


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setattr(Learner, 'no_bar', Learner.no_bar)


def lora(**kwargs): return LoraConfig(**dict(task_type='SEQ_CLS', r=4, target_modules=['query', 'value']) | kwargs)


def quiet(learn, f):
    with learn.no_bar(), learn.no_logging(): f(learn)
    return learn


def trainable(model): return {n for n,p in model.named_parameters() if p.requires_grad}
def frozen_state(model): return {n: p.detach().clone() for n,p in model.named_parameters() if not p.requires_grad}


def unchanged(before, model):
    now = dict(model.named_parameters())
    return all(torch.equal(v, now[k]) and v.dtype==now[k].dtype for k,v in before.items())


# ---- three faults of models with adapters

FREEZING = [lambda o: o.freeze(), lambda o: o.unfreeze(), lambda o: o.freeze_to(1), lambda o: o.freeze_to(-2),
            lambda o: o.fine_tune(1, 1e-2), lambda o: o.fit_one_cycle(1, slice(1e-4, 1e-2))]


@pytest.mark.filterwarnings('ignore:Freezing')
@pytest.mark.parametrize('plain', [False, True])
def test_freezing_never_wakes_the_base(dls, hf, plain):
    model = get_peft_model(hf.model, lora())
    names,before = trainable(model),frozen_state(model)
    learn = (Learner(dls, model, CrossEntropyLossFlat(), cbs=[HFCallback], splitter=hf_splitter) if plain
             else hf_learner(dls, model))
    for f in FREEZING:
        quiet(learn, f)
        assert trainable(model) <= names
    quiet(learn, lambda o: o.unfreeze())
    assert trainable(model)==names
    assert unchanged(before, model)


def test_what_fine_tune_learned_is_what_is_saved(dls, base, tmp_path):
    model = get_peft_model(load_hf_learner(base, dls=dls).model, lora())
    learn = quiet(hf_learner(dls, model), lambda o: o.fine_tune(2, 1e-2))
    again = load_hf_learner(learn.save_pretrained(tmp_path/'adapter'), device='cpu')
    for a,b in zip(learn.hf_predict(TEXTS), again.hf_predict(TEXTS), strict=True):
        assert a['probs']==pytest.approx(b['probs'], abs=1e-6)


def test_an_adapter_does_not_replace_a_whole_model(dls, base):
    learn = hf_learner(dls, get_peft_model(load_hf_learner(base, dls=dls).model, lora()))
    before = (base/'model.safetensors').read_bytes()
    with pytest.raises(FileExistsError, match=mentions('path=', base, 'merge=True')): learn.save_pretrained(base)
    assert (base/'model.safetensors').read_bytes()==before
    assert not (base/'adapter_config.json').exists()
