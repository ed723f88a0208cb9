"A wrong argument raises an error at the public call, with its name, its value and the valid values."

import numpy as np
import pandas as pd
import pytest
from conftest import make_config, make_objects, mentions
from datasets import ClassLabel, Dataset, DatasetDict
from fastai.data.all import CategoryBlock, ColReader, ColSplitter, DataBlock, MultiCategoryBlock, RegressionBlock
from fastai.text.all import ClassificationInterpretation, CrossEntropyLossFlat, DataLoaders, Learner
from tokenizers import Tokenizer, models
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedTokenizerFast,
)

from blurlike.all import (
    HFCallback,
    HFTextBlock,
    HFTextDataLoaders,
    get_hf_objects,
    hf_learner,
    load_hf_learner,
    minilm_checkpoint,
    plot_token_lengths,
    set_pad_token,
    token_lengths,
)
from blurlike.core.precision import check_precision


def from_df(df, hf=None, **kwargs):
    return HFTextDataLoaders.from_df(df, hf or make_objects(), **({'valid_col': 'is_valid'} | kwargs))


def test_an_unknown_checkpoint():
    with pytest.raises(OSError, match="checkpoint='no/such-model'"): get_hf_objects('no/such-model')


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(OSError, match=mentions('checkpoint=', tmp_path, 'config.json')): get_hf_objects(tmp_path)


def test_a_folder_without_weights(tmp_path, hf):
    hf.config.save_pretrained(tmp_path); hf.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(OSError, match=mentions('checkpoint=', tmp_path, 'AutoModelForSequenceClassification')):
        get_hf_objects(tmp_path)


def test_a_configuration_that_does_not_fit_the_weights(tmp_path, hf):
    hf.model.save_pretrained(tmp_path); hf.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=mentions('(32,)', '(64,)')):
        get_hf_objects(tmp_path, config_kwargs={'hidden_size': 64})


def test_an_empty_dataframe(df):
    with pytest.raises(ValueError, match=mentions('df')): from_df(df[:0])


@pytest.mark.parametrize('values', [range(5), [0., 1., 2.], ['0', '1'], ['train', 'valid'], [0, 0.5]])
def test_a_valid_col_with_other_values_than_true_and_false(df, values):
    rows = df.assign(fold=[values[i % len(values)] for i in range(len(df))])
    with pytest.raises(ValueError, match=mentions("valid_col='fold'", repr([*values][-1]))):
        from_df(rows, valid_col='fold')
    with pytest.raises(ValueError, match=mentions("valid_col='fold'")):
        HFTextDataLoaders.from_dataset(Dataset.from_pandas(rows), make_objects(), valid_col='fold')


@pytest.mark.parametrize('values', [(True, False), (1, 0), (1., 0.)])
def test_a_valid_col_of_true_and_false_in_any_type(df, values):
    dls = from_df(df.assign(fold=[values[i % 4 > 0] for i in range(len(df))]), valid_col='fold')
    assert dls.valid_ds.items.index.tolist() == list(range(0, len(df), 4))


def test_a_csv_file_with_more_cells_than_the_header_has(tmp_path):
    "pandas takes the first cells for the index"
    (tmp_path/'rows.csv').write_text('text,label\n' + 'dull, so bad,no\nwarm, so good,yes\n'*8)
    with pytest.raises(ValueError, match=mentions(f"csv='{tmp_path/'rows.csv'}'", "'dull'")):
        HFTextDataLoaders.from_csv(tmp_path/'rows.csv', make_objects())


def test_one_text_is_not_many(learn):
    with pytest.raises(ValueError, match=mentions("texts='the film'", 'many=True')):
        learn.hf_predict('the film', many=True)


def test_new_rows_of_a_loaded_learner_need_its_columns(df, learn, tmp_path):
    for o in (learn, load_hf_learner(learn.save_pretrained(tmp_path/'model'))):
        with pytest.raises(ValueError, match=mentions("text_col='text'", "'review'")):
            o.dls.test_dl(df.rename(columns={'text': 'review'}))


