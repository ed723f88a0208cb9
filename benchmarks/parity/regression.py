"Compare Trainer and hf_learner on regression"
from common import compare, read_rows, train_blurlike, train_trainer, train_valid
from fastcore.meta import delegates
from fastcore.script import call_parse
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import mean_squared_error
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, set_seed

from blurlike.all import HFTextDataLoaders, hf_learner


def trainer_side(s, df):
    "Train with `Trainer` and return the prediction for each validation row"
    tokenizer = AutoTokenizer.from_pretrained(s.checkpoint)
    def encode(rows):
        return tokenizer(rows['text'], truncation=True, max_length=s.max_length) | {'labels': rows['score']}
    train,valid = (o.map(encode, batched=True, remove_columns=o.column_names) for o in train_valid(df))
    set_seed(s.seed) # for the same new weights on both sides
    model = AutoModelForSequenceClassification.from_pretrained(s.checkpoint, num_labels=1, problem_type='regression')
    trainer = train_trainer(s, model, train, DataCollatorWithPadding(tokenizer))
    return trainer.predict(valid).predictions[:,0].tolist()

def blurlike_side(s, df):
    "Train with `hf_learner` and return the same"
    dls = HFTextDataLoaders.from_df(df, s.checkpoint, text_col='text', label_col='score', task='regression',
                                    valid_col='is_valid', bs=s.bs, max_length=s.max_length, seed=s.seed)
    set_seed(s.seed)
    learn = train_blurlike(s, hf_learner(dls, metrics=[]))
    return [o['score'] for o in learn.hf_predict(df[df.is_valid].text)]

def scores(valid, preds):
    "Return Pearson's and Spearman's correlation, and the mean squared error"
    return {'Pearson': pearsonr(valid.score, preds).statistic, 'Spearman': spearmanr(valid.score, preds).statistic,
            'mean squared error': mean_squared_error(valid.score, preds)}

@call_parse
@delegates(compare, but=['df', 'trainer', 'blurlike', 'scores'])
def main(
    csv:str, # Path of a CSV file
    text_col:str='text', # The column of texts
    label_col:str='score', # The column of numbers
    **kwargs
):
    "Train regression with transformers.Trainer and with blurlike"
    df = read_rows(csv, [text_col, label_col])
    df.columns = ['text', 'score']
    compare(df.astype({'score': float}), trainer_side, blurlike_side, scores, **kwargs)
