"Losses see targets and nothing else: not the padding, not the size of a batch, not the device of class weights."
from functools import partial

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import BAD, GOOD, THINGS, make_config, mentions
from fastai.callback.core import Callback, CancelTrainException
from fastai.callback.training import GradientAccumulation
from fastai.learner import Learner, load_learner
from fastai.losses import (
    BCEWithLogitsLossFlat,
    CrossEntropyLossFlat,
    FocalLossFlat,
    LabelSmoothingCrossEntropy,
    LabelSmoothingCrossEntropyFlat,
    MSELossFlat,
)
from fastai.optimizer import SGD
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from blurlike.all import (
    HFCallback,
    HFLoss,
    HFObjects,
    HFTextDataLoaders,
    TokenCrossEntropy,
    all_tasks,
    hf_learner,
    load_hf_learner,
)
from blurlike.tasks.base import TargetLoss, loss_to, target_weight
from blurlike.train.callback import take_dict
from blurlike.train.learner import HFMixedPrecision

# Twenty rows, in pairs of very different numbers of targets
LONG = ' '.join(f'the {t} {w}' for t,w in zip(THINGS, GOOD, strict=True))
SHORT = [f'the {t} {w}' for t,w in zip(THINGS, BAD, strict=True)]
TEXTS = [f'{SHORT[i%8]} {LONG}' if i in (0, 3, 4, 9, 15, 16) else SHORT[i%8] for i in range(20)]
WORDS = [o.split() for o in TEXTS]
CHOICES = [['warm', 'dull', 'slow'][:2 + i%2] for i in range(20)]
TASKS = {
    'sequence-classification': dict(text=TEXTS, label=['good', 'bad']*10),
    'multi-label-classification': dict(text=TEXTS, label=[['good'], ['bad', 'plot'], [], ['plot']]*5),
    'regression': dict(text=TEXTS, label=[i/20 for i in range(20)]),
    'token-classification': dict(tokens=WORDS, labels=[['O' if o=='the' else 'B-X' for o in o] for o in WORDS]),
    'question-answering': dict(question=['the film']*20, context=TEXTS, answer_text=[o[-1] for o in WORDS],
                               answer_start=[len(' '.join(o)) - len(o[-1]) for o in WORDS]),
    'multiple-choice': dict(question=TEXTS, choices=CHOICES, label=[0, 1]*10),
    'summarization': dict(text=SHORT*3, summary=(TEXTS*2)[:24]),
    'causal-lm': dict(text=SHORT*3, label=(TEXTS*2)[:24]),
    'masked-lm': dict(text=TEXTS),
}
ARCHS = {'summarization': 'bart', 'causal-lm': 'gpt2'}
OPTIONS = {'question-answering': dict(max_length=48, stride=4), 'masked-lm': dict(packing=False),
           'causal-lm': dict(label_col='label')}
OVER_TOKENS = ['token-classification', 'summarization', 'causal-lm', 'masked-lm']


def loaders(task, bs=8, **kwargs):
    "Loaders of a tiny model without dropout; the same rows for training, in order, and for validation"
    arch = ARCHS.get(task, 'bert')
    config,tokenizer = make_config(arch)
    for k in list(vars(config)):
        if 'dropout' in k or k.endswith('pdrop'): setattr(config, k, 0.)
    config.classifier_dropout = 0.
    df = pd.DataFrame(TASKS[task])[:20]
    df = pd.concat([df, df], ignore_index=True).assign(is_valid=[False]*20 + [True]*20)
    return HFTextDataLoaders.from_df(df, HFObjects(arch, config, tokenizer, None), task=task, valid_col='is_valid',
                                     bs=bs, device='cpu', **OPTIONS.get(task, {}), **kwargs)


def in_order(dls, bs):
    "Batches of `bs` rows in the order of the data, whose masks do not depend on chance"
    return list(dls.valid.new(bs=bs, sort=False))


def make_model(dls):
    block = dls.hf_block
    for k,v in block.task.config_kwargs(dls).items(): setattr(block.hf_config, k, v)
    torch.manual_seed(0)
    return block.task.auto_model.from_config(block.hf_config)


class On(Callback):
    "Train on given batches"
    def __init__(self, batches): self.batches = batches
    def before_train(self): self.learn.dl = self.batches


def fit(learn, batches, epochs=1, lr=0.1):
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, lr, cbs=On(batches))
    return learn


