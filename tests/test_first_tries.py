"What people who come from fastai, blurr and transformers try first: accepted, or refused with the way to do it."
import pandas as pd
import pytest
import torch
from conftest import make_objects, make_texts, mentions
from datasets import Dataset
from fastai.data.core import DataLoaders
from fastai.learner import Learner, load_learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, DataCollatorWithPadding

from blurlike.all import HFCallback, HFLoss, HFTextBlock, HFTextDataLoaders, hf_learner

# rows in other forms

@pytest.mark.parametrize(('call', 'data', 'way'), [
    ('from_dataset', [dict(text='a', label='b')], 'from_df(pd.DataFrame(rows), ...)'),
    ('from_df', [dict(text='a', label='b')], 'from_df(pd.DataFrame(rows), ...)'),
    ('from_df', dict(text=['a'], label=['b']), 'from_df(pd.DataFrame(columns), ...)'),
    ('from_csv', 'a.jsonl', "from_df(pd.read_json('a.jsonl', lines=True), ...)"),
    ('from_csv', 'a.xlsx', "from_df(pd.read_excel('a.xlsx'), ...)"),
    ('from_df', 'a.parquet', "from_df(pd.read_parquet('a.parquet'), ...)"),
    ('from_dataset', 'a.jsonl', "from_df(pd.read_json('a.jsonl', lines=True), ...)"),
    ('from_df', 'a.csv', 'from_csv'),
])
def test_rows_in_another_form_raise_and_the_error_names_the_way(call, data, way, hf):
    with pytest.raises(ValueError, match=mentions(way)): getattr(HFTextDataLoaders, call)(data, hf)


def test_a_list_of_dicts_works_as_the_error_says(df, hf):
    dls = HFTextDataLoaders.from_df(pd.DataFrame(df.to_dict('records')), hf, valid_col='is_valid', device='cpu')
    assert len(dls.train_ds) == 80


# folders of texts

def write(folder, df, labels):
    "A file for each text, in folders that may be named after labels"
    for i,o in enumerate(df.itertuples()):
        path = folder/('valid' if i%4==0 else 'train')/(o.label if labels else '')/f'{i}.txt'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(o.text, encoding='utf-8')


@pytest.mark.parametrize('labels', [False, True])
def test_a_language_model_reads_a_folder_of_texts(labels, df, tmp_path):
    write(tmp_path, df, labels)
    hf = make_objects('gpt2', auto_model=AutoModelForCausalLM)
    dls = HFTextDataLoaders.from_folder(tmp_path, hf, task='causal-lm', packing=False, device='cpu')
    assert (len(dls.train_ds), len(dls.valid_ds)) == (90, 30)
    split = HFTextDataLoaders.from_folder(tmp_path, hf, task='causal-lm', packing=False, valid_pct=.5, device='cpu')
    assert len(split.valid_ds) == 60
    learn = hf_learner(dls, hf.model)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)


def test_folders_are_no_targets_of_other_tasks(df, hf, tmp_path):
    write(tmp_path, df, True)
    for task in ('regression', 'summarization'):
        with pytest.raises(ValueError, match=mentions(f'task={task!r}', 'causal-lm')):
            HFTextDataLoaders.from_folder(tmp_path, hf, task=task)
    for task in ('multi-label-classification', 'token-classification'):
        with pytest.raises(ValueError, match=mentions("'label'")):
            HFTextDataLoaders.from_folder(tmp_path, hf, task=task)
    for o in (tmp_path/'valid').rglob('*.txt'): o.unlink()
    with pytest.raises(ValueError, match=mentions("'valid'")): HFTextDataLoaders.from_folder(tmp_path, hf)


# tokenized data sets and loaders of torch

def tokenized(hf, n=40):
    df = make_texts(n)
    ds = Dataset.from_dict(dict(text=df.text.tolist(), labels=(df.label=='good').astype(int).tolist()))
    return ds.map(lambda o: hf.tokenizer(o['text'], truncation=True), remove_columns='text')


def test_a_tokenized_data_set_raises_and_the_error_names_the_way(hf):
    for kwargs in ({}, dict(text_col='input_ids', label_col='labels'), dict(task='sequence-classification')):
        with pytest.raises(ValueError, match=mentions("'input_ids'", 'HFCallback')):
            HFTextDataLoaders.from_dataset(tokenized(hf), hf, **kwargs)


def torch_loaders(hf, kind):
    "Loaders of torch that return dicts, or tuples of inputs and labels"
    ds,pad = tokenized(hf),DataCollatorWithPadding(hf.tokenizer)
    def collate(rows):
        batch = pad(rows)
        return batch if kind=='dicts' else dict(batch) if kind=='plain dicts' else (batch, batch.pop('labels'))
    return DataLoaders(*(DataLoader(ds, 8, collate_fn=collate, shuffle=o) for o in (True, False)), device='cpu')


