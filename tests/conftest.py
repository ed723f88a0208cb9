"Tiny models of real architectures and a small set of labelled texts, all made here, none from a network."
import os

os.environ['HF_HUB_OFFLINE'] = '1' # before any Hugging Face library is imported

import random  # noqa: E402

import pandas as pd  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers  # noqa: E402
from transformers import (  # noqa: E402
    AutoConfig,
    AutoModelForSequenceClassification,
    BertTokenizer,
    PreTrainedTokenizerFast,
)

from blurlike.all import HFObjects, HFTextDataLoaders, hf_learner, set_pad_token  # noqa: E402

GOOD = 'warm funny moving lovely bright tender joyful clever'.split()
BAD = 'dull slow empty sour clumsy stale hollow grim'.split()
THINGS = 'film plot cast score script ending dialogue story'.split()


def make_texts(n, seed=0):
    "`n` sentences of 3 to 40 words with a label that a small model can learn"
    rng = random.Random(seed)
    rows = []
    for i in range(n):
        label,words = ('good', GOOD) if i%2 else ('bad', BAD)
        body = [w for _ in range(rng.randint(1, 13)) for w in ('the', rng.choice(THINGS), rng.choice(words))]
        rows.append((' '.join(body), label))
    return pd.DataFrame(rows, columns=['text', 'label'])


@pytest.fixture(scope='session')
def df():
    "120 labelled texts, the last 40 of them for validation"
    df = make_texts(120)
    df['is_valid'] = df.index >= 80
    return df


def _corpus(): return make_texts(200, seed=1).text.tolist() + ['[0-9] !?., zoë 東京 🎬']


def wordpiece():
    "A BERT tokenizer with a vocabulary of its own"
    words = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *sorted({w for t in _corpus() for w in t.split()}), *'abcdefghijklmnopqrstuvwxyz']
    vocab = {w: i for i,w in enumerate(dict.fromkeys(words))}
    return BertTokenizer(vocab=vocab, model_max_length=64)


def byte_level(special, **kwargs):
    "A byte-level BPE tokenizer as GPT-2 and RoBERTa have them"
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.train_from_iterator(_corpus(), trainers.BpeTrainer(vocab_size=400, special_tokens=special,
                                                           initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    if '<s>' in special:
        tok.post_processor = processors.RobertaProcessing(('</s>', tok.token_to_id('</s>')), ('<s>', tok.token_to_id('<s>')))
    return PreTrainedTokenizerFast(tokenizer_object=tok, **kwargs)


def unigram(**kwargs):
    "A Unigram tokenizer as T5 and XLNet have them"
    tok = Tokenizer(models.Unigram())
    tok.normalizer,tok.pre_tokenizer = normalizers.NFKC(),pre_tokenizers.Metaspace()
    tok.train_from_iterator(_corpus(), trainers.UnigramTrainer(vocab_size=200, special_tokens=['<pad>', '</s>', '<unk>'], unk_token='<unk>'))
    tok.post_processor = processors.TemplateProcessing(single='$A </s>', pair='$A </s> $B </s>', special_tokens=[('</s>', 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tok, pad_token='<pad>', eos_token='</s>', unk_token='<unk>', **kwargs)


def roberta_like(): return byte_level(['<s>', '<pad>', '</s>', '<unk>', '<mask>'], bos_token='<s>', eos_token='</s>', cls_token='<s>',
                                      sep_token='</s>', pad_token='<pad>', unk_token='<unk>', mask_token='<mask>')
def gpt_like(): return byte_level(['<|endoftext|>'], bos_token='<|endoftext|>', eos_token='<|endoftext|>')


_SMALL = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=48, max_position_embeddings=64)
_DECODER = _SMALL | dict(num_key_value_heads=2, head_dim=16)
_T5 = dict(d_model=32, d_kv=16, d_ff=48, num_layers=3, num_decoder_layers=3, num_heads=2, decoder_start_token_id=0)
_BART = dict(d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=48,
             decoder_ffn_dim=48, max_position_embeddings=64, pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2)
ARCHITECTURES = {
    'albert': (wordpiece, _SMALL | dict(embedding_size=16)),
    'bart': (roberta_like, _BART),
    'bert': (wordpiece, _SMALL),
    'convbert': (wordpiece, _SMALL | dict(embedding_size=32)),
    'deberta-v2': (wordpiece, _SMALL | dict(relative_attention=True, pos_att_type=['p2c', 'c2p'], position_biased_input=False)),
    'distilbert': (wordpiece, dict(dim=32, n_layers=3, n_heads=2, hidden_dim=48, max_position_embeddings=64)),
    'electra': (wordpiece, _SMALL | dict(embedding_size=16)),
    'fnet': (wordpiece, {k: v for k,v in _SMALL.items() if k!='num_attention_heads'}),
    'funnel': (wordpiece, dict(block_sizes=[1, 1], num_decoder_layers=1, d_model=32, n_head=2, d_head=16, d_inner=48)),
    'gpt2': (gpt_like, dict(n_embd=32, n_layer=3, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0)),
    'gpt_neox': (gpt_like, _SMALL | dict(bos_token_id=0, eos_token_id=0)),
    'llama': (gpt_like, _DECODER | dict(bos_token_id=0, eos_token_id=0)),
    'modernbert': (wordpiece, _SMALL | dict(pad_token_id=0, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3)),
    'mpnet': (roberta_like, _SMALL),
    'qwen3': (gpt_like, _DECODER | dict(bos_token_id=0, eos_token_id=0)),
    'roberta': (roberta_like, _SMALL | dict(pad_token_id=1, bos_token_id=0, eos_token_id=2)),
    't5': (unigram, _T5),
    'xlnet': (lambda: unigram(padding_side='left'), dict(d_model=32, n_layer=3, n_head=2, d_inner=48, bos_token_id=1, eos_token_id=1, pad_token_id=0)),
}


def make_objects(arch='bert', num_labels=2, **kwargs):
    "A tiny model of architecture `arch`, with weights that a seed fixes, and its tokenizer"
    make_tokenizer,options = ARCHITECTURES[arch]
    tokenizer = make_tokenizer()
    config = AutoConfig.for_model(arch, vocab_size=len(tokenizer), **{**options, 'num_labels': num_labels, **kwargs})
    set_pad_token(tokenizer, config)
    torch.manual_seed(0)
    return HFObjects(arch, config, tokenizer, AutoModelForSequenceClassification.from_config(config))


@pytest.fixture
def hf(): return make_objects()


@pytest.fixture
def dls(df, hf): return HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', bs=8, seed=0, device='cpu')


@pytest.fixture
def learn(dls, hf):
    learn = hf_learner(dls, hf.model, lr=1e-2)
    with learn.no_bar(), learn.no_logging(): yield learn