def test_data_without_one_of_the_models_classes_names_the_remedy(df, tmp_path):
    hf = make_objects(num_labels=3)
    learn = hf_learner(from_df(df, hf, task='sequence-classification', vocab=['bad', 'good', 'so-so']), hf.model)
    folder = learn.save_pretrained(tmp_path/'model')
    with pytest.raises(ValueError, match=mentions("'so-so'", "vocab=['bad', 'good', 'so-so']")):
        load_hf_learner(folder, dls=from_df(df, folder))
    load_hf_learner(folder, dls=from_df(df, folder, vocab=['bad', 'good', 'so-so'], task='sequence-classification'))


def test_columns_named_by_two_spellings_of_a_number(df):
    rows = df.assign(**{'1': 0}).rename(columns={'text': 1})
    with pytest.raises(ValueError, match=mentions('1', "'1'")): from_df(rows)


@pytest.mark.parametrize('arg', ['text_col', 'label_col', 'valid_col'])
def test_a_missing_column(df, arg):
    with pytest.raises(ValueError, match=mentions(f"{arg}='nope'", "'text'", "'label'", "'is_valid'")):
        from_df(df, **{arg: 'nope'})


def test_columns_of_another_task(df, hf):
    with pytest.raises(ValueError, match=mentions('text_col=None', "'review'", "'label'", "'is_valid'", 'task=')):
        from_df(df.rename(columns={'text': 'review'}))


@pytest.mark.parametrize('value', [None, float('nan'), 3, ['a']])
def test_texts_that_are_not_strings(df, value):
    texts = df.text.astype(object).copy()
    for i in (7, 9): texts.at[i] = value
    with pytest.raises(ValueError, match=mentions('2 of 80', 'training', 'row 7', value)):
        from_df(df.assign(text=texts))


def test_a_wrong_text_in_the_validation_rows(df):
    with pytest.raises(ValueError, match=mentions('1 of 40', 'validation', 'row 100', 5)):
        from_df(df.assign(text=df.text.astype(object).where(df.index!=100, 5)))


def test_missing_labels(df):
    with pytest.raises(ValueError, match=mentions("label_col='label'", '2 of 120', 'row 3')):
        from_df(df.assign(label=df.label.where(~df.index.isin([3, 90]))))


def test_a_label_that_training_never_saw(df):
    with pytest.raises(ValueError, match=mentions('1 of 40', 'validation', 'row 119', "'mixed'", "'bad'", "'good'")):
        from_df(df.assign(label=[*df.label[:-1], 'mixed']))


@pytest.mark.parametrize('value', [True, False])
def test_a_split_with_one_side(df, value):
    with pytest.raises(ValueError, match=mentions("valid_col='is_valid'", value, 120)):
        from_df(df.assign(is_valid=value))


@pytest.mark.parametrize('bs', [0, -1, 2.5, '8', None])
def test_an_impossible_batch_size(dls, df, bs):
    with pytest.raises(ValueError, match=mentions(f'bs={bs!r}')): dls.train.new(bs=bs)
    if bs is not None: # the default of from_df
        with pytest.raises(ValueError, match=mentions(f'bs={bs!r}')): from_df(df, bs=bs)


def test_wrong_rows_in_a_datablock(df, hf):
    dblock = DataBlock(blocks=(HFTextBlock(*hf), CategoryBlock), get_x=ColReader('text'), get_y=ColReader('label'),
                       splitter=ColSplitter())
    with pytest.raises(ValueError, match=mentions('row 11', 5)):
        dblock.dataloaders(df.assign(text=df.text.astype(object).where(df.index!=11, 5)))


@pytest.mark.parametrize('source', ['model', 'config'])
def test_a_max_length_beyond_the_model(hf, source):
    objects = hf if source=='model' else hf[:3]
    with pytest.raises(ValueError, match=mentions('max_length=65', 64)): HFTextBlock(*objects, max_length=65)


