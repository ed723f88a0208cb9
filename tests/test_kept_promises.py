"What users pass in other forms than the usual ones gives the same results, and what belongs to weights goes with them."
import json
import os

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_objects, make_texts, mentions
from fastai.callback.tracker import SaveModelCallback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import BCEWithLogitsLossFlat
from torch import nn

from blurlike.all import HFCallback, HFLoss, HFTextDataLoaders, hf_learner, load_hf_learner, token_lengths
from blurlike.cli import _options, _parse
from blurlike.core.objects import load_hf_model
from blurlike.scale import score
from blurlike.ship.save import _carry_over, _move_into
from blurlike.ship.serve import _parameters


def quiet(learn):
    learn.remove_cbs([o for o in learn.cbs if type(o).__name__=='ProgressCallback'])
    learn.logger = lambda _: None
    return learn


def from_df(df, hf, **kwargs):
    return HFTextDataLoaders.from_df(df, hf, **{'valid_col': 'is_valid', 'bs': 8, 'seed': 0, 'device': 'cpu', **kwargs})


# ---- other forms of texts

@pytest.mark.parametrize('change', ['shuffled', 'a part', 'equal index'])
def test_a_series_is_read_by_position(learn, df, change):
    texts = df.text.sample(frac=1, random_state=1)[:20]
    if change=='a part': texts = df.text[30:50]
    if change=='equal index': texts.index = [0]*len(texts)
    with learn.no_bar(): preds = learn.get_preds(dl=learn.dls.test_dl(texts))[0]
    expected = [o['probs'] for o in learn.hf_predict(texts.tolist())]
    np.testing.assert_allclose(preds.numpy(), expected, atol=1e-5)


def split_words(df, hf): return from_df(df.assign(text=df.text.str.split()), hf, is_split_into_words=True,
                                        task='sequence-classification')


def test_a_tuple_is_no_list_of_words(df, hf):
    learn = quiet(hf_learner(split_words(df, hf), hf.model))
    with pytest.raises(ValueError, match='film'): learn.hf_predict([('the', 'film', 'warm')], many=True)


def test_pairs_of_lists_of_words_are_explained(df, hf):
    pairs = df.assign(text=df.text.str.split(), other=[['the', 'cast']]*len(df))
    dls = from_df(pairs, hf, text_col=['text', 'other'], is_split_into_words=True, task='sequence-classification')
    learn = quiet(hf_learner(dls, hf.model))
    texts = ['film', 'warm'],['the', 'plot', 'dull', 'sour']
    found, = learn.explain([texts], many=True)
    assert found.texts == ('film warm', 'the plot dull sour')
    assert [(o[0], o[4]) for o in found.outputs[0].words] == [(w, i) for i,t in enumerate(texts) for w in t]


def test_lists_of_words_are_scored(df, hf, tmp_path):
    learn = quiet(hf_learner(split_words(df, hf), hf.model))
    learn.save_pretrained(tmp_path/'model')
    rows = [o.split() for o in df.text[:5]]
    pd.DataFrame(dict(text=rows)).to_parquet(tmp_path/'a.parquet')
    found = pd.read_parquet(score(tmp_path/'a.parquet', tmp_path/'model', tmp_path/'scores'))
    assert found.error.isna().all()
    assert found.label.tolist() == [o['label'] for o in learn.hf_predict(rows, many=True)]


def test_lines_of_words_are_parsed_as_lists(df, hf):
    block = split_words(df, hf).hf_block
    assert _parse('["the", "film"]', 1, block) == ['the', 'film']


def test_lengths_of_lists_of_words_are_those_of_the_batch():
    tokenizer = make_objects('gpt2').tokenizer
    words = [['the', 'film', 'warm']]
    assert token_lengths(words, tokenizer).tolist() == token_lengths([' '.join(words[0])], tokenizer).tolist()


def test_a_batch_of_one_row(dls):
    dls.show_batch(unique=True, max_n=2)
    assert dls.train.one_batch()[1].shape == (8,)


# ---- other forms of arguments

def test_spaces_between_options(): assert _options('precision=fp32, top_k=3') == dict(precision='fp32', top_k=3)


@pytest.mark.parametrize('loss_func', [nn.L1Loss(), nn.SmoothL1Loss(), nn.HuberLoss(), nn.functional.l1_loss])
def test_a_loss_of_torch_does_not_broadcast(df, hf, loss_func):
    hf = make_objects(num_labels=1)
    dls = from_df(df.assign(label=np.linspace(-1, 1, len(df))), hf, task='regression')
    learn = quiet(hf_learner(dls, hf.model, loss_func=loss_func))
    with learn.no_bar():
        preds,targs = learn.get_preds(dl=dls.valid.new(sort=False, shuffle=False))
        found = learn.validate()[0]
    reference = loss_func(preds.flatten(), targs.flatten()).item()
    assert found == pytest.approx(reference, rel=1e-4)


