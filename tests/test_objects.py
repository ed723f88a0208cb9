"Loading a checkpoint reports new and unused weights in one line, and tokenizes as its `tokenizer.json` does."
import json
import logging
import re

import pytest
import transformers
from conftest import make_config, make_objects, mentions
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from blurlike.all import (
    HFTextDataLoaders,
    get_hf_objects,
    hf_learner,
    load_hf_config,
    load_hf_learner,
    load_hf_model,
    load_hf_tokenizer,
    minilm_checkpoint,
)


def test_a_setting_that_the_configuration_does_not_have_is_refused(df):
    for load in (lambda o: load_hf_config(minilm_checkpoint(), config_kwargs=o),
                 lambda o: load_hf_config('a', load_hf_config(minilm_checkpoint()), o)):
        with pytest.raises(ValueError, match=mentions('config_kwargs=', "'dropout'", 'BertConfig',
                                                      "'hidden_dropout_prob'")): load(dict(dropout=.3))
        assert load(dict(hidden_dropout_prob=.3, num_labels=3, problem_type='regression')).num_labels == 3


def test_one_line_reports_a_newly_initialized_head(capsys):
    get_hf_objects(minilm_checkpoint(), config_kwargs={'num_labels': 30})
    line, = capsys.readouterr().out.strip().splitlines()
    assert re.search(mentions('BertForSequenceClassification', 'classifier'), line)


def test_the_line_comes_once_for_each_checkpoint(tmp_path, capsys):
    hf = make_objects()
    for name in 'ab':
        hf.model.bert.save_pretrained(tmp_path/name)
        hf.tokenizer.save_pretrained(tmp_path/name)
    for name in 'abab': get_hf_objects(tmp_path/name)
    assert len(capsys.readouterr().out.strip().splitlines()) == 2


@pytest.mark.parametrize(('layers', 'unused'), [(2, 'encoder.layer.2'), (3, None)])
def test_one_line_reports_weights_that_are_not_used(layers, unused, tmp_path, capsys):
    "`num_hidden_layers` may drop a part of the model"
    make_objects().model.bert.save_pretrained(tmp_path)
    load_hf_model(tmp_path, AutoModel, load_hf_config(tmp_path, config_kwargs=dict(num_hidden_layers=layers)))
    printed = capsys.readouterr().out.strip()
    assert re.search(mentions('BertModel', unused), printed) if unused else not printed


def test_a_head_that_is_replaced_is_reported_with_the_new_one(tmp_path, capsys):
    hf = make_objects(auto_model=AutoModelForMaskedLM)
    hf.model.save_pretrained(tmp_path)
    load_hf_model(tmp_path)
    line, = capsys.readouterr().out.strip().splitlines()
    assert re.search(mentions('BertForSequenceClassification', 'classifier', 'cls'), line)


@pytest.mark.parametrize(('level', 'table'), [('error', False), ('info', True)])
def test_the_verbosity_of_transformers_chooses_between_nothing_and_its_table(level, table, tmp_path, capsys, caplog,
                                                                             monkeypatch):
    make_objects().model.bert.save_pretrained(tmp_path)
    logger = logging.getLogger('transformers')
    monkeypatch.setattr(logger, 'propagate', True)
    before = transformers.logging.get_verbosity()
    getattr(transformers.logging, f'set_verbosity_{level}')()
    try: load_hf_model(tmp_path)
    finally: transformers.logging.set_verbosity(before)
    assert not capsys.readouterr().out
    assert ('LOAD REPORT' in caplog.text) == table


TEXTS = ['007 the film', "Dr. Smith's WARM plot", 'zoë slow  3,14']
FILES = { # Parts of a `tokenizer.json` that the class does not have
    'digits': dict(pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits(True)])),
    'quotes': dict(normalizer=normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("'", ' film ')])),
}


def save_with_file(folder, parts, arch='bert'):
    "Save a tokenizer whose `tokenizer.json` is not what its class makes"
    tokenizer = make_config(arch)[1]
    tokenizer.save_pretrained(folder)
    file = Tokenizer.from_file(str(folder/'tokenizer.json'))
    for k,v in parts.items(): setattr(file, k, v)
    file.save(str(folder/'tokenizer.json'))
    return file