@pytest.mark.parametrize('max_length', [0, -3, 2.5, '128'])
def test_an_invalid_max_length(hf, max_length):
    with pytest.raises(ValueError, match=mentions(f'max_length={max_length!r}')):
        HFTextBlock(*hf, max_length=max_length)


def test_fixed_padding_without_a_length():
    with pytest.raises(ValueError, match="padding='max_length'"): HFTextBlock(*make_objects('t5'), padding='max_length')


@pytest.mark.parametrize(('name', 'value'), [('padding', 'left'), ('truncation', 'middle'), ('padding', None)])
def test_an_unknown_value_of_an_option(hf, name, value):
    with pytest.raises(ValueError, match=mentions(f'{name}={value!r}', True, False)): HFTextBlock(*hf, **{name: value})


@pytest.mark.parametrize('key', ['return_tensors', 'return_overflowing_tokens'])
def test_a_tokenizer_option_that_the_block_sets(hf, key):
    with pytest.raises(ValueError, match=mentions('tok_kwargs', f"'{key}'")): HFTextBlock(*hf, tok_kwargs={key: True})


def test_texts_of_different_lengths_without_padding(df):
    with pytest.raises(ValueError, match='padding=False'): from_df(df, padding=False).one_batch()


def test_a_model_with_another_number_of_labels(df):
    dls = from_df(df)
    three = make_objects(num_labels=3)
    with pytest.raises(ValueError, match=mentions('num_labels=3', 2, "'bad'", "'good'")): hf_learner(dls, three.model)
    with pytest.raises(ValueError, match=mentions('num_labels=3', 2)):
        Learner(dls, three.model, loss_func=CrossEntropyLossFlat(), cbs=[HFCallback])


def test_a_tokenizer_with_more_tokens_than_the_model(hf):
    hf.tokenizer.add_tokens(['blurlike'])
    with pytest.raises(ValueError, match=mentions(len(hf.tokenizer), hf.model.get_input_embeddings().num_embeddings)):
        HFTextBlock(*hf)


def other_model(**kwargs): return AutoModelForSequenceClassification.from_config(make_config(**kwargs)[0])


def test_a_model_with_another_vocabulary(df):
    dls = from_df(df)
    n = len(dls.hf_block.hf_tokenizer)
    for rows in (20, n+300):
        for make in (hf_learner, lambda *args: Learner(*args, loss_func=CrossEntropyLossFlat(), cbs=[HFCallback])):
            with pytest.raises(ValueError, match=mentions(rows, n)): make(dls, other_model(vocab_size=rows))
    hf_learner(dls, other_model(vocab_size=n+3)) # padded to a multiple


def test_a_model_with_fewer_positions_than_max_length(df):
    with pytest.raises(ValueError, match=mentions('max_length=64', 32, 'BertForSequenceClassification')):
        hf_learner(from_df(df), other_model(max_position_embeddings=32))
    hf_learner(from_df(df, max_length=32), other_model(max_position_embeddings=32))


def test_tokens_that_are_added_later(df, hf):
    before = HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', bs=8, device='cpu')
    learn,n = hf_learner(before, hf.model),len(hf.tokenizer)
    hf.tokenizer.add_tokens(['blurlike'])
    for use in (lambda: hf_learner(before, hf.model), lambda: learn.fit(1), lambda: learn.hf_predict('blurlike'),
                lambda: HFTextDataLoaders.from_df(df, hf._replace(model=None), valid_col='is_valid')):
        with pytest.raises(ValueError, match=mentions(n+1, n, 'resize_token_embeddings', 'hf_model')): use()
    hf.model.resize_token_embeddings(len(hf.tokenizer))
    assert learn.hf_predict('blurlike')
    with learn.no_bar(), learn.no_logging(): learn.fit(1)


@pytest.mark.parametrize('share', [
    lambda layers: setattr(layers[0].attention.self.query, 'weight', layers[1].attention.self.query.weight),
    lambda layers: layers.__setitem__(1, layers[0])])
