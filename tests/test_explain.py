"Attributions add up to the difference of the outputs, belong to the words of the original text, and change nothing."
import json
import sys
from copy import copy
from threading import Thread

import numpy as np
import pytest
import torch
from conftest import BAD, GOOD, make_config, make_objects, make_texts, mentions
from fastai.learner import Learner
from gradio_client import Client
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PromptTuningConfig
from test_matrix import ROWS, TASKS, assert_same, make_learner
from torch import nn
from transformers.utils import ModelOutput

from blurlike.all import HFTextDataLoaders, gradio_page, hf_learner, load_hf_learner, serve
from blurlike.cli import run
from blurlike.core.checks import print_once
from blurlike.core.precision import in_int8
from blurlike.explain import Attribution, ExplainedOutput, Explanation, TextTokens, can_explain, join_words
from blurlike.ship.onnx import OnnxModel
from blurlike.train.callback import HFCallback

EXPLAINED = ['sequence-classification', 'multi-label-classification', 'regression', 'token-classification',
             'question-answering', 'multiple-choice']
# Embeddings that are transposed, padded, read twice, scaled, hashed, in a tuple, or mixed with those of neighbors; and
# models that find the end of a text by its ids
ARCHS = ['xlnet', 'longformer', 'bart', 'mbart', 't5', 'gemma', 'canine', 'ibert', 'mobilebert', 'gpt2', 'llama',
         'roberta', 'fnet']
TEXT = "zoë's film  isn't 東京 naïve,\ncafe\u0301s 🎬 in köln!"


def quiet(learn):
    "A learner without progress bars"
    if hasattr(learn, 'progress'): learn.remove_cb(learn.progress)
    return learn


def values(words): return [o.attribution for o in words]


def check(explanation):
    "Whether the attributions of words and tokens add up to the difference, and words are those of the texts"
    assert explanation.outputs
    for o in explanation.outputs:
        assert o.is_complete, (o.name, o.difference, o.error, o.largest)
        assert np.isfinite(values(o.tokens)).all()
        assert sum(values(o.words)) == pytest.approx(sum(values(o.tokens)), abs=1e-6)
        for w in o.words: assert explanation.texts[w.part][w.start:w.end] == w.text.strip() == w.text


@pytest.fixture(scope='module')
def trained():
    "A learner that knows good words from bad ones"
    hf,df = make_objects(),make_texts(160)
    dls = HFTextDataLoaders.from_df(df.assign(is_valid=df.index >= 140), hf, valid_col='is_valid', bs=8, seed=0,
                                    device='cpu')
    learn = quiet(hf_learner(dls, hf.model))
    with learn.no_logging(): learn.fit_one_cycle(5, 1e-3)
    return learn


# ---- attributions

@pytest.mark.parametrize('task', EXPLAINED)
def test_every_task_that_can_be_explained(task):
    learn = quiet(make_learner('bert', task))
    texts = ROWS[task][0]
    found = learn.explain(texts, many=True)
    for o in found: check(o)
    assert_same([o.prediction for o in found], learn.hf_predict(texts, many=True))
    assert can_explain(learn)
    for text,o in list(zip(texts, found, strict=True))[:2]:
        alone = learn.explain(text)
        assert isinstance(alone, Explanation)
        assert [p.name for p in alone.outputs] == [p.name for p in o.outputs]
        for a,b in zip(alone.outputs, o.outputs, strict=True):
            assert values(a.tokens) == pytest.approx(values(b.tokens), abs=1e-4)
            assert [w[2:] for w in a.words] == [w[2:] for w in b.words]


@pytest.mark.parametrize('arch', ARCHS)
def test_architectures_that_read_their_ids_in_other_ways(arch):
    learn = quiet(make_learner(arch, 'sequence-classification'))
    texts = [*ROWS['sequence-classification'][0][:2], 'film', '']
    # new models have zeros for the padding token, which they scale to a vector of any direction
    pad = learn.dls.hf_block.hf_tokenizer.pad_token_id
    for o in learn.model.modules():
        if isinstance(o, nn.Embedding) and o.padding_idx==pad: nn.init.normal_(o.weight.data[pad], std=.02)
    for o in learn.explain(texts, target='good'): check(o)
    assert all(not o._forward_hooks for o in learn.model.modules())


