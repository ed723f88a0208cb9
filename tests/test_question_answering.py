"Question answering: windows, targets, decoding, metrics and invalid input."
import pickle
import re
import string
import sys
import unicodedata
from collections import Counter
from functools import cache, partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ARCHITECTURES, THINGS, gpt_like, make_objects, mentions, roberta_like, unigram, wordpiece
from datasets import Dataset
from fastai.data.all import CategoryBlock, ColReader, ColSplitter, DataBlock
from fastai.interpret import Interpretation
from fastai.learner import load_learner
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForQuestionAnswering, PreTrainedTokenizerFast

from blurlike.all import (
    NO_ANSWER,
    Answer,
    AnswerBlock,
    AnswerLoss,
    CellsReader,
    HFInputs,
    HFLoss,
    HFTextBlock,
    HFTextDataLoaders,
    answer_exact,
    answer_f1,
    get_task,
    hf_learner,
    normalize_answer,
    set_pad_token,
)
from blurlike.tasks.question_answering import (
    QuestionAnswering,
    as_answer,
    as_characters,
    from_characters,
    read_answers,
    right_answers,
    row_answers,
)

QA = ['bert', 'deberta-v2', 'gpt2', 'roberta', 't5', 'xlnet'] # the matrix has them all


def make_qa(arch='bert', **kwargs):
    "A tiny model that answers questions"
    return make_objects(arch, auto_model=AutoModelForQuestionAnswering, **kwargs)