def test_shared_weights_that_cannot_be_saved(share, df, hf, tmp_path):
    share(hf.model.bert.encoder.layer)
    dls = HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', bs=8, device='cpu')
    with pytest.raises(ValueError, match=mentions('bert.encoder.layer.0.attention.self.query.weight',
                                                  'BertForSequenceClassification')):
        hf_learner(dls, hf.model)


def test_declared_shared_weights_are_valid(df):
    hf = make_objects(auto_model=AutoModelForMaskedLM)
    hf_learner(HFTextDataLoaders.from_df(df, hf, task='masked-lm', valid_col='is_valid', bs=8, device='cpu'), hf.model)


def test_a_padding_token_outside_of_the_embedding(hf):
    tok = Tokenizer(models.WordLevel({'[UNK]': 0, 'the': 1, 'film': 2, '[PAD]': 5000}, unk_token='[UNK]'))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tok, pad_token='[PAD]', unk_token='[UNK]')
    with pytest.raises(ValueError, match=mentions('pad_token', "'[PAD]'", 5000, hf.config.vocab_size)):
        HFTextBlock(hf.arch, hf.config, tokenizer, hf.model)


def test_a_padding_token_outside_of_the_vocabulary(hf):
    hf.tokenizer.pad_token = '<nothing>'
    with pytest.raises(ValueError, match=mentions('pad_token', "'<nothing>'")): HFTextBlock(*hf)


def test_an_unknown_task(hf):
    with pytest.raises(ValueError, match=mentions("task='parsing'", 'sequence-classification')):
        HFTextBlock(*hf, task='parsing')


def test_an_architecture_without_a_model_for_the_task():
    with pytest.raises(ValueError, match="'vit'"):
        HFTextBlock('vit', AutoConfig.for_model('vit'), make_objects().tokenizer)


def test_a_model_without_a_checkpoint_is_required(df):
    with pytest.raises(ValueError, match='model=None'): hf_learner(from_df(df))


def test_dataloaders_of_another_kind():
    with pytest.raises(ValueError, match=mentions('dls=', 'HFTextBlock')): hf_learner(DataLoaders([], []))


def test_an_unknown_precision(df):
    with pytest.raises(ValueError, match=mentions("precision='half'", "'fp32'", "'bf16'", "'fp16'")):
        hf_learner(from_df(df), make_objects().model, precision='half')


def test_a_precision_that_the_device_does_not_support(monkeypatch):
    import torch
    def refuse(*args, **kwargs): raise RuntimeError('no such kernel')
    monkeypatch.setattr(torch, 'autocast', refuse)
    with pytest.raises(ValueError, match=mentions("precision='bf16'", 'cpu', 'no such kernel')):
        check_precision('bf16', torch.device('cpu'))


@pytest.mark.parametrize(('texts', 'wrong'),
                         [(None, None), (3, 3), (float('nan'), 'nan'), (['a', 3], 3), ([None], None)])
def test_predicting_something_other_than_text(learn, texts, wrong):
    with pytest.raises(ValueError, match=mentions(wrong)): learn.hf_predict(texts)


def test_a_dataset_of_another_kind(df):
    with pytest.raises(ValueError, match=mentions('dataset', 'DataFrame', 'from_df')):
        HFTextDataLoaders.from_dataset(df, make_objects())


@pytest.mark.parametrize(('name', 'valid'), [('train', ("'train'", "'test'")), ('valid', ("'train'", "'test'")),
                                             ('text_col', ("'text'", "'label'"))])
def test_a_dataset_without_that_split_or_column(df, name, valid):
    ds = Dataset.from_pandas(df)
    with pytest.raises(ValueError, match=mentions(f"{name}='nope'", *valid)):
        HFTextDataLoaders.from_dataset(DatasetDict(train=ds, test=ds), make_objects(), **{name: 'nope'})