def gradients_by_hand(model, inputs, baseline, target, n=200):
    "Integrated gradients of the log odds by the midpoint rule, from the definition"
    words = model.get_input_embeddings()
    to,of = (words(o).detach() for o in (inputs['input_ids'], baseline))
    total = torch.zeros_like(to)
    rest = {k: v for k,v in inputs.items() if k!='input_ids'}
    for i in range(n):
        x = (of + (i + .5)/n*(to - of)).requires_grad_()
        logits = model(inputs_embeds=x, **rest).logits[0]
        total += torch.autograd.grad(logits[target] - logits[1-target], x)[0]/n
    return (total*(to - of)).sum(-1)[0]


def test_attributions_are_those_of_the_definition(trained):
    block = trained.dls.hf_block
    text = 'the film dull the cast warm and funny'
    inputs = block.encode([text]).for_model()
    baseline = inputs['input_ids'].clone()
    baseline[:,1:-1] = block.hf_tokenizer.pad_token_id
    expected = gradients_by_hand(trained.model.eval(), inputs, baseline, 1)
    found = trained.explain(text, 'good', n_steps=100)
    assert values(found.tokens) == pytest.approx(expected[1:-1].tolist(), abs=2e-3)
    assert sum(expected).item() == pytest.approx(found.difference, abs=1e-2)


class LinearModel(nn.Module):
    "The sum of a number for each token and class"
    def __init__(self, config):
        super().__init__()
        self.config,self.words,self.head = config,nn.Embedding(config.vocab_size, 4),nn.Linear(4, 2)

    def forward(self, input_ids, attention_mask, **kwargs):
        return ModelOutput(logits=self.head((self.words(input_ids)*attention_mask[...,None]).sum(1)))


def test_attributions_of_a_linear_model_are_its_terms(dls, hf):
    model = LinearModel(hf.config)
    learn = quiet(Learner(dls, model, cbs=[HFCallback]))
    found = learn.explain('the film warm', 'good', n_steps=1)
    w = (model.head.weight[1] - model.head.weight[0])
    ids = dls.hf_block.encode(['the film warm'])['input_ids'][0,1:-1]
    expected = (model.words(ids) - model.words(torch.zeros_like(ids))) @ w
    assert values(found.tokens) == pytest.approx(expected.tolist(), abs=1e-5)
    assert found.error == pytest.approx(0, abs=1e-5)


def test_masking_words_with_attribution_moves_the_probability_further(trained):
    "By more than masking the words with the least attribution"
    texts = [o for o in make_texts(60, seed=5).text if len(o.split()) >= 9][:20]
    found,token = trained.explain(texts),trained.dls.hf_block.hf_tokenizer.mask_token
    def fall(order):
        masked = []
        for o in found:
            words = sorted(o.words, key=order)[:3]
            keep = [w.text if w not in words else token for w in o.words]
            masked.append(' '.join(keep))
        preds = trained.hf_predict(masked)
        return np.mean([o.prediction['score'] - p['probs'][o.prediction['index']]
                        for o,p in zip(found, preds, strict=True)])
    assert fall(lambda o: -o.attribution) > fall(lambda o: abs(o.attribution)) + .01


def test_words_that_decide_have_the_most_attribution(trained):
    for text,words in (('the film warm the plot and cast', GOOD), ('the plot dull the film and cast', BAD)):
        assert max(trained.explain(text).words, key=lambda o: o.attribution).text in words


# ---- targets

def test_a_target_is_chosen_by_name(trained):
    good,bad = (trained.explain('the film warm', o) for o in ('good', 'bad'))
    assert good.name == 'good'
    assert values(good.words) == pytest.approx([-o for o in values(bad.words)], abs=1e-4)
    both = trained.explain('the film warm', ['good', 'bad'])
    assert [o.name for o in both.outputs] == ['good', 'bad']
    with pytest.raises(ValueError, match=mentions('target', 'gud', 'good')): trained.explain('the film', 'gud')