def train(dls, bs, loss_func=None, cbs=(), plain=False, epochs=1, lr=0.1, **kwargs):
    "The learner after training by SGD on batches of `bs` rows"
    model = make_model(dls)
    if plain: learn = Learner(dls, model, loss_func, SGD, cbs=[HFCallback(), *cbs])
    else: learn = hf_learner(dls, model, loss_func, opt_func=SGD, metrics=[], cbs=cbs, **kwargs)
    return fit(learn, in_order(dls, bs), epochs, lr)


def weights(learn): return torch.cat([p.detach().flatten() for p in learn.model.parameters()])


def assert_same_step(one, other, lr=0.1):
    "Assert that two learners have the same weights, and no gradients"
    assert torch.allclose(weights(one), weights(other), atol=1e-6, rtol=1e-6)
    for learn in (one, other): assert_no_gradients(learn)


def assert_no_gradients(learn):
    assert not any(p.grad is not None and p.grad.any() for p in learn.model.parameters())


# ---- gradient accumulation

def test_every_task_is_tested():
    extra = {'translation', 'text2text-generation'} # the same task as summarization under other names
    assert {o for o in all_tasks()} - extra <= set(TASKS)


@pytest.mark.parametrize('loss_func', [None, HFLoss])
@pytest.mark.parametrize('task', TASKS)
def test_accumulated_batches_are_the_larger_batch(task, loss_func):
    dls = loaders(task)
    larger = train(dls, 8, loss_func and loss_func())
    assert not torch.equal(weights(larger), weights(train(dls, 8, loss_func and loss_func(), lr=0.)))
    assert_same_step(train(dls, 2, loss_func and loss_func(), cbs=[GradientAccumulation(8)]), larger)


@pytest.mark.parametrize(('bs', 'n_acc', 'larger'), [(3, 8, 9), (7, 3, 7), (1, 20, 20), (6, 100, 20)])
@pytest.mark.parametrize('task', ['causal-lm', 'regression'])
def test_rows_that_do_not_divide_make_a_batch_of_their_size(task, bs, n_acc, larger):
    dls = loaders(task)
    one = train(dls, bs, cbs=[GradientAccumulation(n_acc)], epochs=2)
    assert_same_step(one, train(dls, larger, epochs=2))


@pytest.mark.parametrize('make', [
    lambda: TokenCrossEntropy(weight=torch.tensor([1., 9.])), lambda: FocalLossFlat(gamma=1.),
    lambda: CrossEntropyLossFlat(weight=torch.tensor([1., 9.])), LabelSmoothingCrossEntropyFlat,
    lambda: FocalLossFlat(weight=torch.tensor([1., 9.])), lambda: F.cross_entropy,
    lambda: nn.CrossEntropyLoss(weight=torch.tensor([1., 9.]), ignore_index=-100),
    lambda: partial(F.cross_entropy, weight=torch.tensor([1., 9.]))])
@pytest.mark.parametrize('plain', [True, False])
def test_other_losses_accumulate_too(make, plain):
    dls = loaders('token-classification')
    assert_same_step(train(dls, 2, make(), [GradientAccumulation(8)], plain), train(dls, 8, make(), plain=plain))


@pytest.mark.parametrize('task', ['token-classification', 'sequence-classification'])
def test_a_loss_with_two_divisors_accumulates_as_torch_or_not_at_all(task):
    dls,weight = loaders(task),torch.tensor([1., 9.])
    with pytest.raises(ValueError, match=mentions('loss_func=LabelSmoothingCrossEntropyFlat', 'label_smoothing=0.3')):
        train(dls, 2, LabelSmoothingCrossEntropyFlat(eps=0.3, weight=weight), [GradientAccumulation(8)])
    with pytest.raises(ValueError, match=mentions('label_smoothing=0.3')):
        train(dls, 2, LabelSmoothingCrossEntropy(eps=0.3, weight=weight), [GradientAccumulation(8)])
    torchs = lambda: CrossEntropyLossFlat(label_smoothing=0.3, weight=weight)
    assert_same_step(train(dls, 2, torchs(), [GradientAccumulation(8)]), train(dls, 8, torchs()))


