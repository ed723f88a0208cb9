"Generated texts do not depend on the batch: shared beginnings are computed once, and rows that have ended leave."
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ARCHITECTURES, make_objects
from hypothesis import given, settings
from hypothesis import strategies as st
from test_causal_lm import make_lm
from test_matrix import CELLS, CONFIGS, LIMITS
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from blurlike.all import HFObjects, HFTextDataLoaders, hf_learner
from blurlike.core.compat import cache_of, place_columns, row_cache
from blurlike.core.objects import forward_args
from blurlike.generate import _shared_cache, _shared_length, _written

DECODERS = ['gpt2', 'gpt_neox', 'llama', 'qwen3', 'phi', 'opt']
# ProphetNet generates only without padding
ALL = sorted(a for a,task in CELLS if task=='causal-lm' and (a, task) not in LIMITS and a!='prophetnet')
END = 5


def decoder(arch, ends=END):
    "A tiny model in float64 that often ends a text, and in which no two tokens are equally likely"
    model = make_lm(arch, **CONFIGS.get((arch, 'causal-lm'), CONFIGS['causal-lm'])).model.double().eval()
    with torch.no_grad():
        for p in model.parameters(): p.add_(torch.randn_like(p)*.2)
    model.generation_config.update(eos_token_id=ends, pad_token_id=0)
    return model


def batch(prompts):
    width = max(map(len, prompts))
    ids = torch.tensor([[0]*(width-len(o)) + o for o in prompts])
    mask = torch.tensor([[0]*(width-len(o)) + [1]*len(o) for o in prompts])
    return dict(input_ids=ids, attention_mask=mask)


def alone(model, prompt, **kwargs):
    "The new tokens of one prompt by transformers, without padding after the end"
    ids = model.generate(**batch([prompt]), max_new_tokens=8, **kwargs)
    return ids[0,len(prompt):].tolist()


def same(model, prompts, read=None, **kwargs):
    "The batch gives what each prompt gives alone"
    inputs,read = batch(prompts),[] if read is None else read
    with torch.inference_mode(): ids = _written(model, inputs, dict(max_new_tokens=8, **kwargs), read)
    width = inputs['input_ids'].shape[1]
    for prompt,row in zip(prompts, ids, strict=True):
        one = alone(model, prompt, **kwargs)
        assert row[:width].tolist() == [0]*(width-len(prompt)) + prompt
        assert row[width:].tolist() == one + [0]*(ids.shape[1]-width-len(one))


def prompts_of(seed, n, shared):
    "Random prompts with the same `shared` first tokens"
    rng = np.random.default_rng(seed)
    first = rng.integers(6, 60, shared).tolist()
    return [first + rng.integers(6, 60, rng.integers(1, 12)).tolist() for _ in range(n)]


@pytest.fixture(scope='module')
def models(): return {o: decoder(o, [END, *range(40, 60)]) for o in DECODERS}


@pytest.mark.parametrize('arch', DECODERS)
@given(seed=st.integers(0, 1000), n=st.integers(2, 9), shared=st.sampled_from([0, 3, 16, 17, 30]))
@settings(max_examples=12, deadline=None)
def test_a_batch_gives_the_greedy_texts_of_each_prompt_alone(arch, seed, n, shared, models):
    same(models[arch], prompts_of(seed, n, shared))


def forwards(model):
    "Record rows x columns of the ids that each forward pass reads"
    shapes = []
    hook = lambda m, args, kwargs: shapes.append(tuple(kwargs['input_ids'].shape))
    return shapes,model.register_forward_pre_hook(hook, with_kwargs=True)


def test_what_prompts_begin_with_is_read_once(models):
    prompts = prompts_of(0, 4, 20)
    shapes,hook = forwards(models['llama'])
    same(models['llama'], prompts)
    hook.remove()
    assert shapes[:2] == [(1, 20), (4, max(map(len, prompts))-20)]