def make_rows(n, things=7, none_every=4):
    "Contexts that describe things, and questions about one of them, or about a missing one"
    rng = np.random.default_rng(0)
    rows = []
    for i in range(n):
        subjects = rng.permutation(THINGS)[:things]
        values = [('warm', 'dull', 'slow moving', 'funny')[rng.integers(4)] for _ in subjects]
        context,starts = '',[]
        for t,s in zip(subjects, values, strict=True):
            context += f'the {t} '
            starts.append(len(context))
            context += f'{s} '
        k = rng.integers(things)
        absent = next(t for t in THINGS if t not in subjects)
        rows.append((f'the {absent}', context, '', -1) if none_every and i%none_every==0
                    else (f'the {subjects[k]}', context, values[k], starts[k]))
    df = pd.DataFrame(rows, columns=['question', 'context', 'answer_text', 'answer_start'])
    return df.assign(is_valid=df.index >= n*2//3)


@pytest.fixture
def qa(): return make_rows(36)


def from_df(df, hf=None, **kwargs):
    defaults = dict(task='question-answering', valid_col='is_valid', bs=8, seed=0, device='cpu', max_length=24,
                    stride=6)
    return HFTextDataLoaders.from_df(df, hf or make_qa(), **(defaults | kwargs))


@cache
def config_for(size):
    return AutoConfig.for_model('bert', vocab_size=size, **ARCHITECTURES['bert'][1] | dict(max_position_embeddings=200))


def make_block(tokenizer, max_length=32, stride=8, **options):
    config = config_for(len(tokenizer))
    set_pad_token(tokenizer, config)
    return HFTextBlock('bert', config, tokenizer, task='question-answering', max_length=max_length, stride=stride,
                       **options)


def collate(samples, block): return block.task.collate(block.task.tokenize(samples, block), range(len(samples)), block)
def encode(pair, block): return collate([(pair,)], block)[0]


def gold_logits(inputs, targets):
    "Logits of a model that knows the targets"
    logits = torch.nn.functional.one_hot(targets.clamp(min=0), inputs['input_ids'].shape[-1]).transpose(-1, -2)*50.
    return logits*inputs.window_mask[...,None,None]


TOKENIZERS = {'wordpiece': wordpiece, 'roberta': roberta_like, 'gpt': gpt_like, 'unigram': unigram,
              'unigram, padded left': lambda: unigram(padding_side='left')}


# --- every architecture

@pytest.mark.parametrize('arch', QA)
def test_an_architecture_learns_answers_and_saves(arch, qa, tmp_path):
    hf = make_qa(arch)
    dls = from_df(qa, hf, stride=10)
    xb,yb = dls.valid.one_batch()
    assert yb.shape == (*xb['input_ids'].shape[:2], 2)
    assert xb['n_windows'].max() > 1
    learn = hf_learner(dls, hf.model, lr=1e-3)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert all(torch.isfinite(p).all() for p in hf.model.parameters())
    one,two = learn.hf_predict([dict(question='the film', context='the film warm the plot dull'),
                                ('the plot', 'the plot dull '*20)])
    for pred,context in ((one, 'the film warm the plot dull'), (two, 'the plot dull '*20)):
        assert context[pred['start']:pred['end']] == pred['answer']
        assert pred['score'] >= 0
    learn.save_pretrained(tmp_path/'model')
    model = AutoModelForQuestionAnswering.from_pretrained(tmp_path/'model').eval()
    with torch.no_grad(): ours,theirs = (o.eval()(**HFInputs(xb).for_model()) for o in (hf.model, model))
    torch.testing.assert_close(ours.start_logits, theirs.start_logits)
    torch.testing.assert_close(ours.end_logits, theirs.end_logits)


@pytest.mark.parametrize('arch', QA)
def test_the_models_own_loss_is_ours(arch, qa):
    hf = make_qa(arch)
    short = qa.assign(context=[o[:40].rsplit(' ', 1)[0] for o in qa.context], answer_text='the', answer_start=0)
    dls = from_df(short, hf, bs=1, stride=10)
    batch = dls.valid.one_batch()
    assert dls.hf_block.task.labels(batch[1:], batch[0])
    losses = []
    for loss_func in (HFLoss(), AnswerLoss()):
        learn = hf_learner(dls, hf.model, loss_func=loss_func, metrics=[])
        with learn.no_bar(): losses.append(learn.validate(dl=[batch])[0])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


# --- targets

@pytest.mark.parametrize('kind', TOKENIZERS)
def test_the_question_is_first_unless_the_tokenizer_pads_on_the_left(kind):
    block = make_block(TOKENIZERS[kind]())
    inputs = encode(('the film', 'the plot dull the cast sour'), block)
    first = next(i for i in inputs['sequence_ids'][0,0].tolist() if i >= 0)
    assert first == (1 if 'left' in kind else 0)
    for part,text in enumerate(['the film', 'the plot dull the cast sour']):
        ends = inputs['offsets'][inputs['sequence_ids']==part]
        assert (ends.min(), ends.max()) == (0, len(text))
    assert row_answers(inputs) == [(('the film', 'the plot dull the cast sour'), None)]


def test_windows_of_a_pair_are_read_as_a_pair():
    block = make_block(wordpiece(), max_length=12, stride=2)
    inputs = encode(('the film', 'the plot dull the cast sour the film warm'), block)
    assert block.decode(inputs) == [('the film', 'the plot dull the cast sour the … sour the film warm')]


def test_windows_without_the_answer_point_at_cls_and_padding_windows_are_ignored():
    block = make_block(wordpiece(), max_length=16, stride=4)
    long,short = 'the film warm '*8,'the film warm'
    inputs,targets = collate([(('the film', long), Answer('warm', 9)), (('the film', short), NO_ANSWER)], block)
    n = inputs['n_windows'].tolist()
    assert n[0] > 2
    assert n[1] == 1
    assert targets[0,0].tolist() == [6, 6] # [CLS] the film [SEP] the film warm
    assert (targets[0,1:] == 0).all()
    assert (targets[1,0] == 0).all()
    assert (targets[1,1:] == -100).all()


def test_without_a_cls_token_no_answer_is_at_the_first_token():
    rows = [(('the film', 'the plot dull'), NO_ANSWER), (('the film', 'the plot'), NO_ANSWER)]
    block = make_block(gpt_like())
    assert (collate(rows, block)[1] == 0).all()
    block.hf_tokenizer.padding_side = 'left'
    inputs,targets = collate(rows, block)
    assert inputs['sequence_ids'][1,0,targets[1,0,0]] == 0 # the question's first token, for the context comes first


WORDS = st.sampled_from('the film warm dull plot zoë 東京 🎬 [0-9] a b\u0301 slow'.split())


@st.composite
def rows(draw):
    "A context of words, an answer that is a run of some of them, and a question"
    words = draw(st.lists(WORDS, min_size=1, max_size=40))
    a = draw(st.integers(0, len(words)-1))
    b = draw(st.integers(a, min(len(words), a+3)-1))
    gaps = draw(st.lists(st.sampled_from([' ', '  ', '\n']), min_size=len(words), max_size=len(words)))
    spaced = [w+g for w,g in zip(words, gaps, strict=True)]
    context,start = ''.join(spaced),len(''.join(spaced[:a]))
    end = len(''.join(spaced[:b])) + len(words[b])
    none = draw(st.integers(0, 4))==0
    question = ' '.join(draw(st.lists(WORDS, min_size=1, max_size=3)))
    return (question, context), NO_ANSWER if none else Answer(context[start:end], start)


@pytest.mark.parametrize('kind', TOKENIZERS)
@settings(max_examples=25, deadline=None)
@given(samples=st.lists(rows(), min_size=1, max_size=4), extra=st.integers(4, 40), stride=st.integers(24, 40))
def test_answers_read_back_from_their_targets_are_the_answers(kind, samples, extra, stride):
    block = make_block(BLOCKS.setdefault(kind, TOKENIZERS[kind]()), max_length=64)
    block.max_length,block.stride = 34 + stride + extra,stride
    samples = [o for o in samples if block.task.problem(o, block) is None]
    if not samples: return
    inputs,targets = collate(samples, block)
    preds = block.task.read(gold_logits(inputs, targets), inputs, max_answer_len=200, handle_impossible_answer=True,
                            align_to_words=False)
    for ((_,context),answer),(pred,*_) in zip(samples, preds, strict=True):
        assert pred['answer'] == answer.text
        assert context[pred['start']:pred['end']] == answer.text
    assert row_answers(inputs) == samples


BLOCKS = {}


def test_an_answer_longer_than_the_overlap_of_windows_raises(qa):
    context = 'the film warm '*20
    row = qa.index[5]
    qa = qa.assign(context=[context if i==row else o for i,o in qa.context.items()],
                   answer_text=[context[:140].strip() if i==row else o for i,o in qa.answer_text.items()],
                   answer_start=[0 if i==row else o for i,o in qa.answer_start.items()])
    assert from_df(qa, max_length=60, stride=35)
    cut = qa.assign(answer_start=[56 if i==row else o for i,o in qa.answer_start.items()],
                    answer_text=[context[56:196].strip() if i==row else o for i,o in qa.answer_text.items()])
    with pytest.raises(ValueError, match=mentions('row 5', 'max_length=36', 'stride=6')):
        from_df(cut, max_length=36, stride=6)


# --- decoding

def reference(logits, inputs, context, tokenizer, top_k, max_answer_len, impossible, n=None):
    "Search every span of every window, as SQuAD's baselines do; an answer has the score of its most confident window"
    answers,null,n = [],1e6,n or top_k
    for w in range(inputs['n_windows'][0]):
        parts,offsets = inputs['sequence_ids'][0,w].tolist(),inputs['offsets'][0,w].tolist()
        cls = inputs['input_ids'][0,w].tolist().index(tokenizer.cls_token_id)
        seen = [i for i,o in enumerate(parts) if o==1 or i==cls]
        p = [{i: np.exp(x[i] - max(x[j] for j in seen)) for i in seen}
             for x in (logits[0,w,:,k].double().tolist() for k in (0, 1))]
        p = [{i: v/sum(o.values()) for i,v in o.items()} for o in p]
        null = min(null, p[0][cls]*p[1][cls])
        found = sorted(((p[0][i]*p[1][j], i, j) for i in seen for j in seen if i!=cls and j!=cls
                        and i <= j < i+max_answer_len), reverse=True)
        here = []
        for score,i,j in found[:n]:
            text = context[offsets[i][0]:offsets[j][1]]
            same = [o for o in here if o['answer'].lower()==text.lower()]
            if same: same[0]['score'] += score
            else: here.append(dict(score=score, start=offsets[i][0], end=offsets[j][1], answer=text))
        for o in here:
            same = [a for a in answers if a['answer'].lower()==o['answer'].lower()]
            if same and same[0]['score'] < o['score']: same[0].update(o)
            elif not same: answers.append(o)
    if impossible: answers.append(dict(score=null, start=0, end=0, answer=''))
    if len(answers) < top_k and n < logits.shape[-2]*max_answer_len: # different spans may be the same answer
        return reference(logits, inputs, context, tokenizer, top_k, max_answer_len, impossible, n*4)
    return sorted(answers, key=lambda o: -o['score'])[:top_k]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 60), top_k=st.integers(1, 5), max_answer_len=st.integers(1, 20),
       impossible=st.booleans(),
       spread=st.sampled_from([0.1, 3., 30.]))