@pytest.mark.parametrize('make', [LabelSmoothingCrossEntropyFlat, LabelSmoothingCrossEntropy, nn.CrossEntropyLoss])
@pytest.mark.parametrize('bs', [1, 3, 20])
def test_weighted_losses_of_rows_do_not_depend_on_the_batch_size(make, bs):
    dls,loss_func = loaders('sequence-classification'),make(weight=torch.tensor([1., 9.]))
    learn = hf_learner(dls, make_model(dls), loss_func, metrics=[])
    with learn.no_bar():
        preds,targs = learn.get_preds(act=lambda o: o)
        found = learn.validate(dl=in_order(dls, bs))[0]
    assert found == pytest.approx(loss_func(preds, targs).item(), rel=1e-5)


@pytest.mark.parametrize('make', [
    lambda w: CrossEntropyLossFlat(weight=w), lambda w: nn.CrossEntropyLoss(weight=w),
    lambda w: partial(F.cross_entropy, weight=w)])
def test_class_weights_of_rows_accumulate(make):
    dls,make = loaders('sequence-classification'),partial(make, torch.tensor([1., 9.]))
    assert_same_step(train(dls, 3, make(), [GradientAccumulation(5)]), train(dls, 6, make()))


def test_gradients_are_corrected_before_they_are_clipped():
    dls = loaders('causal-lm')
    assert_same_step(train(dls, 2, cbs=[GradientAccumulation(8)], max_grad_norm=1e-2, lr=10.),
                     train(dls, 8, max_grad_norm=1e-2, lr=10.))


def test_scaled_gradients_accumulate_too():
    dls = loaders('causal-lm')
    one = train(dls, 2, cbs=[GradientAccumulation(8), HFMixedPrecision('fp16', init_scale=4.)], precision='fp16')
    other = train(dls, 8, cbs=HFMixedPrecision('fp16', init_scale=4.), precision='fp16')
    assert torch.allclose(weights(one), weights(other), atol=1e-3)
    assert not torch.allclose(weights(one), weights(train(dls, 8, lr=0.)), atol=1e-3)
    assert_no_gradients(one)


def test_two_callbacks_correct_once():
    dls = loaders('causal-lm')
    assert_same_step(train(dls, 2, cbs=[GradientAccumulation(8), HFCallback(), HFCallback()]), train(dls, 8))


def test_an_epoch_that_ends_early_leaves_no_gradients():
    class Stop(Callback):
        def after_batch(self):
            if self.training and self.iter==1: raise CancelTrainException
    dls = loaders('causal-lm')
    learn = train(dls, 2, cbs=[GradientAccumulation(8), Stop()], epochs=2)
    assert_no_gradients(learn)
    assert torch.equal(weights(learn), weights(train(dls, 8, lr=0.)))


def test_a_batch_without_targets_counts_for_nothing():
    dls = loaders('causal-lm')
    batches = in_order(dls, 2)
    for o in (0, 1, 5): batches[o][1].fill_(-100)
    larger = [dls.valid.new(bs=8, sort=False).one_batch()]
    larger[0][1][:4] = -100
    def after(batches, *cbs):
        return fit(hf_learner(dls, make_model(dls), opt_func=SGD, metrics=[], cbs=list(cbs)), batches)
    assert_same_step(after(batches[:4], GradientAccumulation(8)), after(larger))
    assert torch.isfinite(weights(after(batches[:2], GradientAccumulation(4)))).all()


def test_one_gradient_accumulation_without_blurlike_is_fastais():
    "A learner without `HFCallback` accumulates as before"
    from fastai.test_utils import synth_learner
    learn = synth_learner(cbs=GradientAccumulation(1000))
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert learn.gradient_accumulation.count > 0
    assert learn.model.a.grad.any()


# ---- the validation loss

@pytest.mark.parametrize('loss_func', [None, HFLoss])
@pytest.mark.parametrize('task', TASKS)
def test_the_validation_loss_does_not_depend_on_the_batch_size(task, loss_func):
    dls = loaders(task)
    learn = hf_learner(dls, make_model(dls), loss_func and loss_func(), metrics=[])
    with learn.no_bar(): found = [learn.validate(dl=in_order(dls, bs))[0] for bs in (20, 8, 3, 1)]
    assert found == pytest.approx(found[:1]*4, rel=1e-6)


