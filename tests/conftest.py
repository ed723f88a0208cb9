"Tiny models of real architectures and a small set of labeled texts, all built locally."
import os

os.environ['HF_HUB_OFFLINE'] = '1' # before any Hugging Face library is imported

import gc  # noqa: E402
import inspect  # noqa: E402
import json  # noqa: E402
import random  # noqa: E402
import re  # noqa: E402
from copy import deepcopy  # noqa: E402
from functools import cache  # noqa: E402

import pandas as pd  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from fastai.torch_core import set_seed  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402
from transformers import (  # noqa: E402
    AutoConfig,
    AutoModelForSequenceClassification,
    BertTokenizer,
    PreTrainedTokenizerFast,
)

from blurlike.all import HFObjects, HFTextDataLoaders, hf_learner, set_pad_token  # noqa: E402
from blurlike.core.checks import print_once  # noqa: E402


def pytest_collection_finish(session):
    "Exclude the loaded modules from garbage collection, and collect less often: this saves a fifth of the time"
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def pytest_addoption(parser):
    parser.addoption('--seed', type=int, default=0, help='random state in which each test and its fixtures start')


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    "Start each test from the same random state, whichever tests ran before it"
    set_seed(item.config.getoption('seed'))


def mentions(*facts):
    "Return a pattern for `match=` that finds messages with all of `facts`, verbatim and in any order"
    return r'\A' + ''.join(rf'(?=[\s\S]*{_whole(str(o))})' for o in facts)


def _whole(fact):
    "A pattern for `fact` that finds 'row 7' in 'row 7:' but not in 'row 77' or 'row 7.5'"
    before = r'(?<!\w)(?<!\d\.)' if fact[0].isalnum() else ''
    after = r'(?!\w|\.\d)' if fact[-1].isalnum() else ''
    return before + re.escape(fact) + after


@pytest.fixture(autouse=True)
def _lines_are_new():
    "Let each test print what an earlier one printed"
    print_once.cache_clear()


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


@pytest.fixture
def df():
    "120 labeled texts, the last 40 of them for validation"
    df = make_texts(120)
    df['is_valid'] = df.index >= 80
    return df


@cache
def _corpus(): return make_texts(200, seed=1).text.tolist() + ['[0-9] !?., zoë 東京 🎬']
def _words(): return sorted({w for t in _corpus() for w in t.split()})


def _bpe(pre_tokenizer, alphabet, vocab_size=330):
    "The vocabulary and the merges of a BPE model"
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizer
    tok.train_from_iterator(_corpus(),
                            trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False))
    model = json.loads(tok.to_str())['model']
    return list(model['vocab']),[tuple(o) for o in model['merges']]


@cache
def byte_bpe(): return _bpe(pre_tokenizers.ByteLevel(add_prefix_space=False), pre_tokenizers.ByteLevel.alphabet())
@cache
def sentence_bpe(): return _bpe(pre_tokenizers.Metaspace(), [*'▁abcdefghijklmnopqrstuvwxyz0123456789',
                                                             *(f'<0x{i:02X}>' for i in range(256))][:36], 120)
@cache
def pieces():
    return [(f'▁{w}', -3.) for w in _words()] + [(c, -9.) for c in '▁abcdefghijklmnopqrstuvwxyz0123456789.,!?[]-']
@cache
def wordpieces(): return [*_words(), *'abcdefghijklmnopqrstuvwxyz', *(f'##{c}' for c in 'abcdefghijklmnopqrstuvwxyz')]


def _special(cls):
    "The special tokens that a tokenizer class has by default"
    defaults = [p.default for k,p in inspect.signature(cls).parameters.items() if k.endswith('_token')]
    return list(dict.fromkeys(str(o) for o in defaults if o not in (None, inspect.Parameter.empty)))


