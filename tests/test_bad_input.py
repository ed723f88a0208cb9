"A wrong input is met where it enters, with the argument, the value and what would work."
import numpy as np
import pandas as pd
import pytest
from conftest import make_objects
from datasets import ClassLabel, Dataset, DatasetDict
from fastai.data.all import CategoryBlock, ColReader, ColSplitter, DataBlock, MultiCategoryBlock, RegressionBlock
from fastai.text.all import CrossEntropyLossFlat, DataLoaders, Learner
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForSequenceClassification

from blurlike.all import (
    HFCallback,
    HFTextBlock,
    HFTextDataLoaders,
    get_hf_objects,
    hf_learner,
    minilm_checkpoint,
    plot_token_lengths,
    set_pad_token,
    token_lengths,
)
from blurlike.core.precision import check_precision


def from_df(df, hf=None, **kwargs): return HFTextDataLoaders.from_df(df, hf or make_objects(), **({'valid_col': 'is_valid'} | kwargs))


def test_an_unknown_checkpoint():
    with pytest.raises(OSError, match="checkpoint='no/such-model' gives no config.json: it is neither a local folder nor a model"):
        get_hf_objects('no/such-model')


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(OSError, match='the folder has no readable config.json'): get_hf_objects(tmp_path)


def test_a_folder_without_weights(tmp_path, hf):
    hf.config.save_pretrained(tmp_path); hf.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(OSError, match='gives no AutoModelForSequenceClassification weights'): get_hf_objects(tmp_path)


def test_a_configuration_that_does_not_fit_the_weights(tmp_path, hf):
    hf.model.save_pretrained(tmp_path); hf.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match='only a head may change its size'): get_hf_objects(tmp_path, config_kwargs={'hidden_size': 64})


def test_an_empty_dataframe(df):
    with pytest.raises(ValueError, match='df is empty'): from_df(df[:0])


@pytest.mark.parametrize('arg', ['text_col', 'label_col', 'valid_col'])
def test_a_missing_column(df, arg):
    with pytest.raises(ValueError, match=f"{arg}='nope' is not a column: there are 'text', 'label', 'is_valid'"): from_df(df, **{arg: 'nope'})


def test_columns_of_another_task(df, hf):
    with pytest.raises(ValueError, match=r"text_col=None: there is no column 'text' but 'review', 'label', 'is_valid': say which holds the texts, or what all are for, as in task="):
        from_df(df.rename(columns={'text': 'review'}))


@pytest.mark.parametrize(('value', 'shown'), [(None, 'nan|None'), (float('nan'), 'nan'), (3, '3'), (['a'], r"\['a'\]")])
def test_texts_that_are_not_strings(df, value, shown):
    texts = df.text.astype(object).copy()
    for i in (7, 9): texts.at[i] = value
    with pytest.raises(ValueError, match=f'2 of 80 training rows cannot be used; the first is row 7: the text is ({shown}), not a string'):
        from_df(df.assign(text=texts))


def test_a_wrong_text_in_the_validation_rows(df):
    with pytest.raises(ValueError, match='1 of 40 validation rows cannot be used; the first is row 100'):
        from_df(df.assign(text=df.text.astype(object).where(df.index!=100, 5)))


def test_missing_labels(df):
    with pytest.raises(ValueError, match="label_col='label': 2 of 120 rows have no label, the first is row 3"):
        from_df(df.assign(label=df.label.where(~df.index.isin([3, 90]))))


def test_a_label_that_training_never_saw(df):
    with pytest.raises(ValueError, match="1 of 40 validation rows cannot be used; the first is row 119: Label 'mixed' was not included in the training dataset, which has 'bad', 'good'"):
        from_df(df.assign(label=[*df.label[:-1], 'mixed']))


@pytest.mark.parametrize('value', [True, False])
def test_a_split_with_one_side(df, value):
    with pytest.raises(ValueError, match=f"valid_col='is_valid' is {value} for all 120 rows"): from_df(df.assign(is_valid=value))


@pytest.mark.parametrize(('bs', 'why'), [(0, 'bs=0: a batch needs at least 1 row'), (-1, 'bs=-1: a batch needs at least 1 row'),
                                         (2.5, 'bs=2.5 is not a number of rows'), ('8', "bs='8' is not a number of rows"), (None, 'bs=None is not a number of rows')])
def test_an_impossible_batch_size(dls, df, bs, why):
    with pytest.raises(ValueError, match=why): dls.train.new(bs=bs)
    if bs is not None: # which stands for 16 there
        with pytest.raises(ValueError, match=why): from_df(df, bs=bs)


