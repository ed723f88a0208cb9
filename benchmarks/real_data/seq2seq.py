"""Check that a small encoder-decoder can memorize the pairs of a CSV file and generate them again.

    python benchmarks/real_data/seq2seq.py translations.csv --text-col en --target-col fr --task translation
    python benchmarks/real_data/seq2seq.py summaries.csv --rows 64

It trains and scores on the same rows, so it tests the path from texts to gradients to generated texts, not translation
quality. The script trains a unigram tokenizer on the file and creates a new model; it downloads nothing.
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
    "Train a unigram tokenizer like that of T5, with at most `size` tokens"
    tok = Tokenizer(models.Unigram())
    tok.normalizer,tok.pre_tokenizer,tok.decoder = normalizers.NFC(),pre_tokenizers.Metaspace(),decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=size, special_tokens=['<pad>', '</s>', '<unk>'], unk_token='<unk>',
                                      show_progress=False)
    tok.train_from_iterator(texts, trainer)
    tok.post_processor = processors.TemplateProcessing(single='$A </s>', special_tokens=[('</s>', 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tok, pad_token='<pad>', eos_token='</s>', unk_token='<unk>')


def small_t5(tokenizer, width):
    "Create a T5 with two layers and seeded weights"
    config = AutoConfig.for_model('t5', vocab_size=len(tokenizer), d_model=width, d_kv=width//4, d_ff=4*width,
                                  num_layers=2, num_decoder_layers=2, num_heads=4, decoder_start_token_id=0,
                                  dropout_rate=0.)
    set_seed(0)
    return HFObjects('t5', config, tokenizer, AutoModelForSeq2SeqLM.from_config(config))


@call_parse
def main(
    csv:str, # Path of a CSV file of pairs
    text_col:str='text', # The column of source texts
    target_col:str='summary', # The column of target texts
    task:str='summarization', # "summarization" or "translation"
    rows:int=None, # Number of rows to use, from the first; all if omitted
    epochs:int=40, # Number of epochs
    lr:float=3e-3, # The highest learning rate
    bs:int=16, # Rows per batch
    max_length:int=128, # Maximum number of tokens per text
    width:int=128, # Hidden size of the model
    vocab:int=3000, # Maximum vocabulary size
):
    "Train on `csv`, generate the targets of the same rows, and print scores and seconds"
    df = pd.read_csv(csv).dropna(subset=[text_col, target_col]).drop_duplicates(text_col)[:rows].reset_index(drop=True)
    hf = small_t5(unigram([*df[text_col], *df[target_col]], vocab), width)
    # `DataLoaders` need a validation row, so the first row is repeated; all rows are scored at the end
    repeated = pd.concat([df, df[:1]], ignore_index=True)
    dls = HFTextDataLoaders.from_df(repeated, hf, text_col=text_col, label_col=target_col, task=task, bs=bs, seed=0,
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
    size,device = sum(p.numel() for p in hf.model.parameters())/1e6,next(learn.model.parameters()).device
    loss = float(learn.recorder.losses[-1])
    print(f"{len(df)} rows, {epochs} epochs, {size:.1f}M parameters on {device}, {torch.get_num_threads()} torch "
          f"threads: trained in {trained-start:.0f} s to loss {loss:.4f}, generated in {generated-trained:.1f} s")
    print({k: round(v, 2) for k,v in scores.items()})
    for text,target,pred in list(zip(df[text_col], targets, written, strict=True))[:2]:
        print(f"  {text[:60]!r} -> {pred[:60]!r}" + ('' if pred==target else f"; expected {target[:60]!r}"))