def test_targets_of_words():
    learn = quiet(make_learner('bert', 'token-classification'))
    words = ROWS['token-classification'][0][1]
    found = learn.explain(words, (2, 'B-THING'))
    assert [o.name for o in found.outputs] == [f'B-THING: {words[2]}']
    assert [o.text for o in found.words] == words
    check(learn.explain(' '.join(words), 'B-THING'))
    with pytest.raises(ValueError, match=mentions('target', 99)): learn.explain(words, 99)
    with torch.no_grad(): learn.model.classifier.bias[list(learn.dls.vocab).index('O')] += 99
    assert '(not predicted)' in learn.explain(words).first.name # the most likely entity, since there is none
    assert learn.explain(words, 2).first.name == f'O: {words[2]}'
    assert learn.explain('', many=False).outputs == []


def test_both_ends_of_an_answer():
    learn = quiet(make_learner('bert', 'question-answering'))
    found = learn.explain(ROWS['question-answering'][0][0])
    assert [o.name for o in found.outputs] == ['start', 'end']
    assert {o.part for o in found.words} == {0, 1}
    assert [o.name for o in learn.explain(ROWS['question-answering'][0][0], 'end').outputs] == ['end']


@pytest.mark.parametrize('task', sorted({*TASKS} - {*EXPLAINED}))
def test_other_tasks_are_refused(task):
    learn = make_learner(dict(summarization='t5', translation='t5').get(task, 'bart'), task)
    assert not can_explain(learn)
    with pytest.raises(ValueError, match=mentions(task)): learn.explain('the film')


# ---- texts

@pytest.mark.parametrize('arch', ['bert', 'roberta', 'gpt2', 't5', 'gemma', 'xlm-roberta', 'deberta-v2'])
def test_words_are_those_of_the_original_text(arch):
    _,tokenizer = make_config(arch)
    enc = tokenizer(TEXT, add_special_tokens=False, return_offsets_mapping=True)
    words = np.array([[-1 if o is None else o for o in enc.word_ids()]])
    found = TextTokens((TEXT,), tokenizer, np.array([enc['input_ids']]), words*0, words,
                       np.array([enc['offset_mapping']]))
    texts = [TEXT[a:b] for _,a,b in found.words]
    assert all(o == o.strip() and o for o in texts)
    assert all(a[2] <= b[1] for a,b in zip(found.words, found.words[1:], strict=False))
    for o in ('film', 'köln', 'caf', '🎬', '東'): assert any(w.startswith(o) for w in texts), (o, texts)
    assert ''.join(texts) == ''.join(TEXT.split())


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.sampled_from("abé東京🎬u\u0308' .,\n"), max_size=30), st.data())
def test_words_are_in_order_and_every_token_has_one(text, data):
    "However a text is cut into tokens"
    cuts = sorted({0, len(text), *data.draw(st.lists(st.integers(0, len(text)), max_size=8))})
    tokens = [(data.draw(st.integers(0, 2)), a, b) for a,b in zip(cuts, cuts[1:], strict=False)]
    spans,of = join_words(tokens, text)
    assert len(of) == len(tokens)
    assert of == sorted(of)
    assert sorted(set(of)) == list(range(len(spans)))
    assert all(a <= b for a,b in spans)
    assert all(a[1] <= b[0] or b[0]==b[1] for a,b in zip(spans, spans[1:], strict=False))


def test_pairs(df, hf):
    df = df.assign(other=df.text.str[::-1])
    dls = HFTextDataLoaders.from_df(df, hf, text_col=['text', 'other'], valid_col='is_valid', bs=8, device='cpu')
    learn = quiet(hf_learner(dls, hf.model))
    found = learn.explain([('the film warm', 'the plot'), ('dull', 'the cast and the film')])
    for o in found: check(o)
    assert [(o.text, o.part) for o in found[0].words] == [('the', 0), ('film', 0), ('warm', 0), ('the', 1), ('plot', 1)]
    assert found[0]._repr_html_().count('<div>') == 3 # the title and two texts
    alone = learn.explain(dict(text='the film', text_pair='warm'))
    assert_same(alone.prediction, learn.hf_predict(('the film', 'warm')))