@pytest.mark.parametrize('kind', ['dicts', 'plain dicts', 'tuples'])
@pytest.mark.parametrize('loss_func', [HFLoss, CrossEntropyLossFlat])
def test_loaders_of_torch_train_with_the_callback(kind, loss_func, hf):
    dls = torch_loaders(hf, kind)
    learn = Learner(dls, hf.model, loss_func=loss_func(), metrics=accuracy, cbs=[HFCallback])
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(15, 5e-3)
        loss,acc = learn.validate()
        preds,targs = learn.get_preds(dl=dls.valid)
    assert acc > .9
    assert targs.tolist() == [0, 1]*20
    with torch.no_grad(): logits = hf.model.cpu().eval()(**hf.tokenizer(make_texts(2).text.tolist(), padding=True,
                                                                  return_tensors='pt')).logits
    wanted = logits if loss_func is HFLoss else logits.softmax(-1)
    assert preds[:2].flatten().tolist() == pytest.approx(wanted.flatten().tolist(), abs=1e-4)


def test_batches_without_labels_predict_and_do_not_train(hf):
    ds = tokenized(hf).remove_columns('labels')
    dl = DataLoader(ds, 8, collate_fn=DataCollatorWithPadding(hf.tokenizer))
    learn = Learner(DataLoaders(dl, dl, device='cpu'), hf.model, loss_func=HFLoss(), cbs=[HFCallback])
    with learn.no_bar(), learn.no_logging():
        with pytest.raises(ValueError, match=mentions("'labels'", "'input_ids'")): learn.fit(1)
        assert learn.get_preds(dl=dl)[0].shape == (40, 2)


@pytest.mark.parametrize(('tokens', 'labels', 'facts'), [
    ([['the', 'film'], ['a', 'dull', 'plot'], ['warm']]*4, [['O', 'B-X'], ['O', 'O', 'B-X'], ['O', 'O']]*4,
     ('row 2', '1 word', '2 labels')),
    (['the film', 'a plot']*6, ['good', None]*6, ('label', 'no label', 'row 1'))])
def test_what_is_wrong_with_rows_is_said_where_the_task_is_inferred(tokens, labels, facts):
    df,hf = pd.DataFrame(dict(tokens=tokens, text=tokens, label=labels)),make_objects('bert')
    cols = dict(text_col='tokens' if isinstance(tokens[0], list) else 'text', label_col='label')
    with pytest.raises(ValueError, match=mentions(*facts)):
        HFTextDataLoaders.from_df(df, hf, bs=2, device='cpu', splits=(range(6), range(6, 12)), **cols)


def test_options_of_a_tokenizers_call(df):
    hf = make_objects('bert')
    def loaders(**options): return HFTextDataLoaders.from_df(df, hf, bs=4, max_length=16, device='cpu', **options)
    ids = loaders(add_special_tokens=False).valid.one_batch()[0]['input_ids']
    tokens = set(ids.flatten().tolist())
    assert not tokens & {hf.tokenizer.cls_token_id, hf.tokenizer.sep_token_id}
    for options,facts in (({'return_tensors': 'pt'}, 'tensors'), ({'return_token_type_ids': False}, 'tok_kwargs')):
        with pytest.raises(TypeError, match=mentions(next(iter(options)), facts)): loaders(**options)
        with pytest.raises(TypeError, match=mentions(next(iter(options)), facts)): HFTextBlock(*hf, **options)


@pytest.mark.parametrize('plain', [False, True], ids=['hf_learner', 'Learner'])
def test_the_model_takes_a_batch_by_hand(df, plain, tmp_path):
    hf = make_objects('bert')
    dls = HFTextDataLoaders.from_df(df, hf, bs=4, max_length=16, device='cpu')
    learn = Learner(dls, hf.model, CrossEntropyLossFlat(), cbs=HFCallback) if plain else hf_learner(dls, hf.model)
    learn.model.eval()
    xb,_ = dls.valid.one_batch()
    logits = learn.model(xb).logits
    assert torch.equal(logits, learn.model(**xb).logits)
    hf_learner(dls, hf.model) # a second learner of the same model
    assert torch.equal(learn.model(dict(xb)).logits, logits)
    learn.export(tmp_path/'learn.pkl')
    assert torch.equal(load_learner(tmp_path/'learn.pkl').model(xb).logits, logits)
    learn.model = make_objects('bert').model.eval()
    with learn.no_bar(): learn.validate()
    assert learn.model(xb).logits.shape == logits.shape