def test_answers_equal_those_of_an_exhaustive_search(seed, n, top_k, max_answer_len, impossible, spread):
    rng = np.random.default_rng(seed)
    tokenizer = BLOCKS.setdefault('wordpiece', wordpiece())
    block = make_block(tokenizer, max_length=24, stride=8)
    context = ' '.join(rng.choice('the film warm dull zoë Warm plot unknownword'.split(), n))
    inputs = encode(('the film', context), block)
    logits = torch.tensor(rng.normal(size=(*inputs['input_ids'].shape, 2))*spread, dtype=torch.float32)
    ours = read_answers(logits, inputs, top_k=top_k, max_answer_len=max_answer_len, handle_impossible_answer=impossible,
                        align_to_words=False)[0]
    theirs = reference(logits, inputs, context, tokenizer, top_k, max_answer_len, impossible)
    assert len(ours) == len(theirs)
    assert all(o['score'] <= 1 + 1e-6 for o in ours)
    for a,b in zip(ours, theirs, strict=True):
        assert a['score'] == pytest.approx(b['score'], rel=1e-4, abs=1e-7)
        if b['score'] > 1e-4 and sum(abs(o['score'] - b['score']) < 1e-4*b['score'] for o in theirs)==1:
            assert {k: a[k] for k in ('start', 'end', 'answer')} == {k: b[k] for k in ('start', 'end', 'answer')}