@pytest.mark.parametrize('side', ['right', 'left'])
def test_truncated_texts(df, hf, side):
    hf.tokenizer.truncation_side = side
    dls = HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', max_length=8, bs=8, device='cpu')
    learn = quiet(hf_learner(dls, hf.model))
    text = 'the film warm ' * 9
    found = learn.explain(text)
    check(found)
    assert len(found.words) == 6
    read = text.split()[:6] if side=='right' else text.split()[-6:]
    assert [o.text for o in found.words] == read
    shown = ''.join(o for o,_ in found.segments(found.first, 0))
    assert shown.startswith('…') == (side=='left')
    assert shown.endswith('…') == (side=='right')


@pytest.mark.parametrize('task', ['sequence-classification', 'token-classification'])
def test_words_in_several_windows_are_counted_once(task):
    hf,df = make_objects('bert', auto_model=TASKS[task].auto_model),make_texts(40)
    words = task=='token-classification'
    if words: df = df.assign(tokens=df.text.str.split(), labels=[['O']*len(o.split()) for o in df.text])
    if words: df.labels.iloc[0][0] = 'B-X'
    dls = HFTextDataLoaders.from_df(df, hf, task=task, valid_pct=.2, max_length=12, windows=True, stride=3, bs=8,
                                    device='cpu')
    learn = quiet(hf_learner(dls, hf.model))
    text = ' '.join(make_texts(2).text)
    found = learn.explain(text.split(), 0) if words else learn.explain(text)
    check(found)
    assert [o.text for o in found.words] == text.split()
    assert found.first.tokens[-1].end == len(text)


def test_no_texts_and_empty_texts(trained):
    assert trained.explain([]) == []
    assert [o.words for o in trained.explain(['', '  \n'])] == [[], []]
    with pytest.raises(ValueError, match=mentions('texts[1]')): trained.explain(['fine', 3])
    with pytest.raises(ValueError, match=mentions('n_steps', 0)): trained.explain('fine', n_steps=0)
    with pytest.raises(ValueError, match=mentions('batch_tokens', 0)): trained.explain('fine', batch_tokens=0)


def test_batches_equal_single_texts(trained):
    texts = make_texts(5, seed=8).text.tolist()
    many,small = trained.explain(texts, n_steps=10),trained.explain(texts, n_steps=10, batch_tokens=1)
    for text,a,b in zip(texts, many, small, strict=True):
        assert a.texts == b.texts == (text,)
        assert values(a.words) == pytest.approx(values(b.words), abs=1e-4)


# ---- models

def test_the_learner_does_not_change(learn):
    learn.freeze()
    learn.model.train()
    before = {n: (p.detach().clone(), p.requires_grad) for n,p in learn.model.named_parameters()}
    modes,cbs = [o.training for o in learn.model.modules()],[*learn.cbs]
    with torch.inference_mode(): check(learn.explain('the film warm'))
    check(learn.explain('the film warm'))
    assert [o.training for o in learn.model.modules()] == modes
    assert [*learn.cbs] == cbs
    for n,p in learn.model.named_parameters():
        assert p.grad is None
        assert p.requires_grad == before[n][1]
        assert torch.equal(p, before[n][0])
    assert not any(o._forward_hooks for o in learn.model.modules())


def test_frozen_and_trained_models_have_the_same_attributions(trained):
    expected = trained.explain('the film warm')
    trained.model.requires_grad_(False)
    try: assert values(trained.explain('the film warm').words) == pytest.approx(values(expected.words), abs=1e-6)
    finally: trained.model.requires_grad_(True)


@pytest.mark.parametrize('config', [LoraConfig(target_modules=['query', 'word_embeddings'], init_lora_weights=False),
                                    LoraConfig(target_modules=['query'], modules_to_save=['word_embeddings']),
                                    PromptTuningConfig(task_type='SEQ_CLS', num_virtual_tokens=3)],
                         ids=['embeddings', 'whole embeddings', 'prompts'])
def test_adapters(df, hf, config):
    dls = HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', bs=8, seed=0, max_length=60, device='cpu')
    learn = quiet(hf_learner(dls, hf.model, peft_config=config))
    check(learn.explain('the film warm the plot dull'))


