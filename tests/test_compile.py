"""`hf_learner(compile=True)` gives the same numbers, calls hooks, and leaves no trace in what is saved

`torch.compile` runs without its code generator here, except in the notebooks."""
from copy import deepcopy
from functools import partial

import pytest
import torch
from conftest import make_objects, make_texts
from fastai.torch_core import set_seed
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from blurlike.all import HFTextDataLoaders, hf_learner, load_hf_learner


@pytest.fixture(autouse=True)
def no_generator(monkeypatch):
    monkeypatch.setattr(torch, 'compile', partial(torch.compile, backend='eager'))
    torch.compiler.reset()


def learner(compile, task='sequence-classification', arch='bert', auto_model=AutoModelForSequenceClassification,
            **kwargs):
    set_seed(0)
    hf = make_objects(arch, auto_model=auto_model)
    dls = HFTextDataLoaders.from_df(make_texts(40), hf, task=task, seed=0, bs=8, device='cpu', **kwargs)
    return hf_learner(dls, hf.model, compile=compile)


def graphs(): return torch._dynamo.utils.counters['stats']['unique_graphs']


def train(learn):
    set_seed(1)
    with learn.no_bar(), learn.no_logging():
        learn.fine_tune(2, 1e-3)
        return [learn.validate()[0], *(o.sum().item() for o in learn.model.parameters())]


def test_it_trains_alike_frozen_and_not():
    torch._dynamo.utils.counters.clear()
    assert train(learner(True)) == pytest.approx(train(learner(False)), abs=1e-5)
    assert 1 < graphs() < 12


def test_texts_of_any_length_are_predicted_by_few_graphs():
    learn,plain = learner(True),learner(False)
    texts = [' '.join(['the film']*n) for n in range(1, 30)]
    torch._dynamo.utils.counters.clear()
    preds = [learn.hf_predict(o)['score'] for o in texts]
    assert preds == pytest.approx([plain.hf_predict(o)['score'] for o in texts], abs=1e-6)
    assert 1 <= graphs() <= 3


def test_hooks_that_are_registered_later_are_called():
    learn,called = learner(True),[]
    learn.hf_predict('a film')
    handle = learn.model.classifier.register_forward_hook(lambda *_: called.append(1))
    learn.hf_predict('a film')
    handle.remove()
    learn.hf_predict('a film')
    assert called == [1]


def test_saved_models_and_copies_are_not_compiled(tmp_path):
    learn = learner(True)
    pred = learn.hf_predict('a film')
    loaded = load_hf_learner(learn.save_pretrained(tmp_path/'model'))
    assert loaded.model._compiled_call_impl is None
    assert deepcopy(learn.model)._compiled_call_impl is None
    assert loaded.hf_predict('a film')['score'] == pytest.approx(pred['score'], abs=1e-6)
    learn.export(tmp_path/'learner.pkl')
    assert list(learn.model.state_dict()) == list(loaded.model.state_dict())


def test_texts_are_generated_without_the_compiler():
    learn,plain = (learner(o, 'causal-lm', 'gpt2', AutoModelForCausalLM, block_size=16) for o in (True, False))
    torch._dynamo.utils.counters.clear()
    texts = ['the film', 'a very long film']
    assert learn.hf_generate(texts, max_new_tokens=4) == plain.hf_generate(texts, max_new_tokens=4)
    assert not graphs()
