"A fastai Learner that trains a Hugging Face model supports everything that a fastai Learner does."
import pickle
import sys
from copy import deepcopy

import numpy as np
import pytest
import torch
from conftest import make_objects, mentions
from fastai.text.all import (
    Adam,
    Callback,
    ClassificationInterpretation,
    CrossEntropyLossFlat,
    CutMix,
    Interpretation,
    Learner,
    MixedPrecision,
    MixUp,
    ReduceLROnPlateau,
    SaveModelCallback,
    ShowGraphCallback,
    accuracy,
    load_learner,
)
from torch import nn
from transformers import BatchEncoding, get_linear_schedule_with_warmup

from blurlike.all import HFCallback, HFLoss, HFTextDataLoaders, hf_learner, hf_splitter, load_hf_learner
from blurlike.core.inputs import HFRows
from blurlike.train.callback import take_dict
from blurlike.train.learner import HFMixedPrecision
from blurlike.train.optimizer import hf_adamw


@pytest.fixture
def trained(learn):
    learn.fit_one_cycle(4, 1e-2)
    return learn


def test_a_learner_learns(trained, df):
    assert trained.validate()[1] > 0.95
    preds = trained.hf_predict(['the film warm the cast lovely', 'the plot dull the score stale'])
    assert [o['label'] for o in preds] == ['good', 'bad']


def test_predict_is_fastais_triple(trained, df):
    label,idx,probs = trained.predict(df.text[80])
    ours = trained.hf_predict(df.text[80])
    assert (label, int(idx)) == (ours['label'], ours['index'])
    assert probs.tolist() == pytest.approx(ours['probs'], abs=1e-5)
    text,*_ = trained.predict(df.text[80], with_input=True)
    assert text == df.text[80]


@pytest.mark.parametrize('ds_idx', [0, 1])
def test_tta_without_augmentation_equals_get_preds(trained, ds_idx):
    preds,targs = trained.tta(ds_idx, n=2)
    expected = trained.get_preds(ds_idx)
    assert torch.allclose(preds, expected[0], atol=1e-5)
    assert (targs==expected[1]).all()


def test_get_preds_gives_inputs_losses_and_decisions_in_order(trained, df):
    inputs,preds,targs,decoded,losses = trained.get_preds(with_input=True, with_loss=True, with_decoded=True)
    assert isinstance(inputs, HFRows)
    assert trained.dls.hf_block.decode(inputs) == df.text[80:].tolist()
    assert (decoded == preds.argmax(1)).all()
    assert torch.allclose(losses, -preds[range(40), targs].log(), atol=1e-5)


@pytest.mark.parametrize('warm', [0, 1, 4])
def test_fit_linear_is_the_schedule_of_trainer(learn, warm):
    steps,rates = 2*len(learn.dls.train),[]
    class Watch(Callback):
        def before_step(self): rates.append([o['lr'] for o in self.opt.hypers])
    learn.fit_linear(2, slice(1e-5, 1e-2), pct_start=warm/steps, cbs=Watch())
    assert len(rates)==steps
    for of_group,highest in ((0, 1e-5), (-1, 1e-2)):
        opt = torch.optim.AdamW(learn.model.parameters(), lr=highest)
        sched,theirs = get_linear_schedule_with_warmup(opt, warm, steps),[]
        for _ in range(steps):
            theirs.append(sched.get_last_lr()[0])
            opt.step()
            sched.step()
        assert [o[of_group] for o in rates] == pytest.approx(theirs, rel=1e-5, abs=1e-9) # fastai counts in 32 bits
    assert {round(o['wd'], 5) for o in learn.opt.hypers} == {0.01}


def test_fit_linear_takes_what_fit_one_cycle_takes(learn):
    learn.lr = 3e-3
    learn.fit_linear(2, wd=0.3, start_epoch=1, reset_opt=True)
    steps = len(learn.dls.train)
    assert learn.recorder.hps['lr'] == pytest.approx([3e-3*(1 - i/(2*steps)) for i in range(steps, 2*steps)])
    assert learn.opt.hypers[0]['wd'] == 0.3
    for wrong in (1., -0.1, 5):
        with pytest.raises(ValueError, match=mentions(f'pct_start={wrong}')): learn.fit_linear(1, pct_start=wrong)


