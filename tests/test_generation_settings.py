"Generation settings that transformers refuses to save: found when the learner is made, and never the end of a model"
import pytest
import torch
from conftest import make_texts, mentions
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from hypothesis import given, settings
from hypothesis import strategies as st
from test_causal_lm import make_lm
from test_seq2seq import WORDS, make_objects, make_pairs
from transformers import AutoModelForSeq2SeqLM, GenerationConfig

from blurlike.all import HFCallback, HFTextDataLoaders, hf_learner, load_hf_learner

SAMPLING = dict(temperature=.6, top_p=.9, top_k=20, min_p=.1, typical_p=.9, epsilon_cutoff=.1, eta_cutoff=.1)
BEAMS = dict(early_stopping=True, length_penalty=.8)


def learner(saved, generate_kwargs=None, plain=False):
    "A learner whose checkpoint has the generation settings `saved`"
    df,hf = make_pairs(8),make_objects('t5')
    for k,v in saved.items(): setattr(hf.model.generation_config, k, v)
    dls = HFTextDataLoaders.from_df(df, hf, task='translation', label_col='translation', bs=4, device='cpu',
                                    generate_kwargs=generate_kwargs)
    if plain: return Learner(dls, hf.model, CrossEntropyLossFlat(), cbs=HFCallback)
    return hf_learner(dls, hf.model)


@pytest.mark.parametrize('plain', [False, True], ids=['hf_learner', 'Learner'])
@pytest.mark.parametrize(('saved', 'given'), [(BEAMS, dict(num_beams=1)), (SAMPLING, None), (SAMPLING | BEAMS, None),
                                              (dict(output_scores=True), None), (dict(pad_token_id=-1), None)])
def test_settings_without_effect_are_removed_when_the_learner_is_made(saved, given, plain, tmp_path, capsys):
    learn = learner(saved, given, plain)
    line = capsys.readouterr().out
    assert all(f'{k}=' in line for k in saved if k!='pad_token_id'), line # the tokenizer has one
    texts = learn.hf_generate(WORDS, max_new_tokens=4)
    again = load_hf_learner(learn.save_pretrained(tmp_path/'model'))
    assert again.hf_generate(WORDS, max_new_tokens=4) == texts


def test_settings_that_have_an_effect_are_kept(tmp_path, capsys):
    learn = learner(SAMPLING | dict(do_sample=True) | BEAMS, dict(num_beams=2))
    assert 'has no effect' not in capsys.readouterr().out
    learn.save_pretrained(tmp_path/'model')
    config = GenerationConfig.from_pretrained(tmp_path/'model')
    assert {k: getattr(config, k) for k in SAMPLING | BEAMS} == SAMPLING | BEAMS


@pytest.mark.parametrize('saved', [dict(num_return_sequences=3), dict(early_stopping='often')])
def test_invalid_settings_of_a_checkpoint_are_refused_when_the_learner_is_made(saved):
    (name,value), = saved.items()
    with pytest.raises(ValueError, match=mentions('generation_config', name, value)): learner(saved)


@given(saved=st.fixed_dictionaries({}, optional={k: st.just(v) for k,v in (SAMPLING | BEAMS).items()}),
       sample=st.booleans(), beams=st.sampled_from([1, 2]))
@settings(max_examples=15, deadline=None)
def test_a_learner_that_exists_can_be_saved(saved, sample, beams, tmp_path_factory):
    learn = learner(saved | dict(do_sample=sample, num_beams=beams))
    path = learn.save_pretrained(tmp_path_factory.mktemp('saved')/'model')
    kept = GenerationConfig.from_pretrained(path)
    has_effect = {**(SAMPLING if sample else {}), **(BEAMS if beams > 1 else {})}
    assert {k for k,v in saved.items() if getattr(kept, k)==v} == set(saved) & set(has_effect)


@pytest.mark.parametrize('change', [dict(temperature=.6), dict(early_stopping=True)])
def test_a_change_after_training_does_not_lose_the_model(change, tmp_path, capsys):
    learn = learner({})
    for k,v in change.items(): setattr(learn.model.generation_config, k, v)
    learn.save_pretrained(tmp_path/'model')
    assert f'{next(iter(change))}=' in capsys.readouterr().out
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path/'model')
    for k,v in learn.model.state_dict().items(): assert torch.equal(model.state_dict()[k], v)


def test_the_settings_of_a_decoder_are_not_touched_where_they_can_be_saved(tmp_path):
    hf = make_lm('gpt2')
    hf.model.generation_config.update(do_sample=True, temperature=.6)
    dls = HFTextDataLoaders.from_df(make_texts(8), hf, task='causal-lm', bs=2, max_length=16, device='cpu')
    hf_learner(dls, hf.model).save_pretrained(tmp_path/'model')
    assert GenerationConfig.from_pretrained(tmp_path/'model').temperature == .6