def one_answer(context, start, end, **options):
    "Return the answer of a model that points at the tokens with these texts"
    block = make_block(wordpiece(), max_length=48)
    inputs = encode(('the film', context), block)
    tokens = [context[a:b] if p==1 else None
              for (a,b),p in zip(inputs['offsets'][0,0].tolist(), inputs['sequence_ids'][0,0].tolist(), strict=True)]
    logits = torch.zeros(*inputs['input_ids'].shape, 2)
    logits[0,0,tokens.index(start),0] = logits[0,0,tokens.index(end),1] = 20.
    return read_answers(logits, inputs, **options)[0][0]


def test_answers_are_aligned_to_words_by_default():
    assert one_answer('the film zarm', 'film', 'film')['answer'] == 'film'
    block = make_block(roberta_like(), max_length=48)
    inputs = encode(('the film', 'the filmwarm plot'), block)
    parts,words,offsets = (inputs[o][0,0].tolist() for o in ('sequence_ids', 'word_ids', 'offsets'))
    places = [i for i,p in enumerate(parts) if p==1 and offsets[i][1] > 4 and offsets[i][1] <= 12]
    assert len({words[i] for i in places}) == 1
    assert len(places) > 1
    logits = torch.zeros(*inputs['input_ids'].shape, 2)
    logits[0,0,places[-1]] = 20.
    assert read_answers(logits, inputs)[0][0]['answer'] == 'filmwarm'
    assert read_answers(logits, inputs, align_to_words=False)[0][0]['answer'] != 'filmwarm'


UNSPACED = { # contexts, and answers in them
    '映画は東京で撮影された。': '東京', 'ภาพยนตร์ถ่ายทำในกรุงเทพ': 'กรุงเทพ', '这部电影是2019年在北京拍摄的。': '北京',
    '監督のSmithは東京タワーで': 'Smith', 'それは3.14と書いた': '3.14'}


def unigram_of_characters(split=True):
    "A tokenizer whose words are separated by spaces, as that of XLM-RoBERTa, with a token for each character"
    vocab = [(o, 0.) for o in ('<unk>', '<pad>', '<s>', '</s>')] + [('▁', -2.)]
    tok = Tokenizer(models.Unigram(vocab + [(o, -3.) for o in sorted({*''.join(UNSPACED), *'the film'} - {' '})], 0))
    tok.pre_tokenizer = pre_tokenizers.Metaspace(split=split)
    return PreTrainedTokenizerFast(tokenizer_object=tok, unk_token='<unk>', pad_token='<pad>', cls_token='<s>')


KINDS = {'gpt': gpt_like, 'roberta': roberta_like, 'unigram': unigram_of_characters,
         'one word': partial(unigram_of_characters, split=False)} # as for Llama, where a text has one word


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('context', UNSPACED)
def test_an_answer_in_a_text_without_spaces_is_not_widened_to_the_text(kind, context):
    answer = UNSPACED[context]
    block = make_block(KINDS[kind](), max_length=200, stride=64, max_answer_len=40)
    start = context.index(answer)
    inputs,targets = collate([(('the film', context), Answer(answer, start))], block)
    logits = gold_logits(inputs, targets)
    best = block.task.read(logits, inputs)[0][0]
    assert (best['answer'], best['start'], best['end']) == (answer, start, start + len(answer))
    metric = block.task.metrics()[0]
    metric.accumulate(SimpleNamespace(dls=SimpleNamespace(hf_block=block, train=SimpleNamespace(facts={})),
                                      xb=(inputs,), pred=logits))
    assert metric.value == 100


def test_an_answer_ends_at_spaces_if_the_tokenizer_has_no_words():
    block = make_block(unigram_of_characters(split=False), max_length=200, stride=64, max_answer_len=40)
    inputs,targets = collate([(('the film', 'the film the film'), Answer('film', 4))], block)
    assert len({o for o in inputs['word_ids'][0,0].tolist() if o >= 0}) == 1
    logits = gold_logits(inputs, targets)
    best = block.task.read(logits, inputs)[0][0]
    assert (best['answer'], best['start'], best['end']) == ('film', 4, 8)
    logits = torch.zeros_like(logits)
    logits[0,0,inputs['offsets'][0,0].tolist().index([5, 6])] = 20. # a letter in the word
    assert block.task.read(logits, inputs)[0][0]['answer'] == 'film'


@pytest.mark.parametrize('align', [True, False])
@pytest.mark.parametrize('context', ['the film warm '*30, '映画は東京で撮影された。', 'a b c d e',
                                     'film warm plot dull cast '*3])
def test_top_k_gives_as_many_different_answers(context, align):
    block = make_block(gpt_like(), max_length=120, stride=16)
    inputs = encode(('the film', context), block)
    logits = torch.randn(*inputs['input_ids'].shape, 2, generator=torch.Generator().manual_seed(0))*4
    logits[:,:,int((inputs['sequence_ids']==1)[0,0].int().argmax())] += 20 # many spans of one text
    for k in (1, 5):
        answers = block.task.read(logits, inputs, top_k=k, align_to_words=align)[0]
        assert len({o['answer'].lower() for o in answers}) == len(answers) == k
        assert [o['score'] for o in answers] == sorted((o['score'] for o in answers), reverse=True)
        assert all(context[o['start']:o['end']]==o['answer'] for o in answers)


