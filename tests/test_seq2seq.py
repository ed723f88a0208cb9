"Summarization, translation and text2text generation: encoder-decoder families, generation, metrics, invalid input."
import random
import sys

import pandas as pd
import pytest
import sacrebleu
import torch
from conftest import make_objects as bert_objects
from conftest import make_texts, mentions
from datasets import Dataset
from fastai.data.block import DataBlock
from fastai.data.transforms import ColReader, ColSplitter
from fastai.interpret import Interpretation
from fastai.learner import Learner, load_learner
from fastai.losses import CrossEntropyLossFlat
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    EncoderDecoderConfig,
    GenerationConfig,
    MBart50Tokenizer,
    MBartTokenizer,
    PreTrainedTokenizerFast,
)

from blurlike.all import (
    ChrF,
    HFCallback,
    HFLoss,
    HFObjects,
    HFTextBlock,
    HFTextDataLoaders,
    Rouge,
    SacreBLEU,
    TextTargetBlock,
    hf_learner,
    hf_splitter,
    load_hf_learner,
)
from blurlike.tasks.seq2seq import TextTarget

WORDS = 'red blue green black white cat dog bird fish'.split()
SPECIAL = ['<s>', '<pad>', '</s>', '<unk>']


def make_pairs(n, seed=0):
    "`n` lines of one to seven words, and the same words backward"
    rng = random.Random(seed)
    lines = [[rng.choice(WORDS) for _ in range(rng.randint(1, 7))] for _ in range(n)]
    return pd.DataFrame([(' '.join(o), ' '.join(o[::-1])) for o in lines], columns=['text', 'translation'])


@pytest.fixture(scope='module')
def pairs():
    "60 pairs, the last 20 of them for validation"
    df = make_pairs(60)
    df['is_valid'] = df.index >= 40
    return df


def words(first='', last='</s>'):
    "A tokenizer of whole words; `first` and `last` are put around a text"
    vocab = {w: i for i,w in enumerate([*SPECIAL, *WORDS])}
    tok = Tokenizer(models.WordLevel(vocab, unk_token='<unk>'))
    tok.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = [(o, vocab[o]) for o in (first, last) if o]
    tok.post_processor = processors.TemplateProcessing(single=f'{first} $A {last}'.split(),
                                                       pair=f'{first} $A {last} $B {last}'.split(),
                                                       special_tokens=special)
    return PreTrainedTokenizerFast(tokenizer_object=tok, bos_token='<s>', eos_token='</s>', pad_token='<pad>',
                                   unk_token='<unk>')


def languages(cls):
    "A tokenizer that knows languages, with our words"
    vocab = [(o, 0.) for o in SPECIAL] + [('▁', -2.)] + [('▁' + o, -1.) for o in WORDS]
    return cls(vocab=vocab, src_lang='en_XX', tgt_lang='fr_XX')


# Weights are large, so that an untrained model generates a different text for each input
_IDS = dict(pad_token_id=1, bos_token_id=0, eos_token_id=2)
_BART = _IDS | dict(d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
                    decoder_attention_heads=2, encoder_ffn_dim=48,
                    decoder_ffn_dim=48, max_position_embeddings=64, decoder_start_token_id=2, forced_eos_token_id=None,
                    init_std=1.)
_T5 = dict(initializer_factor=4., d_model=32, d_kv=16, d_ff=48, num_layers=2, num_decoder_layers=2, num_heads=2,
           pad_token_id=1, eos_token_id=2, decoder_start_token_id=1)
_BERT = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
             max_position_embeddings=64, vocab_size=13,
             initializer_range=1.)
