"The names of a trained model's outputs keep their weights, whatever the order and the spelling of the data's classes."
import random
import re

import pytest
import torch
from conftest import make_objects, make_texts, mentions
from fastai.data.all import CategoryBlock, ColReader, ColSplitter, DataBlock
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForTokenClassification

from blurlike.all import (
    HFCallback,
    HFTextBlock,
    HFTextDataLoaders,
    hf_learner,
    hf_splitter,
    label_names,
    load_hf_learner,
)
from blurlike.tasks.labels import output_order

ONE,MANY,NUMBERS,WORDS = ('sequence-classification', 'multi-label-classification', 'regression', 'token-classification')
LABELS = {ONE: ['bad', 'good'], MANY: ['bad', 'good'], NUMBERS: ['bad', 'good'],
          WORDS: ['B-BAD', 'B-GOOD', 'I-BAD', 'I-GOOD', 'O']}


def frame():
    df = make_texts(48)
    for o in ('bad', 'good'): df[o] = (df.label==o).astype(int)
    df['score_bad'],df['score_good'] = df.bad*2.5,df.good*3.5
    df['tokens'] = df.text.str.split()
    rng = random.Random(0)
    df['tags'] = [[rng.choice(LABELS[WORDS]) for _ in o] for o in df.tokens]
    df['is_valid'] = df.index >= 32
    return df


DF = frame()


def make_dls(task, order, hf):
    "`DataLoaders` whose classes have another order"
    kwargs = dict(task=task, valid_col='is_valid', bs=8, seed=0, device='cpu')
    if task==WORDS: kwargs |= dict(text_col='tokens', label_col='tags', vocab=order)
    elif task==ONE: kwargs['vocab'] = order
    elif task==MANY: kwargs['label_col'] = order
    else: kwargs['label_col'] = [f'score_{o}' for o in order]
    return HFTextDataLoaders.from_df(DF, hf, **kwargs)


def objects(task):
    auto = dict(auto_model=AutoModelForTokenClassification) if task==WORDS else {}
    return make_objects(num_labels=len(LABELS[task]), **auto)


def quiet(learn):
    learn.remove_cbs([o for o in learn.cbs if type(o).__name__=='ProgressCallback'])
    learn.logger = lambda *_: None
    return learn


@pytest.fixture(scope='module', params=LABELS)
def trained(request, tmp_path_factory):
    "The folder of a model that was trained on the labels in their order, its loss, and its predictions by name"
    task = request.param
    hf = objects(task)
    learn = quiet(hf_learner(make_dls(task, LABELS[task], hf), hf.model, metrics=[]))
    learn.fit(2, 1e-2)
    folder = learn.save_pretrained(tmp_path_factory.mktemp(task)/'model')
    return task,folder,learn.validate()[0],by_name(learn, task)


def by_name(learn, task):
    "The predictions of some texts, without the order of the classes"
    texts = DF.text[:6].tolist()
    if task==WORDS:
        return [[(o['word'], o['entity'], round(o['score'], 4)) for o in row]
                for row in learn.hf_predict(texts, many=True, aggregation_strategy='none', ignore_labels=[])]
    key = 'scores' if task==NUMBERS else 'probs'
    preds = learn.hf_predict(texts)
    names = learn.model.config.id2label # now in the order of the data
    return [{names[i]: pytest.approx(v, abs=1e-4) for i,v in enumerate(o[key])} for o in preds]


def reversed_dls(task, checkpoint): return make_dls(task, LABELS[task][::-1], checkpoint)


def by_loading(task, folder): return load_hf_learner(folder, dls=reversed_dls(task, folder), metrics=[])

def from_the_folder(task, folder): return hf_learner(reversed_dls(task, folder), metrics=[])

def by_a_model(task, folder):
    return hf_learner(reversed_dls(task, folder), load_hf_learner(folder).model, metrics=[])

def by_new_dls(task, folder):
    learn = load_hf_learner(folder, metrics=[])
    learn.dls = reversed_dls(task, folder)
    return learn

def by_a_plain_learner(task, folder):
    dls = reversed_dls(task, folder)
    return Learner(dls, load_hf_learner(folder).model, dls.hf_block.task.loss_func(), cbs=HFCallback,
                   splitter=hf_splitter)


WAYS = [by_loading, from_the_folder, by_a_model, by_new_dls, by_a_plain_learner]