def test_wrong_rows_are_met_in_a_datablock_too(df, hf):
    dblock = DataBlock(blocks=(HFTextBlock(*hf), CategoryBlock), get_x=ColReader('text'), get_y=ColReader('label'), splitter=ColSplitter())
    with pytest.raises(ValueError, match='the first is row 11'): dblock.dataloaders(df.assign(text=df.text.astype(object).where(df.index!=11, 5)))


@pytest.mark.parametrize('source', ['model', 'config'])
def test_a_max_length_beyond_the_model(hf, source):
    objects = hf if source=='model' else hf[:3]
    with pytest.raises(ValueError, match='max_length=65 is more than the 64 tokens .* use at most 64'): HFTextBlock(*objects, max_length=65)


@pytest.mark.parametrize('max_length', [0, -3, 2.5, '128'])
def test_a_max_length_that_is_no_length(hf, max_length):
    with pytest.raises(ValueError, match='is not a positive number of tokens'): HFTextBlock(*hf, max_length=max_length)


def test_fixed_padding_without_a_length():
    with pytest.raises(ValueError, match="padding='max_length' has no length to pad to"): HFTextBlock(*make_objects('t5'), padding='max_length')


@pytest.mark.parametrize('option', [{'padding': 'left'}, {'truncation': 'middle'}, {'padding': None}])
def test_an_option_that_does_not_exist(hf, option):
    with pytest.raises(ValueError, match='is not one of True, False'): HFTextBlock(*hf, **option)


@pytest.mark.parametrize('key', ['return_tensors', 'return_overflowing_tokens'])
def test_a_tokenizer_option_that_is_ours(hf, key):
    with pytest.raises(ValueError, match=f"tok_kwargs={{'{key}'"): HFTextBlock(*hf, tok_kwargs={key: True})


def test_texts_of_different_lengths_without_padding(df):
    with pytest.raises(ValueError, match='padding=False leaves the texts of a batch at different lengths'): from_df(df, padding=False).one_batch()


def test_a_model_with_another_number_of_labels(df):
    dls = from_df(df)
    three = make_objects(num_labels=3)
    with pytest.raises(ValueError, match=r"num_labels=3, but the data has 2 labels \('bad', 'good'\)"): hf_learner(dls, three.model)
    with pytest.raises(ValueError, match='num_labels=3, but the data has 2 labels'):
        Learner(dls, three.model, loss_func=CrossEntropyLossFlat(), cbs=[HFCallback])


def test_a_tokenizer_that_knows_more_than_the_model(hf):
    hf.tokenizer.add_tokens(['blurlike'])
    with pytest.raises(ValueError, match='tokenizer knows .* tokens and the model.s embedding has'): HFTextBlock(*hf)


def test_a_task_that_does_not_exist(hf):
    with pytest.raises(ValueError, match="task='parsing' does not exist: choose one of .*sequence-classification"): HFTextBlock(*hf, task='parsing')


def test_an_architecture_that_has_no_such_model():
    with pytest.raises(ValueError, match="'vit' has no SequenceClassification model"): HFTextBlock('vit', AutoConfig.for_model('vit'), make_objects().tokenizer)


def test_a_model_without_a_checkpoint_has_to_be_given(df):
    with pytest.raises(ValueError, match='comes from no checkpoint, so pass a model'): hf_learner(from_df(df))


def test_dataloaders_of_another_kind():
    with pytest.raises(ValueError, match='does not come from an HFTextBlock'): hf_learner(DataLoaders([], []))


def test_a_precision_that_does_not_exist(df):
    with pytest.raises(ValueError, match="precision='half' is not one of 'fp32', 'bf16', 'fp16'"): hf_learner(from_df(df), make_objects().model, precision='half')


def test_a_precision_that_the_device_cannot_do(monkeypatch):
    import torch
    def refuse(*args, **kwargs): raise RuntimeError('no such kernel')
    monkeypatch.setattr(torch, 'autocast', refuse)
    with pytest.raises(ValueError, match=r"precision='bf16' is not possible on cpu \(no such kernel\)"): check_precision('bf16', torch.device('cpu'))


@pytest.mark.parametrize('bad', [None, 3, float('nan'), ['a', 3], [None]])
def test_predicting_what_is_no_text(learn, bad):
    with pytest.raises(ValueError, match='cannot be used'): learn.hf_predict(bad)


def test_a_dataset_of_another_kind(df):
    with pytest.raises(ValueError, match='neither a datasets.Dataset nor a dict of them'): HFTextDataLoaders.from_dataset(df, make_objects())


