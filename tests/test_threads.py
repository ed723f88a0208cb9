"Threads that predict with one learner at the same time get what one thread gets."
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import make_texts
from test_matrix import ROWS, assert_same, make_learner

from blurlike.core import precision
from blurlike.core.precision import evaluating

TEXTS = make_texts(300, seed=2).text.tolist()


@pytest.fixture(autouse=True)
def _switch_threads_often():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def in_threads(calls, threads=8):
    "Make all `calls` in threads, and return their results in order"
    with ThreadPoolExecutor(threads) as pool: return [o.result() for o in [pool.submit(o) for o in calls]]


@pytest.fixture
def noisy(learn):
    "A learner in training mode, in which dropout changes every prediction"
    for o in learn.model.modules():
        if isinstance(o, torch.nn.Dropout): o.p = .5
    learn.model.train()
    return learn


def test_single_texts_with_a_model_in_training_mode(noisy):
    expected = [noisy.hf_predict(o) for o in TEXTS[:30]]
    found = in_threads([lambda o=o: noisy.hf_predict(o) for o in TEXTS[:30]*8])
    for a,b in zip(found, expected*8, strict=True): assert_same(a, b)
    assert all(o.training for o in noisy.model.modules())


def test_hundreds_of_texts_with_a_model_in_training_mode(noisy):
    expected = noisy.hf_predict(TEXTS)
    for o in in_threads([lambda: noisy.hf_predict(TEXTS, batch_tokens=512)]*12, 4): assert_same(o, expected)
    assert all(o.training for o in noisy.model.modules())


def test_int8_with_a_model_in_training_mode(noisy):
    expected = noisy.hf_predict(TEXTS[:40], precision='int8')
    precision._COPIES.clear()
    for o in in_threads([lambda: noisy.hf_predict(TEXTS[:40], precision='int8')]*16): assert_same(o, expected)


def test_an_int8_copy_is_made_once(noisy, monkeypatch):
    made = []
    quantized = precision._quantized
    monkeypatch.setattr(precision, '_quantized', lambda model: made.append(1) or quantized(model))
    in_threads([lambda: noisy.hf_predict(TEXTS[0], precision='int8')]*16)
    assert len(made) == 1


@pytest.mark.parametrize(('arch', 'task'), [('t5', 'summarization'), ('gpt2', 'causal-lm')])
def test_generated_texts_with_a_model_in_training_mode(arch, task):
    learn = make_learner(arch, task)
    learn.model.train()
    def call(): return learn.hf_generate(TEXTS[:20], max_new_tokens=4, do_sample=False, batch_tokens=256)
    expected = call()
    for o in in_threads([call]*12, 4): assert_same(o, expected)


@pytest.mark.parametrize(('arch', 'task'), [
    ('bert', 'token-classification'), ('bert', 'question-answering'), ('bert', 'multiple-choice')])
def test_tasks_that_keep_places_in_texts(arch, task):
    learn = make_learner(arch, task)
    texts = ROWS[task][0]*5
    expected = learn.hf_predict(texts, many=True)
    for o in in_threads([lambda: learn.hf_predict(texts, many=True, batch_tokens=256)]*12, 4): assert_same(o, expected)


def test_the_mode_is_restored_when_the_last_thread_is_done_even_after_an_error(noisy):
    first,second = (precision._evaluation_mode(noisy.model) for _ in range(2))
    first.__enter__()
    second.__enter__()
    assert not first.__exit__(KeyError, KeyError('no'), None) # the error goes on
    assert not any(o.training for o in noisy.model.modules())
    second.__exit__(None, None, None)
    assert all(o.training for o in noisy.model.modules())


def test_a_learner_that_predicts_can_be_pickled(noisy):
    with evaluating(noisy.model): copy = pickle.loads(pickle.dumps(noisy.model))
    assert_same([o.tolist() for o in copy.parameters()], [o.tolist() for o in noisy.model.parameters()])