@cache
def _own(name, special, options):
    cls = getattr(transformers, f'{name}Tokenizer')
    special,kind,options = [*_special(cls), *special],getattr(cls.model, '__name__', 'Unigram'),dict(options)
    ids = lambda tokens: {o: i for i,o in enumerate(dict.fromkeys([*special, *tokens]))}
    if kind=='WordPiece': return cls(vocab=ids(wordpieces()), **options)
    if kind=='Unigram':
        return cls(vocab=[(o, 0.) for o in special] + [o for o in pieces() if o[0] not in special], **options)
    vocab,merges = sentence_bpe() if name in ('Llama', 'Gemma') else byte_bpe()
    return cls(vocab=ids(vocab), merges=merges, **options)


def own(name, *special, **options):
    "A function that makes a tokenizer of transformers' own class, with a vocabulary made here"
    return lambda: deepcopy(_own(name, special, tuple(options.items())))


def wordpiece():
    "A BERT tokenizer with a vocabulary of its own"
    vocab = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *_words(), *'abcdefghijklmnopqrstuvwxyz']
    return BertTokenizer(vocab={w: i for i,w in enumerate(dict.fromkeys(vocab))}, model_max_length=64)


@cache
def _byte_level(special, options):
    vocab,merges = byte_bpe()
    tok = Tokenizer(models.BPE(vocab={o: i for i,o in enumerate([*special, *vocab])}, merges=merges))
    tok.add_special_tokens(list(special))
    tok.pre_tokenizer,tok.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False),decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tok, **dict(options))


def gpt_like(*special, **options):
    "A byte-level BPE tokenizer without a class of its own"
    end = '<|endoftext|>'
    return deepcopy(_byte_level((end, *special), tuple((dict(bos_token=end, eos_token=end) | options).items())))


def roberta_like(**options): return own('Roberta', **options)()
def unigram(**options): return own('T5', **options)()


@cache
def _characters(): return transformers.CanineTokenizer(model_max_length=64)
def characters(): return deepcopy(_characters())


_SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
              max_position_embeddings=64)
_DECODER = _SMALL | dict(num_key_value_heads=1, head_dim=16)
_GPT = dict(n_embd=32, n_layer=2, n_head=2, n_positions=64)
_T5 = dict(d_model=32, d_kv=16, d_ff=48, num_layers=2, num_decoder_layers=2, num_heads=2)
_BART = dict(d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
             encoder_ffn_dim=48,
             decoder_ffn_dim=48, max_position_embeddings=64)
_EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
_roberta,_gpt,_unigram,_bert = own('Roberta'),own('GPT2'),own('T5', extra_ids=4),own('Bert')
_masked_bpe = lambda: gpt_like('<|mask|>', '<|pad|>', mask_token='<|mask|>', pad_token='<|pad|>')
ARCHITECTURES = { # model type: (a function that builds its tokenizer, options of a tiny configuration)
    'albert': (own('Albert'), _SMALL | dict(embedding_size=16)),
    'bart': (_roberta, _BART),
    'bert': (wordpiece, _SMALL | dict(num_hidden_layers=3)),
    'big_bird': (own('BigBird'), _SMALL),
    'bigbird_pegasus': (own('Pegasus', mask_token=None, offset=0), _BART),
    'biogpt': (_roberta, _SMALL),
    'blenderbot': (own('Blenderbot'), _BART),
    'blenderbot-small': (_roberta, _BART),
    'bloom': (gpt_like, dict(hidden_size=32, n_layer=2, n_head=2)),
    'camembert': (own('Camembert'), _SMALL),
    'canine': (characters, _SMALL | dict(num_hash_buckets=64)),
    'convbert': (_bert, _SMALL | dict(embedding_size=32)),
    'ctrl': (gpt_like, _GPT | dict(dff=48)),
    'data2vec-text': (_roberta, _SMALL),
    'deberta': (own('Deberta'),
                _SMALL | dict(relative_attention=True, pos_att_type=['p2c', 'c2p'], position_biased_input=False)),
    'deberta-v2': (own('DebertaV2'),
                   _SMALL | dict(relative_attention=True, pos_att_type=['p2c', 'c2p'], position_biased_input=False)),
    'distilbert': (_bert, dict(dim=32, n_layers=2, n_heads=2, hidden_dim=48, max_position_embeddings=64)),
    'electra': (_bert, _SMALL | dict(embedding_size=16)),
    'ernie': (_bert, _SMALL),
    'eurobert': (_masked_bpe, _DECODER),
    'falcon': (gpt_like, _SMALL),
    'flaubert': (_roberta, dict(emb_dim=32, n_layers=2, n_heads=2, max_position_embeddings=64)),
    'fnet': (own('FNet'), {k: v for k,v in _SMALL.items() if k!='num_attention_heads'}),
    'funnel': (own('Funnel'),
               dict(block_sizes=[1, 1], num_decoder_layers=1, d_model=32, n_head=2, d_head=16, d_inner=48)),
    'gemma': (own('Gemma'), _DECODER),
    'gemma2': (own('Gemma'), _DECODER),
    'gpt2': (_gpt, _GPT),
    'gpt_bigcode': (_gpt, _GPT),
    'gpt_neo': (_gpt, dict(hidden_size=32, num_layers=2, num_heads=2, attention_types=[[['global', 'local'], 1]],
                           window_size=8, max_position_embeddings=64)),
    'gpt_neox': (own('GPTNeoX'), _SMALL),
    'gptj': (_gpt, _GPT | dict(rotary_dim=8)),
    'ibert': (_roberta, _SMALL),
    'led': (own('LED'),
            _BART | dict(attention_window=8, max_encoder_position_embeddings=64, max_decoder_position_embeddings=64)),
    'llama': (own('Llama'), _DECODER),
    'longformer': (_roberta, _SMALL | dict(attention_window=8)),
    'longt5': (_unigram, _T5 | dict(local_radius=4)),
    'luke': (own('Luke'), _SMALL | dict(entity_vocab_size=8, entity_emb_size=16)),
    'm2m_100': (_unigram, _BART),
    'mamba': (own('GPTNeoX'), dict(hidden_size=32, num_hidden_layers=2, state_size=4)),
    'marian': (_unigram, _BART),
    'mbart': (own('MBart', src_lang='en_XX', tgt_lang='fr_XX'), _BART),
    'megatron-bert': (_bert, _SMALL),
    'mistral': (own('Llama'), _DECODER),
    'mixtral': (own('Llama'), _DECODER | dict(num_local_experts=2)),
    'mobilebert': (own('MobileBert'),
                   _SMALL | dict(intra_bottleneck_size=16, embedding_size=16, num_feedforward_networks=2)),
    'modernbert': (_bert, _SMALL),
    'modernbert-decoder': (_masked_bpe, _SMALL),
    'mpnet': (own('MPNet'), _SMALL),
    'mpt': (gpt_like, dict(d_model=32, n_heads=2, n_layers=2, max_seq_len=64)),
    'mt5': (_unigram, _T5),
    'mvp': (own('Mvp'), _BART),
    'nomic_bert': (_bert, _SMALL),
    'nystromformer': (own('Albert'), _SMALL | dict(num_landmarks=64, segment_means_seq_len=64)),
    'olmo': (own('GPTNeoX'), _DECODER),
    'olmo2': (gpt_like, _DECODER),
    'openai-gpt': (gpt_like, _GPT),
    'opt': (_gpt, dict(hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=16,
                       max_position_embeddings=64)),
    'pegasus': (own('Pegasus', mask_token=None, offset=0), _BART),
    'pegasus_x': (own('Pegasus', mask_token=None, offset=0), _BART | dict(block_size=8, num_global_tokens=4)),
    'persimmon': (own('Llama'), _SMALL),
    'phi': (_gpt, _DECODER),
    'phi3': (own('Llama'), _DECODER),
    'plbart': (own('MBart', src_lang='en_XX', tgt_lang='fr_XX'), _BART),
    'prophetnet': (_bert, dict(hidden_size=32, num_encoder_layers=2, num_decoder_layers=2,
                               num_encoder_attention_heads=2, num_decoder_attention_heads=2,
                               encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64)),
    'qwen2': (own('Qwen2'), _DECODER),
    'qwen2_moe': (own('Qwen2'), _DECODER | _EXPERTS | dict(shared_expert_intermediate_size=16)),
    'qwen3': (own('Qwen2'), _DECODER),
    'qwen3_moe': (own('Qwen2'), _DECODER | _EXPERTS),
    'rembert': (own('Albert'), _SMALL | dict(input_embedding_size=16, output_embedding_size=16)),
    'roberta': (_roberta, _SMALL),
    'roberta-prelayernorm': (_roberta, _SMALL),
    'roformer': (_bert, _SMALL | dict(embedding_size=16)),
    'smollm3': (own('Llama'), _DECODER),
    'splinter': (own('Splinter'), _SMALL),
    'squeezebert': (_bert, _SMALL | dict(embedding_size=32)),
    'stablelm': (gpt_like, _DECODER),
    'starcoder2': (_gpt, _DECODER),
    'switch_transformers': (_unigram,
                            _T5 | dict(num_experts=2, num_sparse_encoder_layers=1, num_sparse_decoder_layers=1)),
    't5': (_unigram, _T5),
    'umt5': (_unigram, _T5),
    'xglm': (own('XGLM'), dict(d_model=32, ffn_dim=48, num_layers=2, attention_heads=2, max_position_embeddings=64)),
    'xlm': (_roberta, dict(emb_dim=32, n_layers=2, n_heads=2, max_position_embeddings=64)),
    'xlm-roberta': (own('XLMRoberta'), _SMALL),
    'xlm-roberta-xl': (own('XLMRoberta'), _SMALL),
    'xlnet': (own('XLNet'), dict(d_model=32, n_layer=2, n_head=2, d_inner=48)),
    'xmod': (own('XLMRoberta'), _SMALL | dict(languages=['en_XX'], default_language='en_XX')),
}