@pytest.mark.parametrize(('kwargs', 'message'), [
    (dict(train='nope'), "train='nope' is not a split: there are 'train', 'test'"),
    (dict(valid='nope'), "valid='nope' is not a split: there are 'train', 'test'"),
    (dict(text_col='nope'), "text_col='nope' is not a column: there are"),
])
def test_a_dataset_without_that_split_or_column(df, kwargs, message):
    ds = Dataset.from_pandas(df)
    with pytest.raises(ValueError, match=message): HFTextDataLoaders.from_dataset(DatasetDict(train=ds, test=ds), make_objects(), **kwargs)


def test_hidden_labels_of_a_hub_dataset(df):
    ds = Dataset.from_dict({'text': df.text.tolist(), 'label': [-1, *[0, 1]*59, 0]}).cast_column('label', ClassLabel(names=['bad', 'good']))
    with pytest.raises(ValueError, match=r'rows have no label'): HFTextDataLoaders.from_dataset(ds, make_objects())


def test_an_empty_dataset(df):
    with pytest.raises(ValueError, match='dataset is empty'): HFTextDataLoaders.from_dataset(Dataset.from_pandas(df[:0]), make_objects())


def test_a_folder_without_texts(tmp_path):
    with pytest.raises(ValueError, match='holds no .txt files'): HFTextDataLoaders.from_folder(tmp_path, make_objects())


def test_a_csv_whose_texts_are_missing_says_so(tmp_path, df):
    df.assign(text=df.text.where(df.index!=2, '')).to_csv(tmp_path/'a.csv', index=False)
    with pytest.raises(ValueError, match='the first is row 2: the text is nan'): HFTextDataLoaders.from_csv(tmp_path/'a.csv', make_objects(), valid_col='is_valid')
    HFTextDataLoaders.from_csv(tmp_path/'a.csv', make_objects(), valid_col='is_valid', csv_kwargs={'keep_default_na': False})


def test_strange_texts_are_not_wrong(df):
    strange = ['', ' ', '\n\t', '🎬🍿', '\u200b', 'a'*5000, '\x00', '[CLS] [PAD]', '東京', '<b>']
    texts = [strange[i%len(strange)] for i in range(len(df))]
    dls = from_df(df.assign(text=texts), bs=8)
    learn = hf_learner(dls, make_objects().model)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert len(learn.hf_predict(texts)) == len(texts)
    dls.show_batch()


def test_integer_and_boolean_labels_are_labels(df):
    for labels in (np.arange(120)%3, df.label=='good'):
        dls = from_df(df.assign(label=labels))
        learn = hf_learner(dls, make_objects(num_labels=len(set(labels))).model)
        assert learn.hf_predict('the film')['label'] in {str(o) for o in labels}


def test_one_line_says_that_a_head_is_fresh(capsys):
    get_hf_objects(minilm_checkpoint(), config_kwargs={'num_labels': 30})
    out = capsys.readouterr().out.strip().splitlines()
    assert out == ['BertForSequenceClassification: newly initialized and to be trained: classifier']


def test_a_tokenizer_with_nothing_to_pad_with():
    from tokenizers import Tokenizer, models
    from transformers import GPT2Config, PreTrainedTokenizerFast
    with pytest.raises(ValueError, match='has neither a padding token nor another special token'):
        set_pad_token(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({'a': 0}))), GPT2Config())


def test_another_auto_class_gives_its_model():
    hf = get_hf_objects(minilm_checkpoint(), AutoModelForMaskedLM)
    assert type(hf.model).__name__ == 'BertForMaskedLM'
    assert AutoModelForSequenceClassification._model_mapping[type(hf.config)] is not type(hf.model)


def test_a_pandas_categorical_keeps_its_order(df):
    labels = pd.Categorical(df.label, categories=['good', 'bad'])
    assert from_df(df.assign(label=labels)).vocab == ['good', 'bad']


def test_a_single_label(df, hf):
    dls = HFTextDataLoaders.from_df(df.assign(label='good'), hf, valid_col='is_valid')
    with pytest.raises(ValueError, match='The data has only one label .*nothing to choose between'): hf_learner(dls, hf.model)


def test_rows_that_are_in_no_split(df):
    with pytest.raises(ValueError, match="valid_col='is_valid': 1 of 120 rows are neither True nor False"):
        from_df(df.assign(is_valid=df.is_valid.astype(object).where(df.index!=4)))