LOSSES = {
    'cross-entropy': (CrossEntropyLossFlat, F.cross_entropy),
    'label smoothing of torch': (partial(CrossEntropyLossFlat, label_smoothing=0.2),
                                 partial(F.cross_entropy, label_smoothing=0.2)),
    'tokens': (TokenCrossEntropy, F.cross_entropy),
    'focal': (FocalLossFlat, FocalLossFlat()),
    'label smoothing': (LabelSmoothingCrossEntropyFlat, LabelSmoothingCrossEntropyFlat()),
    'weights': (lambda: CrossEntropyLossFlat(weight=torch.tensor([1., 9.])),
                partial(F.cross_entropy, weight=torch.tensor([1., 9.]))),
    'weighted tokens': (lambda: TokenCrossEntropy(weight=torch.tensor([1., 9.])),
                        partial(F.cross_entropy, weight=torch.tensor([1., 9.]))),
    'weighted focal': (lambda: FocalLossFlat(weight=torch.tensor([1., 9.])),
                       FocalLossFlat(weight=torch.tensor([1., 9.]))),
    'weighted label smoothing': (partial(LabelSmoothingCrossEntropyFlat, weight=torch.tensor([1., 9.]), eps=0.3),
                                 LabelSmoothingCrossEntropyFlat(weight=torch.tensor([1., 9.]), eps=0.3)),
    'weighted label smoothing of torch': (
        partial(CrossEntropyLossFlat, weight=torch.tensor([1., 9.]), label_smoothing=0.3),
        partial(F.cross_entropy, weight=torch.tensor([1., 9.]), label_smoothing=0.3)),
    'function': (lambda: F.cross_entropy, F.cross_entropy),
    'module': (nn.CrossEntropyLoss, F.cross_entropy),
    "the model's": (HFLoss, F.cross_entropy),
    "the model's, focal by row": (lambda: HFLoss(FocalLossFlat()), FocalLossFlat()),
}


@pytest.mark.parametrize('bs', [1, 3, 20])
@pytest.mark.parametrize('name', LOSSES)
def test_losses_see_real_targets_only(name, bs):
    make,expected = LOSSES[name]
    dls = loaders('token-classification', bs=bs)
    learn = Learner(dls, make_model(dls), make(), cbs=HFCallback)
    given = learn.loss_func
    with learn.no_bar():
        logits,targs = learn.get_preds(act=lambda o: o, dl=dls.valid.new(bs=20))
        loss = learn.validate()[0]
        *_,losses = learn.get_preds(with_loss=True)
    real = targs != -100
    if 'by row' not in name: assert loss == pytest.approx(expected(logits[real], targs[real]).item(), rel=1e-5)
    by_row = [expected(p[r], t[r]).item() for p,t,r in zip(logits, targs, real, strict=True)]
    assert losses.tolist() == pytest.approx(by_row, rel=1e-4)
    assert learn.loss_func is given


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 3), st.data())
def test_padding_changes_no_loss(rows, tokens, more, data):
    targ = torch.tensor(data.draw(st.lists(st.lists(st.sampled_from([-100, 0, 1, 2]), min_size=tokens, max_size=tokens),
                                           min_size=rows, max_size=rows)))
    pred = torch.randn(rows, tokens, 3)
    padded = F.pad(pred, (0, 0, 0, more)),F.pad(targ, (0, more), value=-100)
    weight = torch.tensor([1., 2., 3.])
    for loss in (TokenCrossEntropy(weight=weight), *map(TargetLoss, (
            CrossEntropyLossFlat(weight=weight), FocalLossFlat(), LabelSmoothingCrossEntropyFlat()))):
        for reduction in ('mean', 'none'):
            getattr(loss, 'loss_func', loss).reduction = reduction
            assert torch.allclose(loss(pred, targ), loss(*padded), atol=1e-6)
            assert target_weight(loss, (targ,)) == target_weight(loss, padded[1:])
        row = slice(0, 1)
        getattr(loss, 'loss_func', loss).reduction = 'mean'
        alone = loss(pred[row], targ[row])
        getattr(loss, 'loss_func', loss).reduction = 'none'
        assert torch.allclose(loss(pred, targ)[0], alone, atol=1e-6)


def test_targets_of_other_shapes_pass_through():
    pred,targ = torch.randn(4, 2),torch.tensor([[-100., 1.]]*4)
    assert torch.equal(TargetLoss(MSELossFlat())(pred, targ), MSELossFlat()(pred, targ))
    assert target_weight(MSELossFlat(), (targ,)) == 4
    ones = torch.ones(4, 2)
    assert torch.equal(TargetLoss(BCEWithLogitsLossFlat())(pred, ones), BCEWithLogitsLossFlat()(pred, ones))


# ---- the threshold

