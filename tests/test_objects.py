"Loading a checkpoint says in one line which weights are new, and which are not used."
import logging
import re

import pytest
import transformers
from conftest import make_objects, mentions
from transformers import AutoModel, AutoModelForMaskedLM

from blurlike.all import get_hf_objects, load_hf_config, load_hf_model, minilm_checkpoint


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