def test_predicting_and_saving_without_a_block(hf, tmp_path):
    learn = Learner(DataLoaders([], []), hf.model, loss_func=CrossEntropyLossFlat(), cbs=[HFCallback])
    with pytest.raises(ValueError, match='does not come from an HFTextBlock'): learn.hf_predict('the film')
    with pytest.raises(ValueError, match='does not come from an HFTextBlock'): learn.save_pretrained(tmp_path/'model')


@pytest.mark.parametrize(('option', 'meant'), [('maxlength', 'max_length'), ('paddign', 'padding'), ('num_worker', 'num_workers')])
def test_a_misspelt_option(df, option, meant):
    with pytest.raises(TypeError, match=f"'{option}' is no option here: did you mean '{meant}'"): from_df(df, **{option: 4})


def test_a_misspelt_option_of_a_datablock(df, hf):
    dblock = DataBlock(blocks=(HFTextBlock(*hf), CategoryBlock), get_x=ColReader('text'), get_y=ColReader('label'), splitter=ColSplitter())
    with pytest.raises(TypeError, match="'shufle' is no option here: did you mean 'shuffle'"): dblock.dataloaders(df, shufle=False)


def test_an_option_of_a_task_that_was_not_named(hf):
    with pytest.raises(TypeError, match="'threshold' is an option of multi-label-classification: say task= too"): HFTextBlock(*hf, threshold=0.3)


def test_an_option_that_nothing_is_like_lists_what_a_user_may_say(df, tmp_path):
    with pytest.raises(TypeError, match="'text_column' is no option here: did you mean 'text_col'"): from_df(df, text_column='text')
    with pytest.raises(TypeError, match="'zzz' is no option here; there are .*label_col, .*max_length, .*task, ") as e: from_df(df, zzz=1)
    assert 'create_batches' not in str(e.value)
    (tmp_path/'good').mkdir()
    (tmp_path/'good'/'1.txt').write_text('the film warm')
    (tmp_path/'good'/'2.txt').write_text('the plot lovely')
    with pytest.raises(TypeError, match="'text_col' is no option here; there are .*max_length, .*valid_pct") as e: HFTextDataLoaders.from_folder(tmp_path, make_objects(), text_col='text')
    assert str(e.value).count('text_col')==1


@pytest.mark.parametrize(('name', 'meant'), [('text-classification', 'sequence-classification'), ('ner', 'token-classification'), ('fill-mask', 'masked-lm'),
                                             ('text-generation', 'causal-lm'), ('question_answerin', 'question-answering')])
def test_a_task_by_another_name(df, name, meant):
    with pytest.raises(ValueError, match=f"task='{name}' does not exist: .*; did you mean '{meant}'"): from_df(df, task=name)


def test_a_misspelt_option_of_a_learner(dls, hf):
    with pytest.raises(TypeError, match="'precison' is no option here: did you mean 'precision'"): hf_learner(dls, hf.model, precison='bf16')
    assert hf_learner(dls, hf.model, moms=(0.9, 0.8, 0.9)).moms == (0.9, 0.8, 0.9)


def test_a_length_without_room_for_a_text(df):
    for wrong in (1, 2):
        with pytest.raises(ValueError, match=f'max_length={wrong} leaves no room for a text: .* adds 2 tokens of its own, so use at least 3'): from_df(df, max_length=wrong)
    assert from_df(df, max_length=3).one_batch()[0]['input_ids'].shape[1] == 3


@pytest.mark.parametrize('size', ['bs', 'val_bs'])
def test_rows_and_tokens_do_not_both_size_a_batch(df, size):
    with pytest.raises(ValueError, match=f'{size}=4 and batch_tokens=200: a batch has so many rows or so many tokens'): from_df(df, batch_tokens=200, **{size: 4})
    dl = from_df(df, batch_tokens=200).train
    with pytest.raises(ValueError, match='bs=4: the batches of this loader are measured in tokens'): dl.new(bs=4)
    assert dl.new(bs=4, batch_tokens=None).one_batch()[0].size == 4
    assert dl.new(batch_tokens=100).batch_tokens == 100


def test_new_rows_that_cannot_be_read(dls, df):
    rows = df.to_dict('records')
    for nothing in (df[:0], [], Dataset.from_pandas(df[:0])):
        with pytest.raises(ValueError, match='test_items is empty'): dls.test_dl(nothing)
    for make in (pd.DataFrame, list, lambda o: Dataset.from_list(list(o))):
        without = make([{'text': o['text']} for o in rows])
        assert dls.test_dl(without).n == len(df)
        with pytest.raises(ValueError, match="label_col='label' is not a column: there are 'text'"): dls.test_dl(without, with_labels=True)
        with pytest.raises(ValueError, match="text_col='text' is not a column: there are 'review'"): dls.test_dl(make([{'review': o['text']} for o in rows]))