ARCHITECTURES = {
    'bart': (lambda: words('<s>'), _BART),
    'bigbird_pegasus': (words, _BART | dict(attention_type='original_full')),
    'blenderbot': (words, _BART),
    'led': (lambda: words('<s>'), {k: v for k,v in _BART.items() if k!='max_position_embeddings'} | dict(
        max_encoder_position_embeddings=64, max_decoder_position_embeddings=32, attention_window=8)),
    'longt5': (words, _T5 | dict(local_radius=4)),
    'm2m_100': (words, _BART),
    'marian': (words, _BART | dict(decoder_start_token_id=1)),
    'mbart': (lambda: languages(MBartTokenizer), _BART),
    'mbart-50': (lambda: languages(MBart50Tokenizer), _BART),
    'mt5': (words, _T5),
    'mvp': (lambda: words('<s>'), _BART),
    'pegasus': (words, _BART | dict(decoder_start_token_id=1)),
    'pegasus_x': (words, _BART | dict(decoder_start_token_id=1, block_size=8, num_global_tokens=2)),
    'plbart': (words, _BART),
    'prophetnet': (words, _IDS | dict(hidden_size=32, num_encoder_layers=2, num_decoder_layers=2,
                                      num_encoder_attention_heads=2,
        num_decoder_attention_heads=2, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64, ngram=2,
        decoder_start_token_id=0)),
    'switch_transformers': (words, _T5 | dict(num_experts=2, num_sparse_encoder_layers=1, num_sparse_decoder_layers=1)),
    't5': (words, _T5),
    'umt5': (words, _T5),
}
OPTIONS = {'mbart': dict(src_lang='en_XX', tgt_lang='fr_XX'), 'mbart-50': dict(src_lang='en_XX', tgt_lang='fr_XX')}


def make_objects(arch='bart', **kwargs):
    "A tiny encoder-decoder of architecture `arch`, with weights that a seed fixes, and its tokenizer"
    make_tokenizer,options = ARCHITECTURES[arch]
    tokenizer = make_tokenizer()
    config = AutoConfig.for_model(arch.split('-')[0], vocab_size=len(tokenizer), **(options | kwargs))
    torch.manual_seed(0)
    return HFObjects(arch, config, tokenizer, AutoModelForSeq2SeqLM.from_config(config))


def two_berts():
    "An encoder and a decoder that are joined by `EncoderDecoderModel`"
    tokenizer = words('<s>')
    config = EncoderDecoderConfig.from_encoder_decoder_configs(AutoConfig.for_model('bert', **_BERT),
                                                               AutoConfig.for_model('bert', **_BERT))
    for k,v in (_IDS | dict(decoder_start_token_id=0)).items(): setattr(config, k, v)
    torch.manual_seed(0)
    return HFObjects('encoder-decoder', config, tokenizer, AutoModelForSeq2SeqLM.from_config(config))


_BART_OBJECTS = make_objects()
def objects(arch): return two_berts() if arch=='encoder-decoder' else make_objects(arch)
ALL = sorted([*ARCHITECTURES, 'encoder-decoder'])
# whose `generate` fails in transformers 5.23: "`position_ids` are incorrect"
WRITERS = [o for o in ALL if o!='prophetnet']


def make_learner(pairs, hf, task='translation', lr=1e-3, metrics=(), **kwargs):
    dls = HFTextDataLoaders.from_df(pairs, hf, task=task, label_col='translation', valid_col='is_valid', bs=8, seed=0,
                                    device='cpu', **kwargs)
    return hf_learner(dls, hf.model, lr=lr, metrics=list(metrics))


def by_hand(model, tokenizer, texts, **kwargs):
    "Return the output of `generate` for one text at a time"
    model.eval()
    def one(text):
        inputs = {k: v for k,v in tokenizer([text], return_tensors='pt').items() if k!='token_type_ids'}
        return tokenizer.batch_decode(model.generate(**inputs, **kwargs), skip_special_tokens=True)[0]
    return [one(o) for o in texts]


@pytest.mark.parametrize('arch', WRITERS)
def test_an_architecture_trains_generates_saves_and_reads_back(arch, pairs, tmp_path):
    hf = objects(arch)
    learn = make_learner(pairs, hf, **OPTIONS.get(arch, {}))
    with learn.no_bar(), learn.no_logging(): learn.fit(2)
    assert all(torch.isfinite(p).all() for p in hf.model.parameters())
    texts = pairs.text[-12:].tolist()
    ours = [o['translation_text'] for o in learn.hf_generate(texts)]
    assert len(set(ours)) > 1
    assert ours == by_hand(hf.model, hf.tokenizer, texts)
    learn.save_pretrained(tmp_path/'model')
    saved = AutoModelForSeq2SeqLM.from_pretrained(tmp_path/'model')
    tokenizer = AutoTokenizer.from_pretrained(tmp_path/'model')
    assert ours == by_hand(saved, tokenizer, texts)


