"One round through the library for each architecture: nothing in it may depend on which one it is."
import pytest
import torch
from conftest import ARCHITECTURES, make_objects
from fastai.losses import CrossEntropyLossFlat
from transformers import pipeline

from blurlike.all import HFCallback, HFLoss, HFTextDataLoaders, hf_learner, hf_splitter, model_skeleton, position_limit

TEXTS = ['the film warm', 'the plot dull the cast sour the script stale', 'zebra 🎬']


@pytest.mark.parametrize('arch', sorted(ARCHITECTURES))
def test_an_architecture_trains_predicts_saves_and_reads_back(arch, df, tmp_path):
    hf = make_objects(arch)
    dls = HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', bs=8, seed=0, device='cpu')
    learn = hf_learner(dls, hf.model, lr=1e-3)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert all(torch.isfinite(p).all() for p in hf.model.parameters())
    preds = learn.hf_predict(TEXTS)
    learn.save_pretrained(tmp_path/'model')
    classify = pipeline('text-classification', model=str(tmp_path/'model'), device='cpu')
    for text,ours in zip(TEXTS, preds, strict=True):
        theirs = classify(text)[0]
        assert theirs['label'] == ours['label']
        assert theirs['score'] == pytest.approx(ours['score'], abs=1e-5)


@pytest.mark.parametrize('arch', sorted(ARCHITECTURES))
def test_the_models_own_loss_is_fastais_loss(arch, df):
    hf = make_objects(arch)
    dls = HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', bs=8, device='cpu')
    batch = dls.valid.one_batch()
    losses = []
    for loss_func in (HFLoss(), CrossEntropyLossFlat()):
        learn = hf_learner(dls, hf.model, loss_func=loss_func)
        with learn.no_bar(): losses.append(learn.validate(dl=[batch])[0])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.parametrize('arch', sorted(ARCHITECTURES))
def test_every_parameter_is_in_one_group_and_freezing_leaves_the_head(arch, df):
    hf = make_objects(arch)
    groups = hf_splitter(hf.model)
    ids = [id(p) for g in groups for p in g]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(p) for p in hf.model.parameters()}
    learn = hf_learner(HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', device='cpu'), hf.model)
    learn.freeze()
    body = {id(p) for p in hf.model.base_model.parameters()}
    trains = {id(p) for p in hf.model.parameters() if p.requires_grad}
    assert trains == {id(p) for p in hf.model.parameters()} - body
    learn.freeze_to(-2)
    assert trains < {id(p) for p in hf.model.parameters() if p.requires_grad} < set(ids)


# transformers' Funnel fails on a batch in which no row has three tokens: its pooling needs more
SHORTEST = {'funnel': dict(pad_to_multiple_of=4)}


@pytest.mark.parametrize('arch', sorted(ARCHITECTURES))
def test_a_text_without_words_trains_and_predicts(arch, df):
    hf = make_objects(arch)
    empty = df.assign(text=['' if i%3==0 else ' \n' if i%3==1 else '🎬' for i in range(len(df))])
    dls = HFTextDataLoaders.from_df(empty, hf, valid_col='is_valid', bs=8, device='cpu', **SHORTEST.get(arch, {}))
    learn = hf_learner(dls, hf.model)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    for pred in learn.hf_predict(['', ' ', '\n\t', '🎬🍿', 'the film']): assert 0 < pred['score'] <= 1


@pytest.mark.parametrize('arch', sorted(ARCHITECTURES))
def test_the_longest_text_that_is_allowed_runs_through_the_model(arch):
    hf = make_objects(arch)
    limit = position_limit(hf.model)
    assert limit == position_limit(model_skeleton(hf.config))
    ids = torch.full((1, limit or 100), hf.tokenizer.convert_tokens_to_ids('the') or 5)
    if hf.tokenizer.eos_token_id is not None: ids[:, -1] = hf.tokenizer.eos_token_id
    with torch.no_grad(): assert hf.model.eval()(input_ids=ids).logits.shape == (1, 2)
    if limit is not None:
        with pytest.raises((IndexError, RuntimeError, ValueError)): hf.model(input_ids=torch.cat([ids, ids], 1))


def test_a_bare_model_in_a_plain_learner_needs_only_the_callback(df):
    from fastai.text.all import DataLoaders, Learner
    hf = make_objects()
    loader = torch.utils.data.DataLoader([({k: v[0] for k,v in hf.tokenizer(t, padding='max_length', max_length=50, return_tensors='pt').items()},
                                           int(y=='good')) for t,y in zip(df.text, df.label, strict=True)], batch_size=8)
    learn = Learner(DataLoaders(loader, loader, device=torch.device('cpu')), hf.model, loss_func=CrossEntropyLossFlat(), cbs=[HFCallback])
    with learn.no_bar(), learn.no_logging():
        before = learn.validate()[0]
        learn.fit(2, 1e-3)
        assert learn.validate()[0] < before