def test_two_texts_as_two_arguments(learn):
    with pytest.raises(ValueError, match=r"batch_tokens='the plot' is not a number of tokens; two texts that belong together are one tuple"): learn.hf_predict('the film', 'the plot')


@pytest.mark.parametrize(('change', 'message'), [
    (dict(checkpoint=None), 'checkpoint=None is neither a name on the Hub'),
    (dict(df='my.csv'), "df='my.csv' is not a DataFrame"),
    (dict(text_col=['text', 'label', 'is_valid']), 'takes one column of texts, or two for pairs'),
    (dict(text_col=['text', 'title']), "'title' is not a column"),
    (dict(task='dancing'), r"task='dancing' does not exist: choose one of [a-z0-9, -]+\.$"),
    (dict(task='Token_Classification'), "choose one of .*; did you mean 'token-classification'"),
    (dict(valid_pct=20), 'valid_pct=20 is not a share between 0 and 1'),
    (dict(valid_pct=0), 'valid_pct=0 is not a share between 0 and 1'),
    (dict(tokenizer_kwargs={'a': 1}), 'are for loading a checkpoint'),
])
def test_slips(df, hf, change, message):
    with pytest.raises(ValueError, match=message): HFTextDataLoaders.from_df(**(dict(df=df, checkpoint=hf) | change))


def test_a_valid_col_of_strings(df):
    with pytest.raises(ValueError, match="valid_col='is_valid' holds strings such as 'train'"):
        from_df(df.assign(is_valid=['train' if i<80 else 'valid' for i in range(120)]))


def test_a_checkpoint_in_place_of_a_model(df, hf):
    with pytest.raises(ValueError, match="model='bert-base' is not a model"): hf_learner(from_df(df, hf), 'bert-base')
    with pytest.raises(ValueError, match='are for building a model, and one was passed'): hf_learner(from_df(df, hf), hf.model, config_kwargs={'a': 1})


@pytest.mark.parametrize('block', [MultiCategoryBlock, RegressionBlock])
def test_targets_that_are_no_single_class(df, hf, block):
    y = (lambda r: [r['label']]) if block is MultiCategoryBlock else (lambda r: float(len(r['text'])))
    dblock = DataBlock(blocks=(HFTextBlock(*hf, task='sequence-classification'), block), get_x=ColReader('text'), get_y=y, splitter=ColSplitter())
    with pytest.raises(ValueError, match='needs one class a text: use a CategoryBlock'): hf_learner(dblock.dataloaders(df), hf.model)


def test_a_table_in_place_of_texts(learn, df, hf):
    with pytest.raises(ValueError, match='texts is a DataFrame: pass its column'): learn.hf_predict(df)
    with pytest.raises(ValueError, match='texts is a Dataset: pass its column'): learn.hf_predict(Dataset.from_pandas(df))
    with pytest.raises(ValueError, match='texts is a DataFrame: pass its column'): token_lengths(df, hf.tokenizer)
    with pytest.raises(ValueError, match='tokenizer=None: texts need the tokenizer'): plot_token_lengths(df.text)


def test_a_length_from_numpy_is_a_length(hf, df):
    lengths = token_lengths(df.text, hf.tokenizer)
    assert HFTextBlock(*hf, max_length=lengths.max()).max_length == lengths.max()


def test_a_tokenizer_that_cannot_pad_learns_it(df):
    from conftest import gpt_like
    hf = make_objects('gpt2')
    hf.config.pad_token_id = hf.model.config.pad_token_id = None
    dls = from_df(df, hf._replace(tokenizer=gpt_like()), bs=8)
    learn = hf_learner(dls, hf.model)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert hf.model.config.pad_token_id == dls.hf_block.hf_tokenizer.pad_token_id == 0


def test_options_of_hf_predict_are_suggested(learn):
    with pytest.raises(TypeError, match="'precison' is no option here: did you mean 'precision'?"): learn.hf_predict('the film', precison='bf16')
    with pytest.raises(TypeError, match="'bs' is no option here; there are batch_tokens, precision"): learn.hf_predict('the film', bs=4)
    for f in (learn.hf_predict, learn.hf_generate):
        with pytest.raises(ValueError, match='batch_tokens=0: a batch needs at least 1 token'): f('the film', batch_tokens=0)
    with pytest.raises(ValueError, match="batch_tokens='512' is not a number of tokens"): learn.dls.train.new(batch_tokens='512')