def labels_of(learn, texts, capsys):
    "What every way to predict returns with the learner's threshold"
    with learn.no_bar():
        one = [set(learn.predict(o)[0]) for o in texts]
        learn.show_results(dl=learn.dls.valid.new(bs=20, sort=False), max_n=len(texts), shuffle=False)
        *_,decoded = learn.get_preds(with_decoded=True)
        _,micro,macro,accuracy = learn.validate()
    preds = [set(o['labels']) for o in learn.hf_predict(texts)]
    return preds,one,capsys.readouterr().out,decoded,(micro, macro, accuracy)


@pytest.mark.parametrize('loss_func', [None, HFLoss, partial(BCEWithLogitsLossFlat, thresh=0.9)])
@pytest.mark.parametrize('threshold', [0.02, 0.98])
def test_the_threshold_of_the_loss_is_the_only_one(loss_func, threshold, capsys, tmp_path):
    dls = loaders('multi-label-classification')
    learn = hf_learner(dls, make_model(dls), loss_func and loss_func())
    learn.loss_func.thresh = threshold
    few = threshold > 0.5
    expected = set() if few else set(dls.vocab)
    def check(learn):
        preds,one,shown,decoded,(micro, _, accuracy) = labels_of(learn, TEXTS[:3], capsys)
        assert preds == one == [expected]*3
        assert decoded.all() != few
        assert decoded.any() != few
        assert shown.count('(none)') >= (3 if few else 0)
        assert shown.count(', '.join(dls.vocab)) >= (0 if few else 3)
        share = torch.stack([y for *_,y in dls.valid_ds]).float().mean().item()
        assert accuracy == pytest.approx(1 - share if few else share)
        assert micro == pytest.approx(0 if few else 2*share/(1 + share))
    check(learn)
    saved = load_hf_learner(learn.save_pretrained(tmp_path/'model'), device='cpu')
    assert saved.loss_func.thresh == saved.dls.hf_block.task.threshold == threshold
    learn.export(tmp_path/'learn.pkl')
    for o in (saved, load_learner(tmp_path/'learn.pkl')):
        assert [set(p['labels']) for p in o.hf_predict(TEXTS[:3])] == [expected]*3
    assert hf_learner(dls, learn.model).loss_func.thresh == 0.5 # another learner has its own


# ---- devices

WEIGHTED = [CrossEntropyLossFlat, TokenCrossEntropy, FocalLossFlat, LabelSmoothingCrossEntropyFlat, nn.CrossEntropyLoss]

@pytest.mark.parametrize('cls', WEIGHTED)
@pytest.mark.parametrize('wrap', [lambda o: o, HFLoss])
def test_class_weights_move_to_the_device_of_the_model(cls, wrap):
    inner = cls(weight=torch.ones(2))
    loss_to(wrap(inner), torch.device('meta'))
    assert getattr(inner, 'func', inner).weight.device.type == 'meta'


def test_class_weights_of_a_learner_move_when_it_starts(dls, hf):
    loss_func = FocalLossFlat(weight=torch.ones(2))
    learn = hf_learner(dls, hf.model, loss_func)
    learn.model.to('meta')
    learn.hf.before_fit()
    assert loss_func.func.weight.device.type == 'meta'


# ---- interrupts

EVENTS = ('before_fit before_epoch before_train before_batch after_pred after_loss before_backward after_backward '
          'before_step after_step after_batch after_train before_validate after_validate after_epoch after_fit').split()


@pytest.mark.parametrize('order', [-20, 100])
@pytest.mark.parametrize('event', EVENTS)
@pytest.mark.parametrize('error', [KeyboardInterrupt, ZeroDivisionError])
def test_an_interrupt_at_any_event_leaves_nothing_behind(dls, hf, event, order, error):
    learn = hf_learner(dls, hf.model, cbs=[HFCallback(output_hidden_states=True), GradientAccumulation(1000)])
    given,own = learn.loss_func,set(vars(learn))
    cb = Callback(**{event: lambda self: (_ for _ in ()).throw(error('stop'))})
    cb.order = order
    with learn.no_bar(), learn.no_logging():
        with pytest.raises(error): learn.fit(1, cbs=cb)
    hooks = [h for m in hf.model.modules() for h in (*m._forward_pre_hooks.values(), *m._forward_hooks.values())]
    assert hooks == [take_dict]
    assert learn.loss_func is given
    assert 'all_batches' not in vars(learn)
    assert not {o.name for o in learn.cbs} & {'average_loss', 'accumulate_targets'}
    assert not {'average_loss', 'accumulate_targets'} & (set(vars(learn)) - own)
    assert_no_gradients(learn)