@pytest.mark.parametrize('loss_func', [HFLoss, CrossEntropyLossFlat])
def test_interpretation_ranks_rows_by_their_own_loss(trained, df, loss_func, capsys):
    trained.loss_func = loss_func()
    trained('after_create')
    interp = ClassificationInterpretation.from_learner(trained)
    assert interp.confusion_matrix().sum() == 40
    losses,idxs,items = interp.top_losses(20, items=True)
    assert items.text.tolist() == df.text[80:].iloc[idxs.tolist()].tolist()
    _,preds,targs,decoded,ls = interp[idxs]
    assert torch.allclose(-preds[range(20), targs].log(), losses, atol=1e-4)
    interp.plot_top_losses(20)
    interp.show_results([0, 1])
    out = capsys.readouterr().out
    assert f'{losses[0].item():.2f}' in out
    assert out.count('probability') == 1


def test_plain_interpretation_works_too(trained):
    assert len(Interpretation.from_learner(trained).top_losses()[0]) == 40


def test_show_results_marks_the_wrong_predictions(learn, capsys):
    with torch.no_grad(): learn.model.classifier.bias.copy_(torch.tensor([50., -50.])) # predicts "bad" for everything
    learn.show_results(max_n=8, trunc_at=30)
    lines = [o for o in capsys.readouterr().out.splitlines() if 'bad' in o]
    assert len(lines) == 8
    assert all(('✗' in o) == ('good' in o) for o in lines)


def test_lr_find_and_summary_leave_the_model_as_it_was(learn, tmp_path):
    learn.path = tmp_path
    before = {k: v.clone() for k,v in learn.model.state_dict().items()}
    assert learn.lr_find(num_it=20, show_plot=False).valley > 0
    assert 'BertForSequenceClassification' in str(learn.summary())
    assert all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items())
    assert list(learn.model._forward_pre_hooks.values()) == [take_dict]


def test_save_and_load_and_callbacks_work(learn, tmp_path):
    learn.path = tmp_path
    learn.fit(1, 1e-3, cbs=SaveModelCallback(monitor='valid_loss'))
    before = learn.get_preds()[0]
    learn.save('here')
    learn.fit(1, 1e-2)
    learn.load('here')
    assert torch.allclose(learn.get_preds()[0], before, atol=1e-6)


@pytest.mark.parametrize('frozen', [False, True])
def test_an_exported_learner_predicts_the_same(learn, tmp_path, frozen, df):
    learn.path = tmp_path
    if frozen: learn.freeze()
    learn.fit(1)
    learn.export('learner.pkl')
    learn.fit(1) # the learner goes on after an export
    learn.export('learner.pkl')
    with pytest.warns(UserWarning, match='insecure pickle'): again = load_learner(tmp_path/'learner.pkl')
    assert again.predict(df.text[0])[0] == learn.predict(df.text[0])[0]
    assert again.hf_predict(df.text[0])['probs'] == pytest.approx(learn.hf_predict(df.text[0])['probs'], abs=1e-6)
    assert len(again.dls.train_ds) == 0


def test_freezing_trains_the_head_alone(learn):
    learn.freeze()
    before = {k: v.clone() for k,v in learn.model.named_parameters()}
    learn.fit(1, 1e-2)
    changed = {k for k,v in learn.model.named_parameters() if not torch.equal(v, before[k])}
    assert changed == {'classifier.weight', 'classifier.bias'}


def test_freezing_works_in_a_plain_learner_with_fastais_optimizer(dls, hf):
    learn = Learner(dls, hf.model, loss_func=CrossEntropyLossFlat(), opt_func=Adam, cbs=[HFCallback],
                    splitter=hf_splitter)
    learn.freeze()
    assert {n for n,p in hf.model.named_parameters() if p.requires_grad} == {'classifier.weight', 'classifier.bias'}