@pytest.mark.parametrize('arch', ALL)
def test_the_models_own_loss_is_ours(arch, pairs):
    hf,losses = objects(arch),[]
    for loss_func in (None, HFLoss(), CrossEntropyLossFlat(ignore_index=-100)):
        dls = HFTextDataLoaders.from_df(pairs, hf, task='translation', valid_col='is_valid', bs=8, device='cpu',
                                        **OPTIONS.get(arch, {}))
        learn = hf_learner(dls, hf.model, loss_func=loss_func, metrics=[])
        with learn.no_bar(): losses.append(learn.validate(dl=[dls.valid.one_batch()])[0])
    assert losses[0] == pytest.approx(losses[2], abs=1e-5)
    if arch != 'prophetnet' and arch != 'switch_transformers': assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.fixture
def learn(pairs):
    learn = make_learner(pairs, make_objects('bart'), metrics=[Rouge('rougeL'), SacreBLEU(), ChrF()])
    with learn.no_bar(), learn.no_logging(): yield learn


@pytest.mark.parametrize('kwargs', [dict(num_beams=3), dict(max_new_tokens=2), dict(max_length=3),
                                    dict(num_beams=2, length_penalty=2., no_repeat_ngram_size=2),
                                    dict(generation_config=GenerationConfig(num_beams=2, max_new_tokens=4)),
                                    dict(repetition_penalty=1.5)])
def test_hf_generate_accepts_the_arguments_of_generate(kwargs, learn, pairs, hf_texts):
    by_name = kwargs if 'max_new_tokens' not in kwargs else kwargs | dict(max_length=None)
    ours = [o['translation_text'] for o in learn.hf_generate(hf_texts, **kwargs)]
    assert ours == by_hand(learn.model, learn.dls.hf_block.hf_tokenizer, hf_texts, **by_name)


@pytest.fixture
def hf_texts(): return make_pairs(30, seed=7).text.tolist()


def test_the_batch_size_changes_neither_texts_nor_their_order(learn, hf_texts):
    whole = learn.hf_generate(hf_texts)
    assert len({str(o) for o in whole}) > 5
    assert whole == learn.hf_generate(hf_texts, batch_tokens=1) == [learn.hf_generate(o) for o in hf_texts]
    assert learn.hf_generate([]) == []
    assert learn.hf_generate(hf_texts[::-1]) == whole[::-1]


def test_several_sequences_per_text_are_a_list_for_each_text(learn, hf_texts):
    three = learn.hf_generate(hf_texts, num_beams=3, num_return_sequences=3)
    assert [len(o) for o in three] == [3]*30
    assert [o[0] for o in three] == learn.hf_generate(hf_texts, num_beams=3) == learn.hf_predict(hf_texts, num_beams=3)
    assert learn.hf_generate(hf_texts[0], num_beams=3, num_return_sequences=3) == three[0]


def test_generating_keeps_the_mode_of_the_model(learn, hf_texts):
    learn.model.train()
    first = learn.hf_generate(hf_texts, return_dict_in_generate=True)
    assert learn.model.training
    assert first == learn.hf_generate(hf_texts)
    learn.fit(1)
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in learn.model.parameters())


def test_metrics_generate_once_a_batch_in_validation_only(learn, monkeypatch):
    calls,generate = [],learn.model.generate
    monkeypatch.setattr(learn.model, 'generate',
                        lambda *args, **kwargs: calls.append(learn.model.training) or generate(*args, **kwargs))
    scores = learn.validate()
    assert len(calls) == len(learn.dls.valid) == 3
    assert not any(calls)
    assert len(scores) == 4
    learn.get_preds()
    assert len(calls) == 3
    learn.fit(2)
    assert len(calls) == 9


def test_generate_every_skips_epochs_and_never_the_last(pairs, monkeypatch):
    learn = make_learner(pairs, make_objects('t5'), metrics=[ChrF(generate_every=2)])
    calls,generate = [],learn.model.generate
    monkeypatch.setattr(learn.model, 'generate',
                        lambda *args, **kwargs: calls.append(learn.epoch) or generate(*args, **kwargs))
    with learn.no_bar(), learn.no_logging():
        learn.fit(5)
        assert sorted(set(calls)) == [1, 3, 4]
        assert [o[-1]==o[-1] for o in learn.recorder.values] == [False, True, False, True, True]
        learn.validate()
    assert len(calls) == 4*len(learn.dls.valid)