# Options that a model needs: Funnel pools over at least three tokens
BLOCK_OPTIONS = {'funnel': dict(pad_to_multiple_of=4)}


def make_config(arch='bert', num_labels=2, **kwargs):
    "The configuration of a tiny model of architecture `arch`, and its tokenizer"
    make_tokenizer,options = ARCHITECTURES[arch]
    tokenizer = make_tokenizer()
    ids = {o: getattr(tokenizer, o)
           for o in ('pad_token_id', 'bos_token_id', 'eos_token_id', 'cls_token_id', 'sep_token_id')}
    ids = {k: v for k,v in ids.items() if v is not None}
    start = ids.get('bos_token_id', ids.get('pad_token_id', 0))
    defaults = dict(vocab_size=len(tokenizer), decoder_start_token_id=start) | ids | options
    config = AutoConfig.for_model(arch, **(defaults | dict(num_labels=num_labels) | kwargs))
    set_pad_token(tokenizer, config)
    return config,tokenizer


def make_objects(arch='bert', num_labels=2, auto_model=AutoModelForSequenceClassification, **kwargs):
    "A tiny model of architecture `arch`, with weights that a seed fixes, and its tokenizer"
    config,tokenizer = make_config(arch, num_labels, **kwargs)
    torch.manual_seed(0)
    return HFObjects(arch, config, tokenizer, auto_model.from_config(config))


@pytest.fixture
def hf(): return make_objects()


@pytest.fixture
def dls(df, hf): return HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', bs=8, seed=0, device='cpu')


@pytest.fixture
def learn(dls, hf):
    learn = hf_learner(dls, hf.model, lr=1e-2)
    with learn.no_bar(), learn.no_logging(): yield learn