def test_a_slice_gives_later_groups_higher_rates(learn):
    learn.fit_one_cycle(1, slice(1e-5, 1e-2))
    lrs = [h['lr'] for h in learn.opt.hypers]
    assert len(lrs) == len(hf_splitter(learn.model)) == 5
    assert lrs == sorted(lrs)
    assert lrs[-1] == pytest.approx(1000*lrs[0])


def test_fused_adamw_in_groups_steps_as_plain_adamw_does():
    def model():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2))
    a,b = model(),model()
    ours = hf_adamw([list(a[:2].parameters()), list(a[2].parameters())], lr=1e-2, weight_decay=0.1)
    theirs = torch.optim.AdamW([dict(params=[p for p in b.parameters() if p.ndim>1], weight_decay=0.1),
                                dict(params=[p for p in b.parameters() if p.ndim<2], weight_decay=0.)],
                               lr=1e-2, fused=False)
    for _ in range(5):
        x = torch.randn(3, 4)
        for m,o in ((a, ours), (b, theirs)): m(x).square().sum().backward(); o.step(); o.zero_grad()
    for p,q in zip(a.parameters(), b.parameters(), strict=True): assert torch.allclose(p, q, atol=1e-6)
    again = hf_adamw([list(a[:2].parameters()), list(a[2].parameters())])
    again.load_state_dict(pickle.loads(pickle.dumps(ours.state_dict())))
    assert again.hypers[0]['wd'] == 0.1


@pytest.mark.parametrize('loss_func', [HFLoss, CrossEntropyLossFlat])
def test_gradients_are_the_same_with_either_loss(hf, dls, loss_func):
    hf.model.config.hidden_dropout_prob = 0
    for m in hf.model.modules():
        if isinstance(m, torch.nn.Dropout): m.p = 0.
    batch = dls.valid.one_batch()
    hf.model(**batch[0], labels=batch[1].as_subclass(torch.Tensor)).loss.backward()
    expected = {n: p.grad.clone() for n,p in hf.model.named_parameters()}
    hf.model.zero_grad()
    grads = {}

    class Keep(HFCallback):
        def before_step(self): grads.update({n: p.grad.clone() for n,p in self.model.named_parameters()})
    learn = hf_learner(dls, hf.model, loss_func=loss_func(), cbs=Keep(), max_grad_norm=None)
    dls.train = [batch]
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert grads.keys() == expected.keys()
    for n,g in grads.items(): assert torch.allclose(g, expected[n], atol=1e-6), n


def test_bf16_on_a_cpu_is_bf16_and_close_to_fp32(dls, df):
    texts = df.text[80:].tolist()
    seen = []
    for precision in ('fp32', 'bf16'):
        hf = make_objects()
        learn = hf_learner(dls, hf.model, precision=precision)
        handle = hf.model.bert.encoder.layer[0].output.dense.register_forward_hook(lambda m,i,o: seen.append(o.dtype))
        with learn.no_bar(): seen.append(learn.get_preds()[0])
        handle.remove()
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(3, 1e-2)
        assert all(p.dtype is torch.float32 for p in hf.model.parameters())
        assert np.mean([o['label'] for o in learn.hf_predict(texts)] == df.label[80:]) > 0.9
    preds = [o for o in seen if torch.is_tensor(o)]
    assert {o for o in seen if not torch.is_tensor(o)} == {torch.float32, torch.bfloat16}
    assert preds[1].dtype is torch.float32
    assert torch.allclose(*preds, atol=0.02)


def test_fp16_scales_its_gradients(dls, hf):
    learn = hf_learner(dls, hf.model, precision='fp16')
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    assert isinstance(learn.mixed_precision, MixedPrecision)
    assert all(torch.isfinite(p).all() for p in hf.model.parameters())