def test_metrics_score_the_generated_texts(learn, pairs):
    valid = pairs[pairs.is_valid]
    written = [o['translation_text'] for o in learn.hf_generate(valid.text.tolist())]
    _,rouge,bleu,chrf = learn.validate()
    scorer = rouge_scorer.RougeScorer(['rougeL'], use_stemmer=True)
    assert rouge == pytest.approx(100*sum(scorer.score(t, p)['rougeL'].fmeasure
                                          for t,p in zip(valid.translation, written, strict=True))/len(valid))
    assert bleu == pytest.approx(sacrebleu.corpus_bleu(written, [valid.translation.tolist()]).score)
    assert chrf == pytest.approx(sacrebleu.corpus_chrf(written, [valid.translation.tolist()]).score)


@pytest.mark.parametrize('loss_func', [None, HFLoss, lambda: CrossEntropyLossFlat(ignore_index=-100)])
def test_a_plain_learner_predicts_and_shows(loss_func, pairs, capsys):
    hf = make_objects('bart')
    dls = HFTextDataLoaders.from_df(pairs, hf, task='translation', valid_col='is_valid', bs=8, device='cpu')
    loss_func = dls.hf_block.task.loss_func() if loss_func is None else loss_func()
    learn = Learner(dls, hf.model, loss_func=loss_func, cbs=[HFCallback], splitter=hf_splitter)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
        probs,targs,decoded = learn.get_preds(with_decoded=True)
        assert probs.shape[:2] == targs.shape == decoded.shape
        assert probs.shape[2] == len(hf.tokenizer)
        order = [hf.tokenizer.decode(o[o!=-100], skip_special_tokens=True) for o in targs]
        assert order == pairs.translation[pairs.is_valid].tolist()
        text,ids,_ = learn.predict('red blue cat')
        assert text == learn.hf_generate('red blue cat')['translation_text']
        assert learn.get_preds(dl=dls.test_dl(['red', 'blue cat dog']))[0].shape[0] == 2
        learn.show_results(max_n=2)
        Interpretation.from_learner(learn).plot_top_losses(2)
        learn.summary()
    shown = capsys.readouterr().out
    assert 'prediction' in shown
    assert 'next tokens' in shown


def test_an_exported_learner_generates_the_same(learn, tmp_path, hf_texts):
    learn.path = tmp_path
    before = learn.hf_generate(hf_texts)
    learn.fit(1)
    after = learn.hf_generate(hf_texts)
    learn.export()
    assert load_learner(tmp_path/'export.pkl').hf_generate(hf_texts) == after
    assert [list(o) for o in before] == [['translation_text']]*30


@pytest.mark.parametrize(('task', 'key'), [('summarization', 'summary_text'), ('translation', 'translation_text'),
                                           ('text2text-generation', 'generated_text')])
def test_a_datasets_dataset_trains_each_task(task, key, pairs):
    dataset = Dataset.from_pandas(pairs[['text', 'translation']])
    hf = make_objects('marian')
    dls = HFTextDataLoaders.from_dataset(dataset, hf, task=task, label_col='translation', bs=8, seed=0, device='cpu')
    learn = hf_learner(dls, hf.model)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert list(learn.hf_predict('red blue')) == [key]


def test_a_datablock_infers_the_task_from_the_targets(pairs):
    hf = make_objects('t5')
    dblock = DataBlock(blocks=(HFTextBlock(*hf), TextTargetBlock()), get_x=ColReader('text'),
                       get_y=ColReader('translation'), splitter=ColSplitter())
    dls = dblock.dataloaders(pairs, bs=8)
    assert dls.hf_block.task.name == 'text2text-generation'
    assert dls.one_batch()[1].shape[0] == 8


def test_the_prefix_is_part_of_the_input(pairs):
    hf = make_objects('t5')
    options = dict(task='translation', valid_col='is_valid', bs=8, device='cpu')
    plain,prefixed = (HFTextDataLoaders.from_df(pairs, hf, prefix=o, **options) for o in ('', 'cat dog '))
    assert (prefixed.train.token_lengths == plain.train.token_lengths + 2).all()
    with_prefix = [o['translation_text'] for o in hf_learner(prefixed, hf.model).hf_generate(['red', 'blue fish'])]
    assert with_prefix == by_hand(hf.model, hf.tokenizer, ['cat dog red', 'cat dog blue fish'])
    ids = prefixed.valid.one_batch()[0]['input_ids'][0,:2].tolist()
    assert ids == hf.tokenizer.convert_tokens_to_ids(['cat', 'dog'])


