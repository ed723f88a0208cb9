"""Whether a small encoder-decoder learns the pairs of a CSV file by heart, and writes them again.

    python benchmarks/real_data/seq2seq.py translations.csv --text-col en --target-col fr --task translation
    python benchmarks/real_data/seq2seq.py summaries.csv --text-col text --target-col summary --task summarization --rows 64

It trains and scores on the same rows: this measures the way from texts to gradients to generated texts, not how well a model
translates. A model and a unigram tokenizer are made from the file; nothing is downloaded.
"""
import time

import pandas as pd
import torch
from fastai.text.all import set_seed
from fastcore.script import call_parse
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedTokenizerFast

from blurlike.all import ChrF, HFObjects, HFTextDataLoaders, Rouge, SacreBLEU, hf_learner


def unigram(texts, size):
    "A Unigram tokenizer as T5 has it, of at most `size` tokens"
    tok = Tokenizer(models.Unigram())
    tok.normalizer,tok.pre_tokenizer,tok.decoder = normalizers.NFC(),pre_tokenizers.Metaspace(),decoders.Metaspace()
    tok.train_from_iterator(texts, trainers.UnigramTrainer(vocab_size=size, special_tokens=['<pad>', '</s>', '<unk>'], unk_token='<unk>', show_progress=False))
    tok.post_processor = processors.TemplateProcessing(single='$A </s>', special_tokens=[('</s>', 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tok, pad_token='<pad>', eos_token='</s>', unk_token='<unk>')


def small_t5(tokenizer, width):
    "A T5 of two layers, with weights that a seed fixes"
    config = AutoConfig.for_model('t5', vocab_size=len(tokenizer), d_model=width, d_kv=width//4, d_ff=4*width, num_layers=2, num_decoder_layers=2,
                                  num_heads=4, decoder_start_token_id=0, dropout_rate=0.)
    set_seed(0)
    return HFObjects('t5', config, tokenizer, AutoModelForSeq2SeqLM.from_config(config))


@call_parse
def main(
    csv:str, # A CSV file of pairs
    text_col:str='text', # The column of texts
    target_col:str='summary', # The column of targets
    task:str='summarization', # "summarization" or "translation"
    rows:int=None, # How many rows, from the first; all if not given
    epochs:int=40, # How often each row is seen
    lr:float=3e-3, # The highest learning rate
    bs:int=16, # Rows a batch
    max_length:int=128, # Tokens a text
    width:int=128, # Of the model
    vocab:int=3000, # Tokens of the tokenizer
):
    "Train on `csv`, generate for the same rows, and print scores and seconds"
    df = pd.read_csv(csv).dropna(subset=[text_col, target_col]).drop_duplicates(text_col)[:rows].reset_index(drop=True)
    hf = small_t5(unigram([*df[text_col], *df[target_col]], vocab), width)
    once_more = pd.concat([df, df[:1]], ignore_index=True) # one row to validate with: all are scored at the end
    dls = HFTextDataLoaders.from_df(once_more, hf, text_col=text_col, label_col=target_col, task=task, bs=bs, seed=0,
                                    splits=(range(len(df)), [len(df)]), max_length=max_length)
    print(dls.truncation_report().to_string())
    learn = hf_learner(dls, hf.model, metrics=[])
    start = time.perf_counter()
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, lr)
    trained = time.perf_counter()
    written = [next(iter(o.values())) for o in learn.hf_generate(df[text_col].tolist())]
    generated = time.perf_counter()
    targets = df[target_col].tolist()
    scores = {o.name: o.score(written, targets) for o in (Rouge('rouge1'), Rouge('rougeL'), SacreBLEU(), ChrF())}
    print(f"{len(df)} rows, {epochs} epochs, {sum(p.numel() for p in hf.model.parameters())/1e6:.1f}M parameters on {next(learn.model.parameters()).device}, "
          f"torch threads {torch.get_num_threads()}: trained in {trained-start:.0f} s to loss {float(learn.recorder.losses[-1]):.4f}, generated in {generated-trained:.1f} s")
    print({k: round(v, 2) for k,v in scores.items()})
    for text,target,pred in list(zip(df[text_col], targets, written, strict=True))[:2]: print(f"  {text[:60]!r} -> {pred[:60]!r}" + ('' if pred==target else f"; wanted {target[:60]!r}"))
