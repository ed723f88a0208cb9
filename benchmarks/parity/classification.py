"Compare Trainer and hf_learner on single-label classification"
import numpy as np
from common import compare, read_rows, train_blurlike, train_trainer, train_valid
from fastcore.meta import delegates
from fastcore.script import call_parse
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, set_seed

from blurlike.all import HFTextDataLoaders, hf_learner


def trainer_side(s, df):
    "Train with `Trainer` and return the labels of the validation rows; two columns of texts are pairs"
    tokenizer = AutoTokenizer.from_pretrained(s.checkpoint)
    names = sorted(df.label.unique())
    def encode(rows):
        enc = tokenizer(*(rows[o] for o in s.text_cols), truncation=True, max_length=s.max_length)
        return enc | {'labels': [names.index(o) for o in rows['label']]}
    train,valid = (o.map(encode, batched=True, remove_columns=o.column_names) for o in train_valid(df))
    set_seed(s.seed) # for the same new weights on both sides
    model = AutoModelForSequenceClassification.from_pretrained(s.checkpoint, num_labels=len(names),
                                                              id2label=dict(enumerate(names)))
    trainer = train_trainer(s, model, train, DataCollatorWithPadding(tokenizer))
    return [names[i] for i in np.argmax(trainer.predict(valid).predictions, axis=-1)]

def blurlike_side(s, df):
    "Train with `hf_learner` and return the same"
    text_col = s.text_cols[0] if len(s.text_cols)==1 else s.text_cols
    dls = HFTextDataLoaders.from_df(df, s.checkpoint, text_col=text_col, label_col='label',
                                    task='sequence-classification', valid_col='is_valid',
                                    bs=s.bs, max_length=s.max_length, seed=s.seed)
    set_seed(s.seed) # for the same new weights on both sides
    learn = train_blurlike(s, hf_learner(dls, metrics=[]))
    valid = df[df.is_valid]
    if isinstance(text_col, str): texts = valid[text_col]
    else: texts = list(valid[list(text_col)].itertuples(index=False, name=None))
    return [o['label'] for o in learn.hf_predict(texts)]

def scores(valid, preds):
    "Return Matthews correlation, accuracy and macro F1"
    truth = valid.label.tolist()
    return {'Matthews correlation': matthews_corrcoef(truth, preds), 'accuracy': accuracy_score(truth, preds),
            'macro F1': f1_score(truth, preds, average='macro')}

def compare_classes(csv, text_cols, label_col, **kwargs):
    "Read the rows and compare both sides"
    df = read_rows(csv, [*text_cols, label_col]).rename(columns={label_col: 'label'})
    df['label'] = df.label.astype(str)
    return compare(df, trainer_side, blurlike_side, scores, text_cols=text_cols, **kwargs)

@call_parse
@delegates(compare, but=['df', 'trainer', 'blurlike', 'scores'])
def main(
    csv:str, # Path of a CSV file
    text_col:str='text', # The column of texts
    label_col:str='label', # The column of labels
    **kwargs
):
    "Classify texts with transformers.Trainer and with blurlike"
    compare_classes(csv, [text_col], label_col, **kwargs)