def test_hidden_labels_of_a_hub_dataset(df):
    ds = Dataset.from_dict({'text': df.text.tolist(), 'label': [-1, *[0, 1]*59, 0]})
    ds = ds.cast_column('label', ClassLabel(names=['bad', 'good']))
    with pytest.raises(ValueError, match=mentions("label_col='label'", '1 of 120', 'row 0')):
        HFTextDataLoaders.from_dataset(ds, make_objects())


def test_an_empty_dataset(df):
    with pytest.raises(ValueError, match=mentions('dataset')):
        HFTextDataLoaders.from_dataset(Dataset.from_pandas(df[:0]), make_objects())


def test_a_folder_without_texts(tmp_path):
    with pytest.raises(ValueError, match=mentions('path=', tmp_path, '.txt')):
        HFTextDataLoaders.from_folder(tmp_path, make_objects())


def test_a_csv_file_with_missing_texts(tmp_path, df):
    df.assign(text=df.text.where(df.index!=2, '')).to_csv(tmp_path/'a.csv', index=False)
    with pytest.raises(ValueError, match=mentions('row 2', 'nan')):
        HFTextDataLoaders.from_csv(tmp_path/'a.csv', make_objects(), valid_col='is_valid')
    HFTextDataLoaders.from_csv(tmp_path/'a.csv', make_objects(), valid_col='is_valid',
                               csv_kwargs={'keep_default_na': False})


def test_unusual_texts_are_valid(df):
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
        assert learn.hf_predict('the film')['label'] in list(labels)


def test_a_tokenizer_without_special_tokens():
    from tokenizers import Tokenizer, models
    from transformers import GPT2Config, PreTrainedTokenizerFast
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({'a': 0})))
    with pytest.raises(ValueError, match=mentions(type(tokenizer).__name__, 'pad_token')):
        set_pad_token(tokenizer, GPT2Config())


def test_another_auto_class_gives_its_model():
    hf = get_hf_objects(minilm_checkpoint(), AutoModelForMaskedLM)
    assert type(hf.model).__name__ == 'BertForMaskedLM'
    assert AutoModelForSequenceClassification._model_mapping[type(hf.config)] is not type(hf.model)


def test_a_pandas_categorical_keeps_its_order(df):
    labels = pd.Categorical(df.label, categories=['good', 'bad'])
    assert from_df(df.assign(label=labels)).vocab == ['good', 'bad']


def test_a_single_label(df, hf):
    dls = HFTextDataLoaders.from_df(df.assign(label='good'), hf, valid_col='is_valid')
    with pytest.raises(ValueError, match="'good'"): hf_learner(dls, hf.model)


def test_rows_in_neither_split(df):
    with pytest.raises(ValueError, match=mentions("valid_col='is_valid'", '1 of 120', True, False)):
        from_df(df.assign(is_valid=df.is_valid.astype(object).where(df.index!=4)))


def test_predicting_and_saving_without_a_block(hf, tmp_path):
    learn = Learner(DataLoaders([], []), hf.model, loss_func=CrossEntropyLossFlat(), cbs=[HFCallback])
    with pytest.raises(ValueError, match=mentions('dls=', 'HFTextBlock')): learn.hf_predict('the film')
    with pytest.raises(ValueError, match=mentions('dls=', 'HFTextBlock')): learn.save_pretrained(tmp_path/'model')


@pytest.mark.parametrize(('option', 'meant'),
                         [('maxlength', 'max_length'), ('paddign', 'padding'), ('num_worker', 'num_workers')])
def test_a_misspelled_option(df, option, meant):
    with pytest.raises(TypeError, match=mentions(f"'{option}'", f"'{meant}'")): from_df(df, **{option: 4})


def test_a_misspelled_option_of_a_datablock(df, hf):
    dblock = DataBlock(blocks=(HFTextBlock(*hf), CategoryBlock), get_x=ColReader('text'), get_y=ColReader('label'),
                       splitter=ColSplitter())
    with pytest.raises(TypeError, match=mentions("'shufle'", "'shuffle'")): dblock.dataloaders(df, shufle=False)


def test_an_option_of_another_task(hf):
    with pytest.raises(TypeError, match=mentions("'threshold'", 'multi-label-classification', 'task=')):
        HFTextBlock(*hf, threshold=0.3)