def test_an_answer_has_at_most_max_answer_len_tokens_and_never_ends_before_it_starts():
    context = 'the film warm the plot dull the cast sour'
    assert one_answer(context, 'film', 'cast', max_answer_len=7)['answer'] == 'film warm the plot dull the cast'
    assert one_answer(context, 'film', 'cast', max_answer_len=6)['answer'] != 'film warm the plot dull the cast'
    assert one_answer(context, 'cast', 'film')['score'] < 0.01


def test_no_answer_is_predicted_only_with_handle_impossible_answer():
    block = make_block(wordpiece(), max_length=48)
    inputs = encode(('the film', 'the plot dull'), block)
    logits = torch.zeros(*inputs['input_ids'].shape, 2)
    logits[0,0,0] = 20.
    assert read_answers(logits, inputs)[0][0]['answer']
    none = dict(score=pytest.approx(1), start=0, end=0, answer='')
    assert read_answers(logits, inputs, handle_impossible_answer=True)[0][0] == none
    logits[0,0,0] = -20.
    assert read_answers(logits, inputs, handle_impossible_answer=True)[0][0]['answer']


def test_predictions_do_not_depend_on_their_batch(qa):
    hf = make_qa()
    learn = hf_learner(from_df(qa, hf), hf.model)
    questions = list(zip(qa.question, qa.context, strict=True))
    together = learn.hf_predict(questions)
    for a,b in zip(together, [learn.hf_predict(o) for o in questions], strict=True):
        assert a['score'] == pytest.approx(b['score'], abs=1e-5)
    assert [len(o) for o in learn.hf_predict(questions[:3], top_k=2, doc_stride=0)] == [2, 2, 2]
    assert learn.hf_predict([]) == []


@pytest.fixture
def hf_learn(qa):
    hf = make_qa()
    learn = hf_learner(from_df(qa, hf), hf.model, lr=1e-2)
    with learn.no_bar(), learn.no_logging(): yield learn


# --- metrics

@pytest.mark.parametrize(('gold', 'pred', 'f1'), [('the Film.', 'film', 1), ('a b c', 'b c d', 0.8), ('film', '', 0),
                                                  ('', '', 1), ('the', 'a', 1),
                                                  ('x x y', 'x z', 0.4)])
def test_f1_is_that_of_squad(gold, pred, f1): assert answer_f1(gold, pred) == pytest.approx(f1)


def mlqa_words(text):
    "The words of MLQA's evaluation script for Chinese, `mlqa_evaluation_v1.py`, after normalization"
    punctuation = {chr(i) for i in range(sys.maxunicode) if unicodedata.category(chr(i)).startswith('P')}
    text = ''.join(o for o in text.lower() if o not in punctuation | set(string.punctuation))
    words,rest = [],''
    for o in text:
        if not re.search('[\u4e00-\u9fa5]', o): rest += o
        else: words,rest = [*words, *rest.split(), o],''
    return [*words, *rest.split()]


@pytest.mark.parametrize(('gold', 'pred'), [
    ('北京', '北京市'), ('北京。', '北京'), ('《红楼梦》', '红楼梦'), ('1999年', '1999 年'),
    ('北京 和 上海', '北京和上海'), ('他在 IBM 公司', 'IBM公司'), ('一九九九', '二'), ('北京', '')])
def test_unspaced_answers_are_scored_as_mlqa_does(gold, pred):
    golds,preds = mlqa_words(gold),mlqa_words(pred)
    same = sum((Counter(golds) & Counter(preds)).values())
    assert answer_f1(gold, pred) == pytest.approx(2*same/(len(golds) + len(preds)))
    assert answer_exact(gold, pred) == (golds==preds)


@pytest.mark.parametrize(('gold', 'pred', 'f1'), [('東京タワー', '東京', 4/7), ('กรุงเทพ', 'กรุง', 8/11),
                                                  ('「東京」', '東京、', 1)])
def test_other_unspaced_languages_are_scored_by_characters(gold, pred, f1):
    assert answer_f1(gold, pred) == pytest.approx(f1)


@given(st.text('aBé thnü.,-!0я한국', max_size=20), st.text('aBé thnü.,-!0я한국', max_size=20))
def test_spaced_texts_have_the_scores_of_squad(gold, pred):
    def words(o):
        o = ''.join(c for c in o.lower() if c not in string.punctuation)
        return re.sub(r'\b(a|an|the)\b', ' ', o).split()
    golds,preds = words(gold),words(pred)
    same = sum((Counter(golds) & Counter(preds)).values())
    f1 = 2*same/(len(golds) + len(preds)) if golds and preds else float(golds==preds)
    assert (answer_exact(gold, pred), answer_f1(gold, pred)) == (golds==preds, f1)