@pytest.mark.parametrize('arch', ['mbart', 'mbart-50'])
def test_languages_reach_tokenizer_and_decoder(arch, pairs):
    hf = make_objects(arch)
    learn = make_learner(pairs, hf, src_lang='de_DE', tgt_lang='fr_XX')
    inputs,targets = learn.dls.valid.one_batch()
    french,german = hf.tokenizer.convert_tokens_to_ids(['fr_XX', 'de_DE'])
    assert (inputs['input_ids']==german).any(1).all()
    assert (targets==french).any(1).all()
    tokenizer = learn.dls.hf_block.hf_tokenizer
    ids = hf.model.generate(**{k: v for k,v in tokenizer(['red'], return_tensors='pt').items() if k!='token_type_ids'})
    assert french in ids[0,:2]


LANGUAGE = {'mbart': 'decoder_start_token_id', 'mbart-50': 'forced_bos_token_id'}


@pytest.mark.parametrize('arch', LANGUAGE)
def test_languages_of_the_tokenizer_reach_the_decoder_and_are_saved(arch, pairs, tmp_path):
    hf = make_objects(arch)
    hf.tokenizer.src_lang,hf.tokenizer.tgt_lang = 'de_DE','it_IT'
    german,italian = hf.tokenizer.convert_tokens_to_ids(['de_DE', 'it_IT'])
    dls = HFTextDataLoaders.from_df(pairs, hf, task='translation', valid_col='is_valid', bs=8, device='cpu')
    learn = hf_learner(dls, hf.model, metrics=[])
    assert getattr(hf.model.generation_config, LANGUAGE[arch]) == italian
    inputs,targets = dls.valid.one_batch()
    assert (inputs['input_ids']==german).any(1).all()
    assert (targets==italian).any(1).all()
    again = load_hf_learner(learn.save_pretrained(tmp_path/'model'), device='cpu')
    assert again.dls.hf_block.setup == dls.hf_block.setup
    texts = pairs.text[:3].tolist()
    assert again.hf_generate(texts, max_new_tokens=4) == learn.hf_generate(texts, max_new_tokens=4)


@pytest.mark.parametrize('arch', LANGUAGE)
def test_two_directions_from_the_same_objects_do_not_change_each_other(arch, pairs, monkeypatch):
    hf = make_objects(arch)
    there,back = (make_learner(pairs, hf, src_lang=a, tgt_lang=b)
                  for a,b in (('de_DE', 'fr_XX'), ('fr_XX', 'de_DE')))
    asked,generate = [],hf.model.generate
    monkeypatch.setattr(hf.model, 'generate', lambda *args, **kwargs: asked.append(kwargs) or generate(*args, **kwargs))
    for learn,src,tgt in ((there, 'de_DE', 'fr_XX'), (back, 'fr_XX', 'de_DE'), (there, 'de_DE', 'fr_XX')):
        src,tgt = hf.tokenizer.convert_tokens_to_ids([src, tgt])
        inputs,targets = learn.dls.valid.one_batch()
        assert (inputs['input_ids']==src).any(1).all()
        assert (targets==tgt).any(1).all()
        learn.hf_generate('red cat', max_new_tokens=3)
        learn.hf_predict('red cat')
        learn.show_results(max_n=1)
        assert [o[LANGUAGE[arch]] for o in asked] == [tgt]*3
        asked.clear()
    assert (hf.tokenizer.src_lang, hf.tokenizer.tgt_lang) == ('en_XX', 'fr_XX')


@pytest.mark.parametrize('arch', LANGUAGE)
def test_two_directions_of_one_model_are_saved_with_their_own_language(arch, pairs, tmp_path):
    hf = make_objects(arch)
    ways = ('de_DE', 'fr_XX'),('fr_XX', 'de_DE')
    learners = [make_learner(pairs, hf, src_lang=a, tgt_lang=b, generate_kwargs=dict(num_beams=i+1))
                for i,(a,b) in enumerate(ways)]
    texts,found = pairs.text[:3].tolist(),[]
    for i,(learn,(_,tgt)) in enumerate(zip(learners, ways, strict=True)):
        folder = learn.save_pretrained(tmp_path/tgt)
        saved = AutoModelForSeq2SeqLM.from_pretrained(folder).generation_config
        assert (getattr(saved, LANGUAGE[arch]), saved.num_beams) == (hf.tokenizer.convert_tokens_to_ids(tgt), i+1)
        again = load_hf_learner(folder, device='cpu')
        options = dict(max_new_tokens=4, num_beams=1)
        assert again.hf_generate(texts, **options) == learn.hf_generate(texts, **options)
        found.append(again.hf_generate(texts, **options))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        enc = tokenizer(texts[0], return_tensors='pt')
        model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
        ids = model.generate(enc['input_ids'], attention_mask=enc['attention_mask'], **options)
        assert tokenizer.decode(ids[0], skip_special_tokens=True) == found[i][0]['translation_text']
    assert found[0] != found[1]
    assert getattr(hf.model.generation_config, LANGUAGE[arch]) == hf.tokenizer.convert_tokens_to_ids('de_DE')