def test_a_model_in_16_bits(trained, tmp_path):
    folder = trained.save_pretrained(tmp_path/'model')
    learn = quiet(load_hf_learner(folder, device='cpu'))
    learn.model.bfloat16()
    assert learn.model.dtype is torch.bfloat16
    found,expected = (o.explain('the film warm the plot') for o in (learn, trained))
    assert values(found.words) == pytest.approx(values(expected.words), abs=.1*expected.largest)
    assert next(learn.model.parameters()).dtype is torch.bfloat16


def test_models_without_gradients_are_refused(trained):
    learn = copy(trained)
    learn.model = in_int8(trained.model)
    with pytest.raises(ValueError, match=mentions('int8')): learn.explain('the film')
    learn.model = nn.Linear(1, 1)
    learn.model.explain_problem = OnnxModel.explain_problem
    assert not can_explain(learn)
    with pytest.raises(ValueError, match=mentions('ONNX')): learn.explain('the film')


def test_other_threads_predict_as_before(trained):
    texts = make_texts(40, seed=3).text.tolist()
    expected,found,interval = trained.hf_predict(texts),[],sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread = Thread(target=lambda: found.extend(trained.hf_predict(texts) for _ in range(10)))
    try:
        thread.start()
        explanations = trained.explain(texts[:4])
    finally:
        thread.join()
        sys.setswitchinterval(interval)
    for o in found: assert_same(o, expected)
    for o in explanations: check(o)


def test_captum_is_named_if_it_is_missing(trained, monkeypatch):
    monkeypatch.setitem(sys.modules, 'captum.attr', None)
    with pytest.raises(ImportError, match=mentions('captum', '[explain]')): trained.explain('the film')


def test_too_few_steps_print_a_line(trained, capsys):
    texts = make_texts(6, seed=4).text.tolist()
    trained.explain(texts, n_steps=1)
    assert 'n_steps=2' in capsys.readouterr().out
    print_once.cache_clear()
    trained.explain(texts, n_steps=50)
    assert capsys.readouterr().out == ''


# ---- what is shown

OUTPUT = ExplainedOutput('<b>', 2., -1., [Attribution('good', 4., 0, 4), Attribution('<i>', -1., 5, 8)], [])


def test_markup_is_text():
    html = Explanation(('good <i>',), {}, [OUTPUT])._repr_html_()
    assert '&lt;b&gt;' in html
    assert '&lt;i&gt;' in html
    assert '<i>' not in html


def test_numbers_are_shown_besides_colors():
    explanation = Explanation(('good <i>',), {}, [OUTPUT])
    html = explanation._repr_html_()
    assert 'title="+4.00"' in html
    assert 'title="-1.00"' in html
    assert 'good(+4.00)' in str(explanation)


def test_the_command_line_explains(trained, tmp_path, capsys):
    folder,file = str(trained.save_pretrained(tmp_path/'model')),tmp_path/'texts.txt'
    file.write_text('the film warm\nthe plot dull\n')
    assert run(['predict', folder, '--file', str(file), '--explain', '--option', 'target=good,n_steps=20']) == 0
    lines = [json.loads(o) for o in capsys.readouterr().out.splitlines()]
    assert [o['prediction']['label'] for o in lines] == ['good', 'bad']
    assert [o[0] for o in lines[0]['explanation'][0]['words']] == ['the', 'film', 'warm']
    assert {o['explanation'][0]['name'] for o in lines} == {'good'}
    assert run(['predict', folder, '--file', str(file), '--explain', '--generate']) == 1
    assert '--generate' in capsys.readouterr().err


def test_the_page_has_a_button_that_explains(trained):
    app = serve(trained, wait=False)
    try:
        client = Client(app.local_url, verbose=False)
        assert client.predict('the film warm', api_name='/predict')['label'] == 'good'
        assert '>warm</span>' in client.predict('the film warm', api_name='/explain')
        with pytest.raises(Exception, match='empty'): client.predict(' ', api_name='/explain')
    finally: app.close(verbose=False)


def test_the_page_of_a_task_without_explanations_has_no_button():
    app = gradio_page(quiet(make_learner('gpt2', 'causal-lm')))
    assert 'Explain' not in str(app.get_config_file())