def test_texts_are_normalized_as_squad_does():
    assert normalize_answer(' An  U.S.-led\tattack, the  1990s ') == 'usled attack 1990s'


def test_metrics_score_the_answers_of_hf_predict(hf_learn, qa):
    learn = hf_learn
    learn.fit(3, 1e-2)
    valid = qa[qa.is_valid]
    preds = learn.hf_predict(list(zip(valid.question, valid.context, strict=True)))
    _,em,f1 = learn.validate()
    assert em == pytest.approx(100*np.mean([normalize_answer(p['answer'])==normalize_answer(t)
                                            for p,t in zip(preds, valid.answer_text, strict=True)]))
    assert f1 == pytest.approx(100*np.mean([answer_f1(t, p['answer'])
                                            for p,t in zip(preds, valid.answer_text, strict=True)]))


def handles_impossible(dls):
    "Return whether predictions with `dls` may be that there is no answer"
    return dls.hf_block.task.decode_options(SimpleNamespace(dls=dls))['handle_impossible_answer']


def test_rows_without_an_answer_turn_on_handle_impossible_answer(qa):
    assert handles_impossible(from_df(qa)) is True
    assert handles_impossible(from_df(make_rows(36, none_every=0))) is False
    assert handles_impossible(from_df(qa, handle_impossible_answer=False)) is False


def test_a_data_block_finds_rows_without_an_answer_too(qa):
    hf = make_qa()
    block = DataBlock(blocks=(HFTextBlock(*hf), AnswerBlock), get_x=CellsReader(['question', 'context']),
                      get_y=CellsReader(['answer_text', 'answer_start']),
                      splitter=ColSplitter('is_valid'))
    assert handles_impossible(block.dataloaders(qa, bs=4)) is True


def test_new_rows_do_not_change_handle_impossible_answer(qa):
    hf = make_qa()
    learn = hf_learner(from_df(make_rows(36, none_every=0)), hf.model)
    learn.dls.test_dl(qa, with_labels=True)
    assert handles_impossible(learn.dls) is False


def test_training_finds_the_answers(qa):
    hf = make_qa()
    learn = hf_learner(from_df(make_rows(100, things=2), hf, max_length=32), hf.model, lr=5e-3)
    with learn.no_bar(), learn.no_logging():
        before = learn.validate()[0]
        learn.fit_one_cycle(6, 5e-3)
        assert learn.validate()[0] < before


# --- fastai's methods

def test_fastai_shows_predicts_interprets_and_exports(hf_learn, qa, tmp_path, capsys):
    learn = hf_learn
    learn.fit(1)
    learn.dls.show_batch(max_n=3)
    learn.show_results(max_n=3)
    Interpretation.from_learner(learn).plot_top_losses(2)
    shown = capsys.readouterr().out
    for o in ('question', 'context', 'answer', 'prediction', 'loss', 'probability', '»'): assert o in shown
    preds,targs = learn.get_preds()
    assert len(preds) == len(targs) == qa.is_valid.sum()
    for p in preds: torch.testing.assert_close(p.sum(1), torch.ones(p.shape[0], 2))
    answer,*_ = learn.predict(qa.iloc[0])
    pred = learn.hf_predict((qa.question[0], qa.context[0]))
    assert answer.text == pred['answer']
    learn.path = tmp_path
    learn.export('learner.pkl')
    assert load_learner(tmp_path/'learner.pkl').predict(qa.iloc[0])[0] == answer
    assert pickle.loads(pickle.dumps(learn.loss_func)).reduction == 'mean'


def test_workers_give_the_same_batches(qa):
    here,there = (from_df(qa, num_workers=n).valid for n in (0, 1))
    for (a,ya),(b,yb) in zip(here, there, strict=True):
        assert set(a) == set(b)
        assert all(torch.equal(a[k], b[k]) for k in a)
        assert torch.equal(ya, yb)


def test_a_datablock_infers_the_task_from_the_answers(qa):
    hf = make_qa()
    block = DataBlock(blocks=(HFTextBlock(*hf, max_length=24, stride=6), AnswerBlock),
                      get_x=lambda o: (o.question, o.context),
                      get_y=lambda o: (o.answer_text, o.answer_start), splitter=ColSplitter())
    dls = block.dataloaders(qa, bs=4)
    assert dls.hf_block.task.name == 'question-answering'
    assert dls.hf_block.windows
    assert dls.one_batch()[1].ndim == 3