def test_learners_share_no_state(dls):
    a,b = (hf_learner(dls, make_objects().model) for _ in range(2))
    assert a.loss_func is not b.loss_func
    assert a.model is not b.model
    with a.no_bar(), a.no_logging(): a.fit(1)
    assert b.opt is None


def test_callbacks_passed_by_the_user_replace_the_defaults(dls, hf):
    mine = HFCallback(output_hidden_states=True)
    learn = hf_learner(dls, hf.model, cbs=[mine, HFMixedPrecision('bf16')], precision='bf16')
    assert learn.cbs.filter(lambda o: isinstance(o, HFCallback)) == [mine]
    assert len(learn.cbs.filter(lambda o: isinstance(o, HFMixedPrecision))) == 1
    with learn.no_bar(): learn.validate()
    assert len(learn.hf_outputs.hidden_states) == 4
    assert not any(o.requires_grad for o in learn.hf_outputs.hidden_states)


def test_metrics_default_to_the_tasks(learn, dls, hf):
    assert [m.name for m in learn.metrics] == [accuracy.__name__]
    assert list(hf_learner(dls, hf.model, metrics=[]).metrics) == []


def test_moving_the_loaders_moves_the_batches(dls):
    moved = dls.to(torch.device('meta'))
    assert moved.device.type == 'meta'
    assert moved.one_batch()[0]['input_ids'].device.type == 'meta'
    assert dls.cpu().one_batch()[0]['input_ids'].device.type == 'cpu'


def test_a_column_of_texts_is_a_list_of_texts(learn, df):
    texts = df.text[:5]
    assert learn.hf_predict(texts) == learn.hf_predict(texts.to_numpy()) == learn.hf_predict(texts.tolist())


def test_hf_predict_leaves_the_model_in_the_mode_it_was_in(learn):
    learn.model.train()
    learn.hf_predict('the film')
    assert learn.model.training
    assert not isinstance(learn.dls.one_batch()[0], BatchEncoding)


def test_batches_on_a_cpu_are_small_unless_asked(learn):
    sizes = []
    def note(model, args, kwargs): sizes.append(kwargs['input_ids'].numel())
    hook = learn.model.register_forward_pre_hook(note, with_kwargs=True)
    texts = ['the film '*n for n in range(1, 31)]*5
    small = learn.hf_predict(texts)
    assert len(sizes) > 2
    assert max(sizes) <= 1024
    few = len(sizes)
    assert learn.hf_predict(texts, batch_tokens=1024)==small
    large = learn.hf_predict(texts, batch_tokens=4096)
    hook.remove()
    assert sizes[few:2*few]==sizes[:few]
    assert 1024 < max(sizes[2*few:]) <= 4096
    assert [o['score'] for o in small] == pytest.approx([o['score'] for o in large], abs=1e-5)


@pytest.mark.parametrize('how', ['argument', 'assigned', 'in place'])
def test_a_compiled_model_is_trained_and_saved_as_the_model_itself(dls, hf, how, tmp_path):
    groups = [len(o) for o in hf_splitter(hf.model)]
    learn = hf_learner(dls, torch.compile(hf.model) if how=='argument' else hf.model)
    if how=='assigned': learn.model = torch.compile(learn.model)
    if how=='in place': learn.model.compile()
    with torch.compiler.set_stance('force_eager'), learn.no_bar(), learn.no_logging(): # compiling takes a minute
        assert [len(o) for o in learn.splitter(learn.model)] == groups
        learn.fit(1, 1e-3)
        text,folder = 'the film warm the cast lovely',learn.save_pretrained(tmp_path/'model')
        found,lower = learn.hf_predict(text),learn.hf_predict(text, precision='int8')
    loaded = load_hf_learner(folder)
    assert set(loaded.model.state_dict()) == set(hf.model.state_dict())
    assert loaded.hf_predict(text)['probs'] == pytest.approx(found['probs'], abs=1e-6)
    assert lower['probs'] == pytest.approx(found['probs'], abs=.05)
    assert 'OptimizedModule' not in (folder/'README.md').read_text()


