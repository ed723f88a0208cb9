"`hf_predict(errors=...)`: texts that cannot be used do not stop the others."
import pytest
from conftest import mentions
from test_matrix import ROWS, TASKS, assert_same, make_learner

ARCHS = {'summarization': 't5', 'translation': 'bart', 'text2text-generation': 'mbart', 'causal-lm': 'gpt2'}
ODD = [None, float('nan'), 5, b'the film', [], {}, {'a': 1}, object(), [None], ('the film',), ('the film', None), [[]],
       [{}], {'question': 'the film'}, 'the \ud800 film', [{'role': 'user'}]]


def texts_of(learn, task):
    tokenizer = learn.dls.hf_block.hf_tokenizer
    return [f'{o} {tokenizer.mask_token}' if task=='masked-lm' else o for o in ROWS[task][0]]


@pytest.mark.parametrize('task', sorted(TASKS))
def test_wrong_texts_give_none_or_their_error_and_the_others_their_predictions(task):
    learn = make_learner(ARCHS.get(task, 'bert'), task)
    good = texts_of(learn, task)
    texts = [o for pair in zip(good, ODD[:8], strict=True) for o in pair] + ODD[8:]
    expected = learn.hf_predict(good, many=True)
    preds = learn.hf_predict(texts, many=True, errors='none')
    assert_same(preds[:16:2], expected)
    reasons = learn.hf_predict(texts, many=True, errors='return')
    assert len(preds) == len(reasons) == len(texts)
    for a,b in zip(preds, reasons, strict=True):
        if a is None: assert str(b)
        assert isinstance(b, ValueError) if a is None else assert_same(a, b) is None
    assert [preds[i] for i in (1, 3, 5, 7)] == [None]*4
    with pytest.raises(ValueError, match=mentions('texts[1]')): learn.hf_predict(texts, many=True)


def test_a_text_in_another_form_than_the_first():
    learn = make_learner('bert', 'token-classification')
    texts = [['the', 'film'], 'the film', ['the', 'plot']]
    assert [o is None for o in learn.hf_predict(texts, errors='none')] == [False, True, False]
    with pytest.raises(ValueError, match=mentions('1 of 3', 'texts[1]')): learn.hf_predict(texts)


@pytest.mark.parametrize('method', ['hf_predict', 'hf_embed'])
@pytest.mark.parametrize('texts', [['the film', ('the film', 'the plot')], [('the film', 'the plot'), 'the film'],
                                   [('the film', 'the plot'), 'ab']])
def test_single_texts_and_pairs_in_one_call(texts, method, learn):
    with pytest.raises(ValueError, match=mentions('1 of 2', 'texts[1]', 'pair')): getattr(learn, method)(texts)
    if method=='hf_predict':
        assert [o is None for o in learn.hf_predict(texts, errors='none')] == [False, True]
        assert learn.hf_predict(texts, errors='none')[0] == learn.hf_predict(texts[:1])[0]


def test_one_wrong_text(learn):
    assert learn.hf_predict(None, errors='none') is None
    assert isinstance(learn.hf_predict(None, errors='return'), ValueError)
    assert learn.hf_predict([None, None], errors='none') == [None, None]
    assert learn.hf_predict([], errors='none') == []


def test_an_unknown_way_to_handle_errors_is_refused(learn):
    for o in ('ignore', None, True):
        with pytest.raises(ValueError, match=mentions('errors', repr(o))): learn.hf_predict('the film', errors=o)


def test_a_text_that_only_the_tokens_show_to_be_wrong():
    learn = make_learner('bert', 'question-answering')
    texts = [('the film', 'the plot dull'), ('the film '*60, 'the plot dull'), (5, 'dull')]*2
    preds = learn.hf_predict(texts, errors='none')
    assert [o is None for o in preds] == [False, True, True]*2
    assert_same(preds[::3], learn.hf_predict(texts[::3]))
    with pytest.raises(ValueError, match=mentions('2 of 4', 'texts[1]')): learn.hf_predict(texts[:2]*2)


def test_a_mask_that_is_truncated_is_reported_before_anything_is_computed(monkeypatch):
    learn = make_learner('bert', 'masked-lm')
    texts = ['the [MASK]', 'the film '*60 + '[MASK]', '[MASK] warm']
    preds = learn.hf_predict(texts, errors='none')
    assert [o is None for o in preds] == [False, True, False]
    def forward(**kwargs): raise AssertionError('computed')
    monkeypatch.setattr(learn.model, 'forward', forward)
    with pytest.raises(ValueError, match=mentions('1 of 3', 'texts[1]', 'max_length')): learn.hf_predict(texts)


def test_generated_texts():
    learn = make_learner('gpt2', 'causal-lm')
    texts = ['the film', None, '', 'the plot']
    kwargs = dict(max_new_tokens=2, do_sample=False)
    preds = learn.hf_generate(texts, errors='none', **kwargs)
    assert [o is None for o in preds] == [False, True, True, False]
    assert_same(preds[::3], learn.hf_generate(texts[::3], **kwargs))


def test_wrong_texts_in_several_pools(learn, monkeypatch):
    from blurlike import predict
    whole = predict.text_batches
    monkeypatch.setattr(predict, 'text_batches', lambda *args, **kwargs: whole(*args, pool=3, **kwargs))
    texts = ['the film', None, 'the plot dull', 'the \ud800', 'the cast', 7, None, 'warm']
    preds = learn.hf_predict(texts, errors='return')
    assert_same([o for o in preds if isinstance(o, dict)], learn.hf_predict(texts[::2][:3] + texts[-1:]))
    assert [isinstance(o, ValueError) for o in preds] == [False, True, False, True, False, True, True, False]
    with pytest.raises(ValueError, match=mentions('texts[3]')): learn.hf_predict(['the']*3 + ['the \ud800'])