def test_the_task_is_inferred_from_the_columns(qa, capsys):
    cols = dict(text_col=['question', 'context'], label_col=['answer_text', 'answer_start'])
    assert from_df(qa, task=None, **cols).hf_block.task.name == 'question-answering'
    assert "task='question-answering'" in capsys.readouterr().out
    squad = qa.assign(answers=[dict(text=[t] if t else [], answer_start=[s] if t else [])
                               for t,s in zip(qa.answer_text, qa.answer_start, strict=True)])
    dls = from_df(squad, task=None, text_col=['question', 'context'], label_col='answers')
    assert dls.hf_block.task.name == 'question-answering'


def test_a_dataset_with_the_columns_of_squad(qa):
    rows = [dict(question=o.question, context=o.context,
                 answers=dict(text=[o.answer_text]*2, answer_start=[o.answer_start]*2) if o.answer_text else
                 dict(text=[], answer_start=[])) for o in qa.itertuples()]
    dls = HFTextDataLoaders.from_dataset(Dataset.from_list(rows), make_qa(), task='question-answering',
                                         label_col='answers', max_length=24, stride=6, seed=0)
    assert {type(o[1]) for o in dls.train_ds} == {Answer}
    dls = HFTextDataLoaders.from_dataset(Dataset.from_pandas(qa), make_qa(), task='question-answering',
                                         valid_col='is_valid', max_length=24, stride=6)
    assert dls.train_ds[1][1] == Answer(qa.answer_text[1], qa.answer_start[1])


def test_missing_texts_and_starts_of_minus_one_mean_no_answer(qa):
    gone = qa.astype(object).assign(answer_text=qa.answer_text.where(qa.answer_text!='', None),
                                    answer_start=qa.answer_start.where(qa.answer_start>=0, np.nan))
    dls = from_df(gone)
    assert [o[1]==NO_ANSWER for o in dls.train_ds] == [o=='' for o in qa[~qa.is_valid].answer_text]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.text(), st.text(min_size=1)), min_size=1, max_size=3))
def test_texts_survive_as_tensors(texts):
    assert [from_characters(o) for o in as_characters(texts)] == texts


def test_the_default_stride_fits_any_max_length(qa):
    for n in (16, 24, 48, 64): assert from_df(qa, max_length=n, stride=None).hf_block.stride <= n//3
    assert HFTextBlock(*make_qa(max_position_embeddings=512), max_length=500, task='question-answering').stride == 128


# --- invalid input

def wrong(qa, row=5, **cells):
    "`qa` with other cells in one row"
    qa = qa.astype(object).copy()
    for k,v in cells.items(): qa.at[row, k] = v
    return qa


@pytest.mark.parametrize(('cells', 'facts'), [
    (dict(answer_text='sour', answer_start=4, context='the plot dull sour'), ["'sour'", 4, "'plot'", 14]),
    (dict(answer_text='grim', answer_start=4), ["'grim'", 4]),
    (dict(answer_text='dull', answer_start=900), ["'dull'", 900]),
    (dict(answer_text='dull', answer_start=-7), ["'dull'", -7]),
    (dict(answer_text=' ', answer_start=3), ["' '"]),
    (dict(answer_text=12, answer_start=3), [12]),
    (dict(answer_start='4'), ["'4'"]),
    (dict(answer_text='dull', answer_start=4.5), [4.5]),
    (dict(context=''), ['context']),
    (dict(context=None), ['context', None]),
    (dict(question=' \n'), ['question']),
    (dict(question='film '*30), ['question', 30, 'max_length=24', 14, 'stride=6'])])
def test_an_invalid_row_raises(qa, cells, facts):
    with pytest.raises(ValueError, match=mentions('1 of 24', 'training', 'row 5', *facts)): from_df(wrong(qa, **cells))


def test_a_long_question_is_valid_if_the_row_fits(qa):
    assert from_df(wrong(qa, question='film '*16, context='the plot', answer_text='plot', answer_start=4))


def test_targets_of_another_kind(qa):
    block = HFTextBlock(*make_qa(), task='question-answering', max_length=24, stride=6)
    dblock = DataBlock(blocks=(block, CategoryBlock), get_x=lambda o: (o.question, o.context),
                       get_y=ColReader('answer_text'), splitter=ColSplitter())
    with pytest.raises(ValueError, match=mentions('row 0', 'TensorCategory', 'AnswerBlock')): dblock.dataloaders(qa)


@pytest.mark.parametrize(('name', 'value'), [
    ('text_col', 'context'), ('label_col', ['answer_text', 'answer_start', 'is_valid']), ('windows', False),
    ('truncation', False), ('stride', 21), ('max_answer_len', 0)])
def test_invalid_options_raise(qa, name, value):
    with pytest.raises(ValueError, match=mentions(f'{name}={value!r}')): from_df(qa, **{name: value})


def test_a_slow_tokenizer_raises(monkeypatch):
    hf = make_qa()
    monkeypatch.setattr(type(hf.tokenizer), 'is_fast', False)
    with pytest.raises(ValueError, match=mentions('BertTokenizer')):
        HFTextBlock(*hf, task='question-answering', max_length=24)