@pytest.mark.parametrize('way', WAYS)
def test_a_trained_model_is_as_right_about_data_in_another_order(way, trained):
    task,folder,loss,preds = trained
    learn = quiet(way(task, folder))
    assert learn.validate()[0] == pytest.approx(loss, abs=1e-5)
    assert by_name(learn, task) == preds
    names = [o.removeprefix('score_') for o in learn.model.config.id2label.values()]
    assert names == LABELS[task][::-1]


@pytest.mark.parametrize('way', WAYS)
def test_what_is_saved_afterward_names_the_same_weights(way, trained, tmp_path):
    task,folder,loss,preds = trained
    learn = quiet(way(task, folder))
    learn.validate()
    assert by_name(load_hf_learner(learn.save_pretrained(tmp_path/'again')), task) == preds


def test_two_learners_share_a_model_and_differ_in_the_order(trained):
    task,folder,loss,preds = trained
    one = quiet(load_hf_learner(folder, dls=make_dls(task, LABELS[task], folder), metrics=[]))
    other = quiet(hf_learner(reversed_dls(task, folder), one.model, metrics=[]))
    for learn in (one, other, one):
        assert learn.validate()[0] == pytest.approx(loss, abs=1e-5)
        assert by_name(learn, task) == preds


@pytest.mark.parametrize('way', [by_new_dls, by_a_model])
def test_a_prediction_names_the_outputs_of_the_current_data(way, trained):
    "Without a validation before it"
    task,folder,loss,preds = trained
    learn = quiet(way(task, folder))
    assert by_name(learn, task) == preds
    if task==NUMBERS: return
    hf_learner(make_dls(task, LABELS[task], folder), learn.model) # reorders the outputs of the shared model
    assert by_name(learn, task) == preds


@pytest.mark.parametrize('arch', 'bert roberta gpt2 bart xlnet electra deberta-v2 t5 funnel canine'.split())
def test_the_outputs_of_any_architecture_move(arch):
    hf = make_objects(arch, **label_names(LABELS[ONE]))
    before = quiet(hf_learner(make_dls(ONE, LABELS[ONE], hf), hf.model)).hf_predict(DF.text[0])['probs']
    learn = quiet(hf_learner(reversed_dls(ONE, hf), hf.model))
    assert learn.hf_predict(DF.text[0])['probs'] == pytest.approx(before[::-1], abs=1e-6)


def test_moved_outputs_are_said(capsys):
    hf = make_objects(**label_names(LABELS[ONE]))
    hf_learner(reversed_dls(ONE, hf), hf.model)
    assert re.search(mentions('BertForSequenceClassification', "'good', 'bad'"), capsys.readouterr().out)


def test_a_datablock_in_another_order():
    hf = make_objects(**label_names(['good', 'bad']))
    block = HFTextBlock(*hf, max_length=64)
    dblock = DataBlock((block, CategoryBlock), get_x=ColReader('text'), get_y=ColReader('label'),
                       splitter=ColSplitter())
    before = hf.model.eval()(**hf.tokenizer(DF.text[0], return_tensors='pt')).logits[0]
    learn = Learner(dblock.dataloaders(DF, bs=8), hf.model, CrossEntropyLossFlat(), metrics=accuracy, cbs=HFCallback)
    assert list(learn.dls.vocab) == ['bad', 'good']
    after = hf.model.eval()(**hf.tokenizer(DF.text[0], return_tensors='pt')).logits[0]
    assert torch.equal(after, before.flip(0))


SPELLINGS = [('POSITIVE', 'NEGATIVE'), ('Positive', 'Negative'), ('POS', 'NEG'), ('pos.', 'neg.'), ('positive', 'neg')]


@pytest.mark.parametrize('names', SPELLINGS)
def test_another_spelling_counts_as_the_same_class_and_is_said(names, capsys):
    df = DF.assign(label=DF.label.map(dict(good='positive', bad='negative')))
    hf = make_objects(**label_names(names))
    before = hf.model.eval()(**hf.tokenizer(df.text[0], return_tensors='pt')).logits[0].softmax(-1).tolist()
    capsys.readouterr()
    learn = hf_learner(HFTextDataLoaders.from_df(df, hf, task=ONE, valid_col='is_valid'), hf.model)
    assert re.search(mentions(*map(repr, names), "'positive'", "'negative'"), capsys.readouterr().out)
    assert learn.hf_predict(df.text[0])['probs'] == pytest.approx(before[::-1], abs=1e-6)