def test_a_learner_that_gave_hidden_states_can_be_exported(dls, hf, tmp_path):
    learn = hf_learner(dls, hf.model, cbs=HFCallback(output_hidden_states=True), path=tmp_path)
    with learn.no_bar():
        for _ in range(2):
            learn.get_preds()
            assert len(learn.hf_outputs.hidden_states) == 4
            learn.export('learner.pkl')


def test_a_callback_for_one_call_requests_hidden_states(learn):
    learn.get_preds(cbs=HFCallback(output_hidden_states=True))
    assert len(learn.hf_outputs.hidden_states) == 4
    learn.get_preds()
    assert 'hidden_states' not in learn.hf_outputs


def test_train_bn_can_be_set(dls, hf):
    assert not hf_learner(dls, hf.model).train_bn
    assert hf_learner(dls, hf.model, train_bn=True).train_bn


@pytest.mark.parametrize('lr', [1e-3, slice(1e-5, 1e-3)])
def test_parameter_groups_take_the_steps_of_adamw(dls, hf, lr):
    model,alone = deepcopy(hf.model),deepcopy(hf.model)
    learn = hf_learner(dls, model)
    learn.create_opt()
    learn.opt.set_hypers(lr=lr, wd=0.1)
    twins = {id(p): q for p,q in zip(model.parameters(), alone.parameters(), strict=True)}
    theirs = torch.optim.AdamW([pg | dict(params=[twins[id(p)] for p in pg['params']])
                                for pg in learn.opt.opt.param_groups])
    for i in range(3):
        for m in (model, alone):
            for j,p in enumerate(m.parameters()): p.grad = torch.full_like(p, (-1)**(i+j)*1e-2*(j+1))
        learn.opt.step()
        theirs.step()
    assert all(torch.equal(a, b) for a,b in zip(model.parameters(), alone.parameters(), strict=True))


def _printed(learn, df, capsys):
    "What training, validation and prediction print"
    texts,printed = df.text.tolist()*4,[]
    for f in (lambda: learn.fit(2), learn.validate, lambda: learn.hf_predict(texts, batch_tokens=100)):
        capsys.readouterr()
        f()
        printed.append(''.join(capsys.readouterr()))
    return printed


def test_a_file_gets_a_line_an_epoch_and_no_bars(learn, df, capsys):
    learn = hf_learner(learn.dls, learn.model)
    training,*rest = _printed(learn, df, capsys)
    lines = training.splitlines()
    assert [o.split('  ')[0] for o in lines] == ['epoch 0', 'epoch 1']
    assert all(f'  {name} ' in o for o in lines for name in ('train_loss', 'valid_loss', 'accuracy', 'time'))
    assert '\r' not in training
    assert rest == ['', '']
    with learn.no_logging(): assert _printed(learn, df, capsys) == ['', '', '']


def test_bars_are_for_terminals_and_no_bar_turns_them_off(learn, df, capsys, monkeypatch):
    learn = hf_learner(learn.dls, learn.model)
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)
    assert all('\r' in o for o in _printed(learn, df, capsys))
    with learn.no_bar(): assert not any('\r' in o for o in _printed(learn, df, capsys))
    assert all('\r' in o for o in _printed(learn, df, capsys))


@pytest.mark.parametrize('callback', [MixUp, CutMix])
def test_callbacks_that_mix_inputs_are_refused(callback, learn):
    with pytest.raises(ValueError, match=mentions('cbs', callback.__name__)): learn.fit(1, cbs=callback())
    learn.fit(1)


@pytest.mark.parametrize('arch', ['bert', 'gpt2', 't5', 'distilbert'])
def test_attentions_are_returned_when_asked_for(arch, df):
    hf = make_objects(arch)
    dls = HFTextDataLoaders.from_df(df, hf, bs=4, max_length=16, device='cpu')
    learn = hf_learner(dls, hf.model, cbs=HFCallback(output_attentions=True))
    with learn.no_bar(): learn.validate()
    attentions = getattr(learn.hf_outputs, 'attentions', None) or learn.hf_outputs.encoder_attentions
    assert len(attentions) == hf.config.num_hidden_layers
    assert torch.allclose(attentions[0].sum(-1), torch.ones(()), atol=1e-4)


