"The library's three levels, on the real pretrained model."
import datasets
import pytest
from fastai.text.all import (
    CategoryBlock,
    ClassificationInterpretation,
    ColReader,
    ColSplitter,
    CrossEntropyLossFlat,
    DataBlock,
    Learner,
    accuracy,
)

from blurlike.all import *


@pytest.fixture(scope='module')
def df(): return load_movie_reviews(96)


def test_high_level(df, tmp_path):
    dls = HFTextDataLoaders.from_df(df, minilm_checkpoint(), text_col='text', label_col='label', valid_col='is_valid',
                                    bs=16)
    learn = hf_learner(dls, metrics=accuracy)
    learn.fine_tune(2, 5e-5)
    pred = learn.hf_predict('loved it')
    assert set(pred) == {'label', 'index', 'score', 'probs'}
    assert isinstance(learn.hf_predict(['loved it']), list)
    label,idx,probs = learn.predict('loved it')
    assert label == pred['label']
    learn.save_pretrained(tmp_path/'my_model')
    theirs = pipeline('text-classification', model=str(tmp_path/'my_model'))('loved it')[0]
    assert theirs['score'] == pytest.approx(pred['score'], abs=1e-5)


def test_mid_and_low_level(df, tmp_path):
    hf_arch,hf_config,hf_tokenizer,hf_model = get_hf_objects(minilm_checkpoint(),
                                                             model_cls=AutoModelForSequenceClassification,
                                                             config_kwargs={'num_labels': 2})
    block = HFTextBlock(hf_arch, hf_config, hf_tokenizer, hf_model, max_length=128, padding=True, truncation=True)
    dls = DataBlock(blocks=(block, CategoryBlock), get_x=ColReader('text'), get_y=ColReader('label'),
                    splitter=ColSplitter()).dataloaders(df, bs=4)
    dls.show_batch(max_n=2, trunc_at=250)
    xb,yb = dls.one_batch()
    assert xb['input_ids'].shape == xb['attention_mask'].shape == xb['token_type_ids'].shape
    learn = Learner(dls, hf_model, loss_func=CrossEntropyLossFlat(), metrics=accuracy, cbs=[HFCallback],
                    splitter=hf_splitter, path=tmp_path)
    learn.freeze()
    learn.lr_find()
    learn.fit_one_cycle(1, 1e-3)
    learn.unfreeze()
    assert 'Total params: 22,713,986' in learn.summary()
    learn.show_results(max_n=2, trunc_at=250)
    interp = ClassificationInterpretation.from_learner(learn)
    assert interp.confusion_matrix().sum() == len(dls.valid_ds)
    interp.plot_top_losses(3)


@pytest.mark.parametrize('make', [
    lambda df, path: HFTextDataLoaders.from_csv(path/'a.csv', minilm_checkpoint(), valid_col='is_valid', max_length=32),
    lambda df, path: HFTextDataLoaders.from_dataset(datasets.Dataset.from_pandas(df), minilm_checkpoint(),
                                                    valid_col='is_valid', max_length=32),
    lambda df, path: HFTextDataLoaders.from_df(df, minilm_checkpoint(), valid_col='is_valid', max_length=32),
], ids=['csv', 'dataset', 'df'])
def test_every_way_in_gives_the_same_data(make, df, tmp_path):
    df.to_csv(tmp_path/'a.csv', index=False)
    dls = make(df, tmp_path)
    assert [len(o.dataset) for o in dls.loaders] == [87, 9]
    assert dls.vocab == ['negative', 'positive']
    x,y = next(iter(dls.valid.new(sort=False, bs=9)))
    assert dls.hf_block.decode(x, 1) == [dls.hf_block.decode(dls.hf_block.encode([df.text[87]]))[0]]
    assert [dls.vocab[i] for i in y] == df.label[87:].tolist()