def test_an_unknown_option_lists_the_public_ones(df, tmp_path):
    with pytest.raises(TypeError, match=mentions("'text_column'", "'text_col'")): from_df(df, text_column='text')
    with pytest.raises(TypeError, match=mentions("'zzz'", 'label_col', 'max_length', 'task')) as e: from_df(df, zzz=1)
    assert 'create_batches' not in str(e.value)
    (tmp_path/'good').mkdir()
    (tmp_path/'good'/'1.txt').write_text('the film warm')
    (tmp_path/'good'/'2.txt').write_text('the plot lovely')
    with pytest.raises(TypeError, match=mentions("'text_col'", 'max_length', 'valid_pct')) as e:
        HFTextDataLoaders.from_folder(tmp_path, make_objects(), text_col='text')
    assert str(e.value).count('text_col')==1


@pytest.mark.parametrize(('name', 'meant'), [('text-classification', 'sequence-classification'),
                                             ('ner', 'token-classification'), ('fill-mask', 'masked-lm'),
                                             ('text-generation', 'causal-lm'),
                                             ('question_answerin', 'question-answering')])
def test_a_task_by_another_name(df, name, meant):
    with pytest.raises(ValueError, match=rf"task='{name}'.*'{meant}'\W*$"): from_df(df, task=name)


def test_a_misspelled_option_of_a_learner(dls, hf):
    with pytest.raises(TypeError, match=mentions("'precison'", "'precision'")):
        hf_learner(dls, hf.model, precison='bf16')
    assert hf_learner(dls, hf.model, moms=(0.9, 0.8, 0.9)).moms == (0.9, 0.8, 0.9)


def test_a_length_without_room_for_a_text(df):
    for wrong in (1, 2):
        with pytest.raises(ValueError, match=mentions(f'max_length={wrong}', 3)): from_df(df, max_length=wrong)
    assert from_df(df, max_length=3).one_batch()[0]['input_ids'].shape[1] == 3


@pytest.mark.parametrize('size', ['bs', 'val_bs'])
def test_bs_and_batch_tokens_exclude_each_other(df, size):
    with pytest.raises(ValueError, match=mentions(f'{size}=4', 'batch_tokens=200')):
        from_df(df, batch_tokens=200, **{size: 4})
    dl = from_df(df, batch_tokens=200).train
    with pytest.raises(ValueError, match=mentions('bs=4', 'batch_tokens')): dl.new(bs=4)
    assert dl.new(bs=4, batch_tokens=None).one_batch()[0].size == 4
    assert dl.new(batch_tokens=100).batch_tokens == 100


def test_new_rows_that_cannot_be_read(dls, df):
    rows = df.to_dict('records')
    for nothing in (df[:0], [], Dataset.from_pandas(df[:0])):
        with pytest.raises(ValueError, match=mentions('test_items')): dls.test_dl(nothing)
    for make in (pd.DataFrame, list, lambda o: Dataset.from_list(list(o))):
        without = make([{'text': o['text']} for o in rows])
        assert dls.test_dl(without).n == len(df)
        with pytest.raises(ValueError, match=mentions("label_col='label'", "'text'")):
            dls.test_dl(without, with_labels=True)
        with pytest.raises(ValueError, match=mentions("text_col='text'", "'review'")):
            dls.test_dl(make([{'review': o['text']} for o in rows]))


def test_two_texts_as_two_arguments(learn):
    with pytest.raises(TypeError, match='positional'): learn.hf_predict('the film', 'the plot')