def test_what_the_prompts_of_all_batches_begin_with_is_read_once():
    config,tokenizer = make_objects('llama')[1:3]
    df = pd.DataFrame(dict(text=['the film warm the cast lovely']*4))
    dls = HFTextDataLoaders.from_df(df, HFObjects('llama', config, tokenizer, None), task='causal-lm', valid_pct=.5,
                                    block_size=8, bs=2, device='cpu')
    learn = hf_learner(dls, decoder('llama').float())
    texts = ['the film warm the cast lovely '*6 + 'the plot '*i for i in range(12)]
    shapes,hook = forwards(learn.model)
    with learn.no_bar(): found = learn.hf_generate(texts, max_new_tokens=3, batch_tokens=300)
    hook.remove()
    reads = [rows for rows,columns in shapes if columns > 1]
    assert len(reads) > 3
    assert reads.count(1) == 1
    with learn.no_bar(): assert found == [learn.hf_generate(o, max_new_tokens=3) for o in texts]


@given(seed=st.integers(0, 1000), lengths=st.lists(st.sampled_from([0, 16, 20, 21, 30]), min_size=2, max_size=4))
@settings(max_examples=12, deadline=None)
def test_a_batch_that_begins_as_an_earlier_one_gives_the_same_texts(seed, lengths, models):
    first,read = np.random.default_rng(seed).integers(6, 60, 40).tolist(),[]
    for i,n in enumerate(lengths): # each shares more or fewer tokens with the one before
        same(models['llama'], [first[:n] + o for o in prompts_of(seed + i, 3, 0)], read)


def test_rows_that_have_ended_leave(models):
    prompts = prompts_of(1, 9, 0)
    lengths = [len(alone(models['llama'], o)) for o in prompts]
    assert len(set(lengths)) > 2, lengths
    shapes,hook = forwards(models['llama'])
    with torch.inference_mode(): _written(models['llama'], batch(prompts), dict(max_new_tokens=8), [])
    hook.remove()
    rows = [o[0] for o in shapes]
    assert rows == sorted(rows, reverse=True)
    assert rows[-1] < 5
    assert len(rows) == max(lengths)
    assert {o[1] for o in shapes[1:]} == {1} # nothing is read again


@pytest.mark.parametrize('arch', ALL)
def test_a_batch_gives_the_texts_of_generate_for_every_decoder(arch):
    model,inputs = decoder(arch, [END, *range(20, 60)]).float(),batch(prompts_of(3, 6, 20))
    with torch.inference_mode(): ids = _written(model, inputs, dict(max_new_tokens=8), [])
    assert torch.equal(ids, model.generate(**inputs, max_new_tokens=8)[:,:ids.shape[1]])


def test_prompt_tuning_is_left_to_generate():
    from peft import PromptTuningConfig, get_peft_model
    model = get_peft_model(decoder('llama', [END, *range(20, 60)]),
                           PromptTuningConfig(task_type='CAUSAL_LM', num_virtual_tokens=3)).double().eval()
    inputs = batch(prompts_of(3, 6, 20))
    with torch.inference_mode(): ids = _written(model, inputs, dict(max_new_tokens=8), [])
    assert torch.equal(ids, model.generate(**inputs, max_new_tokens=8))


@pytest.mark.parametrize('kwargs', [dict(num_beams=2), dict(repetition_penalty=1.3), dict(no_repeat_ngram_size=2),
                                    dict(min_new_tokens=3), dict(num_beams=2, num_return_sequences=2),
                                    dict(use_cache=False), dict(output_scores=True, return_dict_in_generate=True),
                                    dict(stopping_criteria=[lambda ids, scores: torch.ones(len(ids)).bool()]),
                                    dict(do_sample=True), dict(generation_config=GenerationConfig(max_new_tokens=4)),
                                    dict(eos_token_id=None), dict(eos_token_id=7), dict(max_length=40)])
def test_all_other_settings_are_those_of_generate(kwargs, models):
    model,inputs = models['llama'],batch(prompts_of(2, 5, 18))
    kwargs = (dict(max_new_tokens=8) if not {'generation_config', 'max_length'} & set(kwargs) else {}) | kwargs
    torch.manual_seed(0)
    with torch.inference_mode(): ids = _written(model, inputs, kwargs, [])
    torch.manual_seed(0)
    theirs = model.generate(**inputs, **kwargs)
    assert torch.equal(ids, getattr(theirs, 'sequences', theirs))