def test_texts_may_come_from_a_generator(learn, df):
    texts = df.text[:5].tolist()
    assert learn.hf_predict(o for o in texts) == learn.hf_predict(texts)
    assert learn.hf_predict(map(str, texts[:1])) == learn.hf_predict(texts[:1])


def test_a_rate_that_a_callback_sets_reaches_the_optimizer(dls, hf):
    learn = hf_learner(dls, hf.model)
    lower = ReduceLROnPlateau(monitor='valid_loss', min_delta=100, patience=1, factor=10)
    with learn.no_bar(), learn.no_logging(): learn.fit(3, 1e-3, cbs=lower)
    assert [o['lr'] for o in learn.opt.opt.param_groups] == pytest.approx([1e-5]*len(learn.opt.opt.param_groups))
    learn.opt.hypers[0]['lr'] = 7.
    first,last = learn.opt.pairs()[0],learn.opt.pairs()[-1]
    assert [o['lr'] for o in first] == [7., 7.]
    assert [o['lr'] for o in last] == pytest.approx([1e-5, 1e-5])
    assert first[1]['weight_decay'] == 0.


def test_the_graph_of_losses_needs_no_terminal(dls, hf, capsys):
    learn = hf_learner(dls, hf.model)
    learn.fit(2, 1e-3, cbs=ShowGraphCallback())
    assert capsys.readouterr().out.count('epoch') == 2


@pytest.mark.parametrize('loss_func', [nn.CrossEntropyLoss(label_smoothing=.1), HFLoss(nn.CrossEntropyLoss())])
def test_a_loss_of_torch_decodes_predictions(dls, hf, loss_func, capsys):
    learn = hf_learner(dls, hf.model, loss_func=loss_func)
    with torch.no_grad(): hf.model.classifier.bias.copy_(torch.tensor([30., 0.])) # logits that are no classes
    with learn.no_bar():
        learn.show_results(max_n=4)
        shown = capsys.readouterr().out
        preds,_,decoded = learn.get_preds(with_decoded=True)
        interp = ClassificationInterpretation.from_learner(learn)
        assert interp.confusion_matrix()[:,1].sum() == 0
    assert dls.vocab[0] in shown
    assert decoded.tolist() == [0]*40
    assert preds.sum(1).tolist() == pytest.approx([1.]*40)


def test_a_model_that_was_loaded_separately_gets_the_padding_token(df):
    hf = make_objects('gpt2')
    other = make_objects('gpt2').model
    dls = HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', bs=8, seed=0, device='cpu')
    other.config.pad_token_id = 5 # as in a checkpoint whose tokenizer has none
    learn = hf_learner(dls, other)
    assert other.config.pad_token_id == hf.tokenizer.pad_token_id
    texts = df.text[:8].tolist()
    alone = [learn.hf_predict(o)['probs'] for o in texts]
    np.testing.assert_allclose([o['probs'] for o in learn.hf_predict(texts)], alone, atol=1e-5)


def test_an_optimizer_of_torch_is_wrapped(dls, hf):
    learn = hf_learner(dls, hf.model, opt_func=torch.optim.SGD, lr=.1)
    learn.create_opt()
    assert type(learn.opt.opt) is torch.optim.SGD
    assert learn.opt.hypers[-1]['lr'] == .1
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, slice(1e-3, 1e-2), wd=.01)
    assert learn.opt.hypers[0]['wd'] == .01


@pytest.mark.parametrize('lr', [slice(1e-5, 1e-3), 0, -1., '1e-3'])
def test_a_wrong_learning_rate_is_named(dls, hf, lr):
    with pytest.raises(ValueError, match=mentions('lr=', repr(lr)[:5])): hf_learner(dls, hf.model, lr=lr)