@pytest.mark.parametrize('arch', LANGUAGE)
@pytest.mark.parametrize('task', ['translation', 'summarization'])
def test_a_model_with_languages_needs_the_one_of_the_targets(arch, task, pairs):
    hf = make_objects(arch)
    hf.tokenizer.tgt_lang = None
    for options in ({}, dict(src_lang='de_DE')):
        with pytest.raises(ValueError, match=mentions('tgt_lang=None', type(hf.tokenizer).__name__)):
            HFTextDataLoaders.from_df(pairs, hf, task=task, label_col='translation', **options)


@pytest.mark.parametrize(('lang', 'close', 'far'), [
    ('fr', ["'fr_XX'"], "'ar_AR'"), ('fra_Latn', ["'fr_XX'"], "'ar_AR'"), ('EN', ["'en_XX'"], "'ar_AR'"),
    ('xx', ["'ar_AR'", "'cs_CZ'"], "'zz'"), (3, ["'ar_AR'", "'cs_CZ'"], "'zz'")])
def test_an_unknown_language_lists_the_close_ones(lang, close, far, pairs):
    for arg in ('src_lang', 'tgt_lang'):
        with pytest.raises(ValueError, match=mentions(f'{arg}={lang!r}', *close)) as e:
            HFTextDataLoaders.from_df(pairs, make_objects('mbart'), task='translation', **{arg: lang})
        assert far not in str(e.value)


def test_targets_get_an_end_token_if_the_tokenizer_adds_none(pairs):
    hf = make_objects('t5')
    hf.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single='$A', special_tokens=[])
    dls = HFTextDataLoaders.from_df(pairs, hf, task='translation', valid_col='is_valid', bs=8, device='cpu',
                                    max_target_length=5)
    targets = dls.valid.one_batch()[1]
    assert ((targets==2).sum(1)==1).all()
    assert targets.shape[1] == 5


def test_generation_is_as_long_as_the_targets_unless_set(pairs):
    longest = max(len(o.split()) for o in pairs.translation) + 2 # a token at each end
    assert make_learner(pairs, make_objects()).model.generation_config.max_length == longest + 1
    assert make_learner(pairs, make_objects(), max_target_length=12).model.generation_config.max_length == 13
    asked = make_learner(pairs, make_objects(),
                         generate_kwargs=dict(max_new_tokens=3, num_beams=2)).model.generation_config
    assert (asked.max_new_tokens, asked.num_beams) == (3, 2)


def test_the_decoder_may_have_fewer_positions_than_the_encoder(pairs):
    block = HFTextBlock(*make_objects('led'), task='summarization')
    assert (block.max_length, block.setup.limit) == (64, 32)
    with pytest.raises(ValueError, match=mentions('max_target_length=33', 32)):
        HFTextBlock(*make_objects('led'), task='summarization', max_target_length=33)


def test_truncated_targets_are_counted(pairs):
    dls = HFTextDataLoaders.from_df(pairs, make_objects(), task='translation', valid_col='is_valid',
                                    max_target_length=5, device='cpu')
    report = dls.truncation_report()
    lengths = pairs.translation.str.split().map(len) + 2
    assert report.targets_truncated.tolist() == [(lengths[~pairs.is_valid]>5).sum(), (lengths[pairs.is_valid]>5).sum()]
    assert report.target_tokens_lost.tolist() == [(lengths-5).clip(0)[~pairs.is_valid].sum(),
                                                  (lengths-5).clip(0)[pairs.is_valid].sum()]
    assert dls.valid.one_batch()[1].shape[1] == 5
    assert 'targets_truncated' not in HFTextDataLoaders.from_df(make_texts(30), bert_objects(),
                                                                device='cpu').truncation_report()


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=9).map(' '.join), min_size=1, max_size=9),
       limit=st.integers(3, 12))