@pytest.mark.parametrize('left', [40, 4, 1])
def test_each_text_ends_at_the_last_position(left):
    model = decoder('gpt2', [])
    n = model.config.n_positions
    prompts = [[7]*(n-left), [8]*(n-41), [9, 8]*4]
    with torch.inference_mode(): ids = _written(model, batch(prompts), dict(max_new_tokens=20), [])
    for prompt,row in zip(prompts, ids[:,n-left:].tolist(), strict=True):
        one = model.generate(torch.tensor([prompt]), max_new_tokens=min(20, n-len(prompt)))[0,len(prompt):].tolist()
        assert row == one + [0]*(len(row)-len(one))


@given(seed=st.integers(0, 1000), n=st.integers(1, 6), shared=st.integers(0, 9))
@settings(max_examples=50, deadline=None)
def test_the_shared_length_is_that_of_the_prompts(seed, n, shared):
    prompts = prompts_of(seed, n, shared)
    least = min(map(len, prompts))-1
    count = next((i for i in range(least) if len({o[i] for o in prompts}) > 1), least)
    assert _shared_length(batch(prompts)) == count


def test_a_cache_of_the_beginning_is_made_only_where_it_pays(models):
    assert not _shared_cache(models['llama'], batch(prompts_of(0, 1, 20)), [])
    assert not _shared_cache(models['llama'], batch(prompts_of(0, 4, 5)), [])
    assert not _shared_cache(decoder('bloom'), batch(prompts_of(0, 4, 20)), []) # positions do not follow the mask


@pytest.mark.parametrize('arch', sorted({'gpt2', 'llama', 'mistral', 'gemma2', 'mamba', 'xlnet'} & set(ARCHITECTURES)))
def test_models_without_a_cache_of_rows_use_generate(arch):
    model = make_objects(arch, auto_model=AutoModelForCausalLM).model.eval()
    assert model.config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    out = model.generate(torch.tensor([[3, 4], [5, 6]]), max_new_tokens=2, return_dict_in_generate=True)
    cache = cache_of(out)
    if row_cache(model, forward_args(model)):
        for o in cache.values(): o.batch_select_indices(torch.tensor([1]))
        assert all(len(layer.keys)==len(layer.values)==1 for o in cache.values() for layer in o.layers)


def test_columns_go_to_their_places():
    layer = SimpleNamespace(keys=torch.arange(6.).view(1, 1, 3, 2), values=torch.arange(3.).view(1, 1, 3, 1))
    place_columns(SimpleNamespace(layers=[layer]), torch.tensor([[0, 1, 2], [0, 0, 1]]))
    assert layer.values[:,0,:,0].tolist() == [[0, 1, 2], [0, 0, 1]]
    assert layer.keys.shape == (2, 1, 3, 2)
    assert layer.keys[1,0].tolist() == [[0, 1], [0, 1], [2, 3]]


@pytest.mark.parametrize('kwargs', [dict(num_beams=2), dict(num_beams=3, num_return_sequences=2),
                                    dict(repetition_penalty=1.5)])
@pytest.mark.parametrize('left', [40, 4, 1])
def test_a_long_prompt_does_not_shorten_other_texts(left, kwargs):
    model = decoder('gpt2')
    n,copies = model.config.n_positions,kwargs.get('num_return_sequences', 1)
    prompts = [[7]*(n-left), [8]*(n-41), [9, 8]*4]
    with torch.inference_mode(): ids = _written(model, batch(prompts), dict(max_new_tokens=20) | kwargs, [])
    assert len(ids) == copies*len(prompts)
    for prompt,rows in zip(prompts, ids[:,n-left:].reshape(len(prompts), copies, -1).tolist(), strict=True):
        most = min(20, n-len(prompt))
        alone = model.generate(torch.tensor([prompt]), max_new_tokens=most, **kwargs)[:,len(prompt):].tolist()
        assert rows == [o + [0]*(len(rows[0])-len(o)) for o in alone]