@pytest.mark.parametrize(('change', 'pattern'), [
    (dict(checkpoint=None), mentions('checkpoint=None')),
    (dict(df='my.csv'), mentions("df='my.csv'")),
    (dict(text_col=['text', 'label', 'is_valid']), mentions("text_col=['text', 'label', 'is_valid']")),
    (dict(text_col=['text', 'title']), mentions("text_col=['text', 'title']: 'title'", "'label'", "'is_valid'")),
    (dict(task='dancing'), r"task='dancing'.*translation'?\W*$"), # the list of tasks, and no suggestion after it
    (dict(task='Token_Classification'), r"task='Token_Classification'.*'token-classification'\W*$"),
    (dict(valid_pct=20), mentions('valid_pct=20')),
    (dict(valid_pct=1), mentions('valid_pct=1')), (dict(valid_pct=-1), mentions('valid_pct=-1')),
    (dict(tokenizer_kwargs={'a': 1}), mentions('tokenizer_kwargs')),
])
def test_wrong_arguments_of_from_df(df, hf, change, pattern):
    with pytest.raises(ValueError, match=pattern): HFTextDataLoaders.from_df(**(dict(df=df, checkpoint=hf) | change))


def test_a_valid_col_of_strings(df):
    with pytest.raises(ValueError, match=mentions("valid_col='is_valid'", "'train'")):
        from_df(df.assign(is_valid=['train' if i<80 else 'valid' for i in range(120)]))


def test_a_checkpoint_in_place_of_a_model(df, hf):
    with pytest.raises(ValueError, match="model='bert-base'"): hf_learner(from_df(df, hf), 'bert-base')
    with pytest.raises(ValueError, match=mentions('config_kwargs')):
        hf_learner(from_df(df, hf), hf.model, config_kwargs={'a': 1})


@pytest.mark.parametrize('block', [MultiCategoryBlock, RegressionBlock])
def test_targets_other_than_a_single_class(df, hf, block):
    y = (lambda r: [r['label']]) if block is MultiCategoryBlock else (lambda r: float(len(r['text'])))
    dblock = DataBlock(blocks=(HFTextBlock(*hf, task='sequence-classification'), block), get_x=ColReader('text'),
                       get_y=y, splitter=ColSplitter())
    target = 'TensorMultiCategory' if block is MultiCategoryBlock else 'Tensor'
    with pytest.raises(ValueError, match=mentions(target, 'sequence-classification', 'CategoryBlock')):
        hf_learner(dblock.dataloaders(df), hf.model)


def test_a_table_in_place_of_texts(learn, df, hf):
    with pytest.raises(ValueError, match=mentions('texts', 'DataFrame')): learn.hf_predict(df)
    with pytest.raises(ValueError, match=mentions('texts', 'Dataset')): learn.hf_predict(Dataset.from_pandas(df))
    with pytest.raises(ValueError, match=mentions('texts', 'DataFrame')): token_lengths(df, hf.tokenizer)
    with pytest.raises(ValueError, match='tokenizer=None'): plot_token_lengths(df.text)


def test_a_max_length_from_numpy_is_valid(hf, df):
    lengths = token_lengths(df.text, hf.tokenizer)
    assert HFTextBlock(*hf, max_length=lengths.max()).max_length == lengths.max()


def test_a_tokenizer_without_a_padding_token_gets_one(df):
    from conftest import gpt_like
    hf = make_objects('gpt2')
    hf.config.pad_token_id = hf.model.config.pad_token_id = None
    dls = from_df(df, hf._replace(tokenizer=gpt_like()), bs=8)
    learn = hf_learner(dls, hf.model)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert hf.model.config.pad_token_id == dls.hf_block.hf_tokenizer.pad_token_id == 0


def test_options_of_hf_predict_are_suggested(learn):
    with pytest.raises(TypeError, match=mentions("'precison'", "'precision'")):
        learn.hf_predict('the film', precison='bf16')
    with pytest.raises(TypeError, match=mentions("'bs'", 'batch_tokens', 'precision')):
        learn.hf_predict('the film', bs=4)
    for f in (learn.hf_predict, learn.hf_generate):
        with pytest.raises(ValueError, match=mentions('batch_tokens=0')): f('the film', batch_tokens=0)
    with pytest.raises(ValueError, match="batch_tokens='512'"): learn.dls.train.new(batch_tokens='512')