def test_targets_decode_to_the_text_up_to_the_limit(texts, limit):
    block = HFTextBlock(*_BART_OBJECTS, task='translation', max_target_length=limit)
    table = block.task.tokenize([(o, TextTarget(o)) for o in texts], block)
    inputs,targets = block.task.collate(table, range(len(texts)), block)
    assert targets.shape == (len(texts), min(limit, max(len(o.split()) for o in texts)+2))
    assert block.task.decode_ids(targets, block) == [' '.join(o.split()[:limit-2]) for o in texts]
    assert block.decode(inputs) == texts


@pytest.mark.parametrize(('column', 'value', 'facts'), [
    ('text', '', ['text', "''"]), ('text', ' \n', ['text', repr(' \n')]), ('translation', '  ', ['target', "'  '"]),
    ('translation', 7, ['target', 7]),
    ('translation', ['red'], ['target', "['red']"]), ('translation', None, [])])
def test_invalid_rows_raise(column, value, facts, pairs):
    wrong = pairs.astype(object)
    wrong.at[3, column] = value
    with pytest.raises(ValueError, match=mentions('row 3', *facts)):
        HFTextDataLoaders.from_df(wrong, make_objects(), task='translation', valid_col='is_valid')


@pytest.mark.parametrize(('options', 'facts'), [
    (dict(src_lang='fr'), ["src_lang='fr'", 'prefix']), (dict(max_target_length=65), ['max_target_length=65', 64]),
    (dict(max_target_length=2.5), ['max_target_length=2.5']), (dict(generate_every=0), ['generate_every=0']),
    (dict(generate_every=None), ['generate_every=None']),
    (dict(prefix=None), ['prefix=None']),
    (dict(generate_kwargs=dict(num_return_sequences=3)), ['generate_kwargs', 'num_return_sequences']),
    (dict(generate_kwargs=dict(temperature=.5)), ['generate_kwargs', 'temperature']),
    (dict(generate_kwargs=dict(bad_words_ids=torch.ones(1))), ['generate_kwargs', 'JSON']),
    (dict(windows=True, max_length=9), ['windows=True', 'translation'])])
def test_invalid_options_raise(options, facts, pairs):
    with pytest.raises(ValueError, match=mentions(*facts)):
        HFTextDataLoaders.from_df(pairs, make_objects(), task='translation', **options)


def test_models_that_are_not_encoder_decoders_raise(pairs, tmp_path):
    hf = bert_objects()
    hf.model.save_pretrained(tmp_path)
    hf.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'bert'"):
        HFTextDataLoaders.from_df(pairs, tmp_path, task='summarization', label_col='translation')
    for objects in (hf, bert_objects('t5')):
        with pytest.raises(ValueError,
                           match=mentions(type(objects.model).__name__, 'summarization', 'AutoModelForSeq2SeqLM')):
            HFTextDataLoaders.from_df(pairs, objects, task='summarization', label_col='translation')


def test_invalid_arguments_of_generate_raise(learn):
    with pytest.raises(TypeError, match=mentions("'num_beam'", "'num_beams'")): learn.hf_generate('red', num_beam=2)
    with pytest.raises(ValueError, match=mentions('1 of 2', "''")): learn.hf_generate(['red', ''])
    with pytest.raises(ValueError, match=mentions('text', 3)): learn.hf_generate([3])


def test_a_missing_package_raises_with_what_to_install(monkeypatch, pairs):
    monkeypatch.setitem(sys.modules, 'rouge_score.rouge_scorer', None)
    monkeypatch.setitem(sys.modules, 'sacrebleu.metrics', None)
    with pytest.raises(ImportError, match=mentions('rouge_score', 'blurlike[seq2seq]')): Rouge()
    with pytest.raises(ImportError, match=mentions('sacrebleu', 'blurlike[seq2seq]')): ChrF()
    make_learner(pairs, make_objects())


def test_freezing_leaves_the_last_layers_to_train(learn):
    learn.freeze()
    trains = [n for n,p in learn.model.named_parameters() if p.requires_grad]
    assert trains
    assert all('decoder' in o for o in trains)


def test_precision_bf16_trains_and_scores(pairs):
    dls = HFTextDataLoaders.from_df(pairs, make_objects('t5'), task='translation', valid_col='is_valid', bs=8,
                                    device='cpu')
    learn = hf_learner(dls, make_objects('t5').model, precision='bf16', metrics=[ChrF()])
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert learn.validate()[1] >= 0