def test_other_classes_are_said_to_need_training(capsys):
    hf = make_objects(**label_names(['joy', 'anger']))
    before = hf.model.classifier.weight.clone()
    hf_learner(make_dls(ONE, LABELS[ONE], hf), hf.model)
    assert re.search(mentions("'joy', 'anger'", "'bad', 'good'"), capsys.readouterr().out)
    assert torch.equal(hf.model.classifier.weight, before)


def test_a_model_without_names_says_nothing(capsys):
    hf = make_objects()
    hf_learner(make_dls(ONE, LABELS[ONE], hf), hf.model)
    assert not capsys.readouterr().out


def test_classes_that_are_spelled_alike():
    df = DF.assign(label=[1 if i%2 else '1' for i in range(len(DF))])
    hf = make_objects()
    with pytest.raises(ValueError, match=mentions("'1'")):
        hf_learner(HFTextDataLoaders.from_df(df, hf, task=ONE, valid_col='is_valid', vocab=[1, '1']), hf.model)


def test_outputs_that_cannot_be_moved_raise():
    hf = make_objects(**label_names(['good', 'bad']))
    hf.model.another = torch.nn.Linear(3, 2)
    with pytest.raises(ValueError, match=mentions("vocab=['good', 'bad']")):
        hf_learner(make_dls(ONE, LABELS[ONE], hf), hf.model)


# ---- Another kind of targets

KINDS = {ONE: 'single_label_classification', MANY: 'multi_label_classification', NUMBERS: 'regression'}


@pytest.mark.parametrize('had', KINDS)
@pytest.mark.parametrize('task', KINDS)
def test_a_head_for_other_targets_raises(had, task, tmp_path):
    hf = objects(had)
    folder = hf_learner(make_dls(had, LABELS[had], hf), hf.model).save_pretrained(tmp_path/'model')
    dls = make_dls(task, LABELS[task], folder)
    makers = (lambda: hf_learner(dls), lambda: hf_learner(dls, hf.model))
    for make in makers:
        if had==task: make()
        else:
            with pytest.raises(ValueError, match=mentions(f'problem_type={KINDS[had]!r}', repr(KINDS[task]))): make()
    new = hf_learner(dls, new_head=True).model
    assert new.config.problem_type == KINDS[task]
    assert not torch.equal(new.classifier.weight, hf.model.classifier.weight)
    assert torch.equal(new.bert.embeddings.word_embeddings.weight, hf.model.bert.embeddings.word_embeddings.weight)


def test_a_head_of_another_size_is_new_anyway(tmp_path):
    hf = objects(ONE)
    folder = hf_learner(make_dls(ONE, LABELS[ONE], hf), hf.model).save_pretrained(tmp_path/'model')
    df = DF.assign(third=0)
    dls = HFTextDataLoaders.from_df(df, folder, task=MANY, label_col=['good', 'third', 'bad'], valid_col='is_valid')
    assert hf_learner(dls).model.config.problem_type == KINDS[MANY]


def test_a_new_head_is_only_for_a_model_that_is_built(tmp_path):
    hf = objects(ONE)
    with pytest.raises(ValueError, match=mentions('new_head=True')):
        hf_learner(make_dls(ONE, LABELS[ONE], hf), hf.model, new_head=True)


# ---- Names

names = st.lists(st.text('abcXYZ-_1', min_size=1, max_size=4), min_size=2, max_size=6, unique=True)


@given(names, st.randoms())
def test_the_same_names_are_found_in_any_order(had, rng):
    shuffled = rng.sample(had, len(had))
    assert [had[i] for i in output_order(had, shuffled)] == shuffled


@given(names, names)
def test_an_order_is_a_permutation_or_nothing(had, names):
    order = output_order(had, names)
    assert order is None or sorted(order) == list(range(len(had)))


def test_the_words_of_a_natural_language_inference_model():
    had = ['CONTRADICTION', 'NEUTRAL', 'ENTAILMENT']
    assert output_order(had, ['contradiction', 'entailment', 'neutral']) == [0, 2, 1]
    assert output_order(had, ['neutral', 'entails', 'contradiction']) is None


def test_names_are_not_all_text(df):
    "Integer classes are named by their digits"
    rows = df.assign(label=(df.label=='good').astype(int))
    hf = make_objects(**label_names(['1', '0']))
    learn = hf_learner(HFTextDataLoaders.from_df(rows, hf, task=ONE, valid_col='is_valid'), hf.model)
    assert learn.model.config.id2label == {0: '0', 1: '1'}