def test_the_old_name_of_dtype(hf, tmp_path):
    hf.model.save_pretrained(tmp_path)
    model = load_hf_model(tmp_path, model_kwargs=dict(torch_dtype=torch.bfloat16))
    assert model.dtype == torch.bfloat16


def test_a_model_class_is_no_string(tmp_path):
    with pytest.raises(TypeError, match=mentions('model_cls=', 'AutoModel')): load_hf_model(tmp_path, 'AutoModel')


def test_a_table_is_no_loader(learn, df):
    with pytest.raises(TypeError, match=mentions('dl=', 'DataFrame')): learn.calibrate(df)


def test_files_beside_the_folders_of_labels(hf, tmp_path, capsys):
    for i,(text,label) in enumerate(make_texts(20).values):
        (tmp_path/label).mkdir(exist_ok=True)
        (tmp_path/label/f'{i}.txt').write_text(text)
    (tmp_path/'README.txt').write_text('About the data')
    dls = HFTextDataLoaders.from_folder(tmp_path, hf, bs=4, seed=0)
    assert list(dls.vocab) == ['bad', 'good']
    assert 'README.txt' in capsys.readouterr().out


def test_names_of_parameters_on_a_page():
    names = _parameters(['a b', 'a_b', 'title (en)', 'class', '1'])
    assert names == ['a_b', 'a_b_', 'title__en_', 'text_class', 'text_1']


# ---- what belongs to weights

def test_loading_weights_removes_the_temperature(learn, tmp_path, capsys):
    learn.path = tmp_path
    learn.save('before')
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(2, 3e-4)
        learn.calibrate()
    learn.load('before', 'cpu')
    assert 'other weights' in capsys.readouterr().out
    assert learn.hf.calibration is None


def test_the_card_has_the_results_of_the_weights_that_are_loaded(learn, tmp_path):
    learn.path = tmp_path
    with learn.no_bar():
        cb = SaveModelCallback('accuracy', comp=np.less, fname='worst-epoch') # so that it is not the last
        learn.fit_one_cycle(4, 1e-3, cbs=cb)
        accuracy = learn.validate()[1]
    found = {o.metric_type: o.metric_value for o in learn.model_card().data.eval_results}
    assert found['accuracy'] == pytest.approx(accuracy, abs=1e-4)


def test_learners_do_not_share_a_loss(df, hf):
    loss = HFLoss()
    hf_learner(from_df(df, hf), hf.model, loss_func=loss)
    other = make_objects(num_labels=1)
    dls = from_df(df.assign(label=np.linspace(-1, 1, len(df))), other, task='regression')
    learn = quiet(hf_learner(dls, other.model, loss_func=loss))
    with learn.no_bar(): preds = learn.get_preds()[0]
    assert len({round(o, 6) for o in preds.flatten().tolist()}) > 1


def test_a_state_without_a_threshold_fits_plain_loaders(hf):
    batches = [hf.tokenizer(['the film', 'the plot'], return_tensors='pt') | dict(labels=torch.tensor([0, 1]))]
    learn = Learner(DataLoaders(batches, batches), hf.model, HFLoss(nn.CrossEntropyLoss()), cbs=[HFCallback])
    learn.hf.load_state_dict(learn.hf.state_dict() | dict(threshold=None))


def test_thresholds_follow_their_labels(df, tmp_path):
    hf,names = make_objects(num_labels=3),['plot', 'film', 'cast']
    columns = df.assign(**{o: df.text.str.contains(o).astype(int) for o in names})
    learn = quiet(hf_learner(from_df(columns, hf, label_col=names), hf.model))
    learn.loss_func.thresh = [.9, .1, .5]
    learn.save_pretrained(tmp_path/'model')
    lists = df.assign(label=[[w for w in names if w in t] for t in df.text])
    again = load_hf_learner(tmp_path/'model', dls=from_df(lists, hf))
    found = dict(zip(again.dls.vocab, again.loss_func.thresh, strict=True))
    assert found == dict(plot=.9, film=.1, cast=.5)
    assert isinstance(again.loss_func, BCEWithLogitsLossFlat)


# ---- folders with links

@pytest.fixture
def linked(tmp_path):
    for o in ('there', 'old', 'old/new'): (tmp_path/o).mkdir()
    (tmp_path/'there'/'a.txt').write_text('text')
    (tmp_path/'old'/'config.json').write_text('{}')
    (tmp_path/'old'/'data').symlink_to(tmp_path/'there')
    (tmp_path/'old'/'new'/'config.json').write_text(json.dumps(dict(new=1)))
    return tmp_path/'old'


def test_links_stay_links(linked):
    new = linked/'new'
    _carry_over(linked, new)
    assert os.readlink(new/'data') == str(linked.parent/'there')
    _move_into(new, linked, 'config.json')
    assert (linked/'data').is_symlink()
    assert (linked/'data'/'a.txt').read_text() == 'text'
    assert json.loads((linked/'config.json').read_text()) == dict(new=1)