@pytest.mark.parametrize('parts', FILES)
@pytest.mark.parametrize(('name', 'arch'), [('Bert', 'bert'), ('GPT2', 'gpt2'), ('T5', 't5'), ('Electra', 'electra')])
def test_a_checkpoint_tokenizes_as_its_file(name, arch, parts, df, tmp_path, capsys):
    hf = make_objects(arch)
    hf.model.save_pretrained(tmp_path/'a')
    file = save_with_file(tmp_path/'a', FILES[parts], arch)
    config = tmp_path/'a'/'tokenizer_config.json'
    config.write_text(json.dumps(json.loads(config.read_text()) | dict(tokenizer_class=f'{name}Tokenizer')))
    rebuilt = AutoTokenizer.from_pretrained(tmp_path/'a')
    assert any(rebuilt(o)['input_ids'] != file.encode(o).ids for o in TEXTS) # otherwise nothing is tested
    capsys.readouterr()
    loaded = get_hf_objects(tmp_path/'a').tokenizer
    assert capsys.readouterr().out.count('tokenizer.json')==1
    for o in TEXTS: assert loaded(o)['input_ids'] == file.encode(o).ids
    assert loaded.special_tokens_map == (rebuilt.special_tokens_map | dict(pad_token=loaded.pad_token))
    for k in ('model_input_names', 'padding_side', 'model_max_length'): assert getattr(loaded, k)==getattr(rebuilt, k)
    dls = HFTextDataLoaders.from_df(df, tmp_path/'a', valid_col='is_valid', bs=8, device='cpu')
    again = AutoTokenizer.from_pretrained(hf_learner(dls).save_pretrained(tmp_path/'b')) # as `pipeline` loads it
    for o in TEXTS: assert again(o)['input_ids'] == file.encode(o).ids


def test_a_tokenizer_of_which_settings_are_changed_is_kept_and_differences_are_said(tmp_path, capsys):
    config = make_config()[0]
    save_with_file(tmp_path, FILES['digits'])
    loaded = load_hf_tokenizer(tmp_path, config, dict(do_lower_case=False))
    assert type(loaded) is transformers.BertTokenizer
    assert re.search(mentions('tokenizer.json', 'BertTokenizer'), capsys.readouterr().out)


@pytest.mark.parametrize('arch', ['albert', 'bert', 'gpt2', 'llama', 't5', 'mbart', 'bloom', 'deberta-v2', 'canine'])
def test_a_tokenizer_that_equals_its_file_is_kept_in_silence(arch, tmp_path, capsys):
    config,tokenizer = make_config(arch)
    config.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert type(load_hf_tokenizer(tmp_path, config)) is type(AutoTokenizer.from_pretrained(tmp_path))
    assert not capsys.readouterr().out


def folders(tmp_path, arch='bert'):
    "A model with its tokenizer, its copy with other weights, and a tokenizer with the same number of tokens"
    hf = make_objects(arch)
    for o in ('a', 'copy'):
        hf.model.save_pretrained(tmp_path/o)
        hf.tokenizer.save_pretrained(tmp_path/o)
    vocab = hf.tokenizer.get_vocab()
    words = [o for o in vocab if len(o) > 1 and o.isalpha()]
    swapped = vocab | dict(zip(words, [vocab[o] for o in reversed(words)], strict=True))
    transformers.BertTokenizer(vocab=swapped, model_max_length=64).save_pretrained(tmp_path/'other')
    return [tmp_path/o for o in ('a', 'copy', 'other')]


@pytest.mark.parametrize('given', ['objects', 'model'])
def test_a_tokenizer_with_another_vocabulary_of_the_same_size_is_said(given, df, tmp_path, capsys):
    a,copy,other = folders(tmp_path)
    hf = get_hf_objects(a)
    model = get_hf_objects(copy).model
    def learner(tokenizer):
        data = hf._replace(tokenizer=AutoTokenizer.from_pretrained(tokenizer))
        dls = HFTextDataLoaders.from_df(df, data, valid_col='is_valid', bs=8, device='cpu')
        capsys.readouterr()
        hf_learner(dls, *([model] if given=='model' else [hf.model]))
        return capsys.readouterr().out
    for o in (a, copy): assert 'tokenize' not in learner(o)
    assert re.search(mentions(repr(str(other)), repr(str(copy if given=='model' else a))), learner(other))


def test_a_tokenizer_file_that_cannot_be_read_stops_no_learner(df, tmp_path):
    a,copy,_ = folders(tmp_path)
    model = get_hf_objects(copy).model
    (copy/'tokenizer.json').write_text('{}')
    hf_learner(HFTextDataLoaders.from_df(df, a, valid_col='is_valid', bs=8, device='cpu'), model)


def test_a_saved_learner_trains_on_the_data_of_its_checkpoint_in_silence(df, tmp_path, capsys):
    a = folders(tmp_path)[0]
    dls = HFTextDataLoaders.from_df(df, a, valid_col='is_valid', bs=8, device='cpu')
    saved = hf_learner(dls).save_pretrained(tmp_path/'saved')
    capsys.readouterr()
    load_hf_learner(saved, dls=dls)
    assert 'tokenize' not in capsys.readouterr().out