@pytest.mark.parametrize('precompute_lengths', [True, False])
def test_a_text_with_more_tokens_than_the_model_has_positions(precompute_lengths, df, hf):
    df.loc[7, 'text'] = 'the film '*hf.config.max_position_embeddings
    with pytest.raises(ValueError, match=mentions('row 7', 'truncation=False', hf.config.max_position_embeddings)):
        for _ in from_df(df, hf, truncation=False, precompute_lengths=precompute_lengths).train: pass
    learn = hf_learner(from_df(df.drop(7), hf, truncation=False), hf.model)
    with pytest.raises(ValueError, match=mentions('texts[1]', 'truncation=False')):
        learn.hf_predict(['the film', df.text[7]])


def test_new_rows_of_another_type():
    df = pd.DataFrame(dict(tokens=[['the', 'film']]*8, labels=[['O', 'B-X']]*8))
    hf = make_objects(auto_model=AutoModelForTokenClassification)
    learn = hf_learner(HFTextDataLoaders.from_df(df, hf, task='token-classification', bs=2), hf.model)
    with pytest.raises(ValueError, match=mentions("test_items: 'the film'", 'str', 'list')), learn.no_bar():
        learn.predict('the film')
    with learn.no_bar(): assert len(learn.predict(['the', 'film'])[0]) == 2


def test_a_confusion_matrix_without_classes():
    df = pd.DataFrame(dict(question=['the film']*8, choices=[['warm', 'dull']]*8, label=[0, 1]*4))
    hf = make_objects(auto_model=AutoModelForMultipleChoice)
    learn = hf_learner(HFTextDataLoaders.from_df(df, hf, task='multiple-choice', bs=2), hf.model)
    with pytest.raises(ValueError, match=mentions("task='multiple-choice'", 'Interpretation')), learn.no_bar():
        ClassificationInterpretation.from_learner(learn)


@pytest.mark.parametrize(('key', 'value'), [('truncation', True), ('max_length', 8), ('stride', 2), ('verbose', False),
                                            ('is_split_into_words', True), ('text_pair', 'a')])
def test_options_of_the_block_are_not_options_of_the_tokenizer(key, value, hf):
    with pytest.raises(ValueError, match=mentions('tok_kwargs', key)): HFTextBlock(*hf, tok_kwargs={key: value})


def test_splits_that_are_no_lists(df, hf):
    for splits in (.2, [0, 1, 2]):
        with pytest.raises(ValueError, match=mentions('splits=', splits, 'valid_pct')):
            HFTextDataLoaders.from_df(df, hf, splits=splits)


def test_a_model_of_another_kind_is_not_a_path(hf):
    with pytest.raises(TypeError, match=mentions('path=')): load_hf_learner(hf.model)


def test_default_columns_are_said_to_be_defaults(df, hf):
    for kwargs,facts in ((dict(task='token-classification'), ['tokens']), (dict(task='summarization'), ['summary'])):
        with pytest.raises(ValueError, match=mentions('text_col', *facts, kwargs['task'])):
            HFTextDataLoaders.from_df(df, hf, **kwargs)
    with pytest.raises(ValueError, match=mentions('task=', 'multi-label-classification')):
        HFTextDataLoaders.from_df(df, hf, task='multilabel')


def test_a_misspelt_folder_is_suggested(tmp_path, monkeypatch):
    (tmp_path/'my_model').mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match=mentions("path='my_modle'", "'my_model'")): load_hf_learner('my_modle')


def test_new_rows_in_other_forms(dls, df):
    with pytest.raises(TypeError, match=mentions('test_items', 'DatasetDict')):
        dls.test_dl(DatasetDict(train=Dataset.from_pandas(df)))
    with pytest.raises(TypeError, match=mentions('test_items', 'dict')): dls.test_dl(dict(text=['a']))
    lazy = dls.test_dl(o for o in df.text[:5])
    assert [o[0]['input_ids'].tolist() for o in lazy] == [o[0]['input_ids'].tolist() for o in dls.test_dl(df.text[:5])]