def test_a_model_for_something_else(qa, hf):
    with pytest.raises(ValueError, match=mentions('BertForSequenceClassification', 'question-answering')):
        hf_learner(from_df(qa), hf.model)


@pytest.mark.parametrize(('text', 'facts'),
                         [('the film', ["'the film'"]), (dict(question='a'), ["'question'", "'context'"]),
                          (('a', ''), ['context']),
                          (('a', 3), ['context', 3]), (7, [7])])
def test_an_invalid_question_raises(hf_learn, text, facts):
    with pytest.raises(ValueError, match=mentions(*facts)): hf_learn.hf_predict(text)


def test_invalid_options_of_predictions_raise(hf_learn):
    for name,value in (('top_k', 0), ('max_answer_len', 0), ('doc_stride', -1), ('doc_stride', 23)):
        with pytest.raises(ValueError, match=mentions(f'{name}={value}')):
            hf_learn.hf_predict(('the film', 'the plot dull '*9), **{name: value})
    with pytest.raises(TypeError, match=mentions("'topk'", "'top_k'")): hf_learn.hf_predict(('a', 'b'), topk=2)


def test_the_tasks_options_are_saved(): assert get_task('question-answering', max_answer_len=30).params() == dict(
    max_answer_len=30, handle_impossible_answer=None, align_to_words=True)


def several_golds(qa):
    "The rows of `qa`, each with a second right answer: the whole context"
    return qa.assign(answers=[dict(text=[o.answer_text, o.context], answer_start=[o.answer_start, 0]) if o.answer_text
                              else dict(text=[], answer_start=[]) for o in qa.itertuples()])


@pytest.mark.parametrize('form', ['dict', 'arrays', 'list of dicts'])
def test_the_best_of_several_right_answers_counts(qa, form, monkeypatch):
    df = several_golds(qa)
    if form=='arrays': df['answers'] = [{k: np.array(v) for k,v in o.items()} for o in df.answers]
    if form=='list of dicts': df['answers'] = [[dict(text=t, answer_start=s) for t,s in
                                                zip(o['text'], o['answer_start'], strict=True)] for o in df.answers]
    dls = from_df(df, task='question-answering', text_col=['question', 'context'], label_col='answers')
    learn = hf_learner(dls, make_qa().model)
    golds = [right_answers(dls.valid_ds[i][1]) for i in range(len(dls.valid_ds))]
    assert {len(o) for o in golds} == {1, 2}
    def scores(answer):
        monkeypatch.setattr(QuestionAnswering, 'read', lambda self, logits, inputs, *args, **kwargs:
                            [[dict(answer=answer(*o), start=0, end=1, score=1.)] for o in row_answers(inputs)])
        with learn.no_bar(): return list(learn.validate())[1:]
    assert scores(lambda text,gold: right_answers(gold)[-1].text) == [100., 100.]
    assert scores(lambda text,gold: right_answers(gold)[0].text) == [100., 100.]
    wanted = [max(answer_f1(o.text, 'the film') for o in gold) for gold in golds]
    assert scores(lambda text,gold: 'the film')[1] == pytest.approx(100*sum(wanted)/len(wanted))


def test_each_of_several_right_answers_is_in_its_context(qa):
    df = several_golds(qa)
    df.at[1, 'answers'] = dict(text=[df.answer_text[1], 'absent'], answer_start=[df.answer_start[1], 2])
    with pytest.raises(ValueError, match=mentions('row 1', "'absent'", 2)):
        from_df(df, task='question-answering', text_col=['question', 'context'], label_col='answers')
    df.at[1, 'answers'] = dict(text=['a', 'b'], answer_start=[0])
    with pytest.raises(ValueError, match=mentions('row 1', 'answer_start')):
        from_df(df, task='question-answering', text_col=['question', 'context'], label_col='answers')


def test_a_prediction_that_is_one_of_the_right_answers_is_right():
    answer = as_answer(dict(text=['cat', 'a gray cat'], answer_start=[7, 0]))
    task = get_task('question-answering')
    assert [task.is_right(answer, Answer(o, 0)) for o in ('cat', 'the gray cat', 'gray')] == [True, True, False]
    assert pickle.loads(pickle.dumps(answer)).others == answer.others


def test_answers_in_a_csv_file_may_be_numbers(tmp_path):
    hf = make_objects('bert', auto_model=AutoModelForQuestionAnswering)
    rows = pd.DataFrame(dict(question='the film', context=['the film 7', 'the plot 12'], answer_text=['7', '12'],
                             answer_start=[9, 9]))
    rows.to_csv(tmp_path/'a.csv', index=False)
    dls = HFTextDataLoaders.from_csv(tmp_path/'a.csv', hf, task='question-answering', splits=([0], [1]), bs=1)
    assert dls.train_ds[0][1] == Answer('7', 9)
    assert dls.valid_ds[0][1] == Answer('12', 9)
