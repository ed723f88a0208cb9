"Properties of every architecture, for any task; test_matrix.py tests each with every task."
import pandas as pd
import pytest
import torch
from conftest import ARCHITECTURES, BLOCK_OPTIONS, make_objects
from fastai.losses import CrossEntropyLossFlat
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from blurlike.all import (
    HFCallback,
    HFTextDataLoaders,
    SequenceClassification,
    forward_args,
    hf_learner,
    model_skeleton,
    position_limit,
)
from blurlike.architectures import has_model
from blurlike.core.compat import has_model_class

CLASSIFY = [o for o in sorted(ARCHITECTURES) if has_model(o, SequenceClassification)]
MODELS = (AutoModelForSequenceClassification, AutoModelForCausalLM, AutoModelForSeq2SeqLM,
          AutoModelForQuestionAnswering)


# Canine pools over four tokens
SHORTEST = BLOCK_OPTIONS | {'canine': dict(pad_to_multiple_of=4)}


@pytest.mark.parametrize('arch', CLASSIFY)
def test_a_text_without_words_trains_and_predicts(arch):
    hf = make_objects(arch)
    df = pd.DataFrame({'text': ['', ' \n', '🎬']*4, 'label': ['good', 'bad']*6,
                       'is_valid': [False, False, True, True]*3})
    dls = HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', bs=3, device='cpu', **SHORTEST.get(arch, {}))
    learn = hf_learner(dls, hf.model)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    for pred in learn.hf_predict(['', ' ', '\n\t', '🎬🍿', 'the film']): assert 0 < pred['score'] <= 1


# ProphetNet's decoder needs one position more than tokens; MPT has no position limit and fails beyond `max_seq_len`
SHORTER,NO_TABLE = {'prophetnet': 1},{'mpt': 64}


@pytest.mark.parametrize('arch', sorted(ARCHITECTURES))
def test_the_longest_allowed_text_fits_the_model(arch):
    auto_model = next(o for o in MODELS if has_model_class(o, CONFIG_MAPPING[arch]))
    hf = make_objects(arch, auto_model=auto_model)
    model,limit = hf.model.eval(),position_limit(hf.model)
    assert limit == position_limit(model_skeleton(hf.config, auto_model))
    length = limit - SHORTER.get(arch, 0) if limit else NO_TABLE.get(arch, 100)
    ids = torch.full((1, length), hf.tokenizer.convert_tokens_to_ids('e'))
    if hf.tokenizer.eos_token_id is not None: ids[:, -1] = hf.tokenizer.eos_token_id
    inputs = dict(input_ids=ids)
    if 'decoder_input_ids' in forward_args(model): inputs['decoder_input_ids'] = ids
    with torch.no_grad():
        assert all(torch.isfinite(o).all() for o in model(**inputs).values() if isinstance(o, torch.Tensor))
    if limit is not None:
        with pytest.raises((IndexError, RuntimeError, ValueError)):
            model(**{k: torch.cat([v, v], 1) for k,v in inputs.items()})


def test_a_bare_model_in_a_plain_learner_needs_only_the_callback(df):
    from fastai.text.all import DataLoaders, Learner
    hf = make_objects()
    def inputs(text):
        enc = hf.tokenizer(text, padding='max_length', max_length=50, return_tensors='pt')
        return {k: v[0] for k,v in enc.items()}
    rows = [(inputs(t), int(y=='good')) for t,y in zip(df.text, df.label, strict=True)]
    loader = torch.utils.data.DataLoader(rows, batch_size=8)
    learn = Learner(DataLoaders(loader, loader, device=torch.device('cpu')), hf.model, loss_func=CrossEntropyLossFlat(),
                    cbs=[HFCallback])
    with learn.no_bar(), learn.no_logging():
        before = learn.validate()[0]
        learn.fit(2, 1e-3)
        assert learn.validate()[0] < before
